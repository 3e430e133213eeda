"""What a runner tells Prometheus: the meters that `run_recorder` turns, and nothing that decides.

What happens thousands of times a second is counted per batch. Gauges are set by the runner's own loop, once a second,
so that a scrape, which another thread serves, never looks into what the loop is changing.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cronplane_core.account import ViolationKind
from cronplane_core.run_transitions import FinishedRun, NewRun, StartedAttempt
from cronplane_core.tables import TriggerKind

# Seconds, from what nobody notices to what is hardly a start any more.
_LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
# Reasons are words of ours, but some come by way of a worker, in which anybody's entry runs.
_MOST_REASONS = 64
_OTHER_REASON = "Other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a leader has to do at one moment.

    `next_fire` (aware, UTC) is the earliest fire that is not claimed, `next_fire_lag` by how many seconds it is late.
    """

    scheduled: int
    queued: int
    workers: int
    busy: int
    next_fire_lag: float
    next_fire: datetime | None


_NO_LOAD = Load(scheduled=0, queued=0, workers=0, busy=0, next_fire_lag=0.0, next_fire=None)


class RunnerMetrics:
    """The runner's meters, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"cronplane_{name}", meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"cronplane_{name}", meaning, labels, registry=registry)

        self._reasons: set[str] = set()
        self._fires = counter("fires", "Fires claimed, each fire of a missed range counted", "outcome", "reason")
        self._runs = counter("runs_finished", "Runs that reached a terminal state", "status", "reason", "entrypoint")
        self._start_lag = Histogram(
            "cronplane_start_lag_seconds",
            "From a fire's time to the start of the first attempt of its run, by the database's clock",
            buckets=_LAG_BUCKETS,
            registry=registry,
        )
        self._watch_ends = counter("watch_ends", "Times that kopf ended by itself and was started again")
        self._jobs_launched = counter("jobs_launched", "Jobs that were made for attempts, or found made")
        self._attempts_started = counter("attempts_started", "Attempts that passed the start gate")
        self._attempts_ended = counter("attempts_ended", "Attempts that are over", "outcome")
        self._superseded = counter("attempts_superseded", "Ends that were reported of attempts that were over already")
        self._results_refused = counter("results_refused", "Results that PostgreSQL did not take")
        self._leader = gauge("leader", "Whether this runner leads")
        self._term_failures = counter("term_failures", "Terms that a defect of Cronplane ended")
        self._scheduled = gauge("crons_scheduled", "Crons that this runner will fire; 0 unless it leads")
        self._reconciled = counter("crons_reconciled", "Crons taken up, changed or removed after a look at the table")
        self._refused = counter("schedules_refused", "Stored schedules found not to be accepted")
        self._queued = gauge("queue_length", "Queued runs that the leader knows and that wait for a worker")
        self._workers = gauge("workers", "Worker processes")
        self._busy = gauge("workers_busy", "Worker processes that have a task")
        self._next_fire_lag = gauge("next_fire_lag_seconds", "By how much the earliest fire not yet claimed is late")
        self._database_away = counter(
            "database_away", "Times that something was put off for want of PostgreSQL", "doing"
        )
        self._violations = gauge("violations", "Violations of the guarantee that the last scan found", "kind")
        self._scan_seconds = gauge("scan_duration_seconds", "How long the last scan took")
        self._scanned_at = gauge("scan_timestamp_seconds", "When the last scan ended, in Unix time; 0 if none has")
        self._scan_failures = counter("scan_failures", "Scans that could not be made")

    def led(self, *, leads: bool) -> None:
        """Tell whether this runner leads; one that does not has nothing to do."""
        self._leader.set(leads)
        if not leads:
            self.observed(_NO_LOAD)

    def term_failed(self) -> None:
        """Count a defect of ours."""
        self._term_failures.inc()

    def reconciled(self, *, changed: int) -> None:
        """Count crons that were brought up to the table."""
        self._reconciled.inc(changed)

    def schedule_refused(self) -> None:
        """Count a schedule that cannot be."""
        self._refused.inc()

    def claimed(self, runs: Sequence[NewRun]) -> None:
        """Count fires by what was recorded of them."""
        fires: Tally[tuple[str, str]] = Tally()
        for run in runs:
            fires[run.status.value, run.reason] += run.missed_count or 1
        for (outcome, reason), count in fires.items():
            self._fires.labels(outcome, self._known_reason(reason)).inc(count)

    def started(self, attempts: Sequence[StartedAttempt]) -> None:
        """Count attempts, and take how late the runs of the schedule were."""
        self._attempts_started.inc(len(attempts))
        for attempt in attempts:
            if attempt.run.attempt == 1 and attempt.trigger_kind is TriggerKind.SCHEDULE:
                self._start_lag.observe(_seconds(attempt.scheduled_for, attempt.started_at))

    def attempts_ended(self, outcomes: Iterable[str]) -> None:
        """Count ends of attempts."""
        for outcome, count in Tally(outcomes).items():
            self._attempts_ended.labels(outcome).inc(count)

    def superseded(self, *, attempts: int) -> None:
        """Count ends that came too late."""
        self._superseded.inc(attempts)

    def result_refused(self) -> None:
        """Count a result that could not be written."""
        self._results_refused.inc()

    def finished(self, runs: Iterable[FinishedRun]) -> None:
        """Count runs by how they ended."""
        for (status, reason, entrypoint), count in Tally(
            (run.status.value, run.reason, run.entrypoint) for run in runs
        ).items():
            self._runs.labels(status, self._known_reason(reason), entrypoint).inc(count)

    def database_away(self, *, doing: str) -> None:
        """Count what was put off."""
        self._database_away.labels(doing).inc()

    def observed(self, load: Load) -> None:
        """Tell what there is to do now."""
        self._scheduled.set(load.scheduled)
        self._queued.set(load.queued)
        self._workers.set(load.workers)
        self._busy.set(load.busy)
        self._next_fire_lag.set(load.next_fire_lag)

    def launched(self, *, jobs: int) -> None:
        """Count Jobs of attempts."""
        self._jobs_launched.inc(jobs)

    def watch_ended(self) -> None:
        """Count an end of kopf."""
        self._watch_ends.inc()

    def scanned(self, violations: Mapping[ViolationKind, int], *, seconds: float) -> None:
        """Tell what the last scan found; a kind of which it found none is told, too."""
        for kind in ViolationKind:
            self._violations.labels(kind.value).set(violations.get(kind, 0))
        self._scan_seconds.set(seconds)
        self._scanned_at.set_to_current_time()

    def scan_failed(self) -> None:
        """Count a scan that could not be made."""
        self._scan_failures.inc()

    def _known_reason(self, reason: str) -> str:
        if reason in self._reasons or len(self._reasons) < _MOST_REASONS:
            self._reasons.add(reason)
            return reason
        return _OTHER_REASON


def _seconds(since: datetime, until: datetime) -> float:
    return (until - since).total_seconds()
