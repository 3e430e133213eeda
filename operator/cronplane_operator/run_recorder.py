"""One method per thing that happens in a runner; each writes the log line and turns the meter, and nothing else does.

Whoever else is to learn of an event becomes a third line in its method. No payload, result or output passes through
here.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from cronplane_core.lease import LeaseState
from cronplane_core.metrics import ProcessMetrics
from cronplane_core.run_states import Decision, RunState
from cronplane_core.run_transitions import FinishedRun, NewRun, StartedAttempt
from cronplane_core.tables import RunStatus
from cronplane_operator.account_scan import ScanReport
from cronplane_operator.runner_metrics import Load, RunnerMetrics

_LOGGER = "cronplane.runner"


class RunListener(Protocol):
    """Who else is to learn of what happens in a runner, in the runner's own loop."""

    def touched(self, cron_ids: Iterable[UUID]) -> None:
        """Learn that something has become of runs of these crons."""

    def observed(self, load: Load) -> None:
        """Learn, once a second, how much there is to do."""


class RunRecorder:
    """Tells people and machines what the runner does. `process` is what the process already tells of itself."""

    def __init__(self, process: ProcessMetrics | None = None, *, listeners: Sequence[RunListener] = ()) -> None:
        self._listeners = listeners
        self._log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(_LOGGER)
        self.process = process or ProcessMetrics()
        self._metrics = RunnerMetrics(self.process.registry)

    def status_served(self, *, address: str) -> None:
        """Record where metrics and probes are to be had."""
        self._log.info("metrics and probes are served", address=address)

    def leader_seen(self, lease: LeaseState | None) -> None:
        """Take in the lease as it was just read; it happens each second, so that no line tells of it."""
        self.process.leadership.saw(lease)

    def became_leader(self, *, holder: str, epoch: int) -> None:
        """Record that this process fires from now on."""
        self._log.info("became leader", holder=holder, epoch=epoch)
        self._metrics.led(leads=True)

    def stepped_down(self, *, reason: str) -> None:
        """Record that this process fires no more."""
        self._log.warning("stepped down", reason=reason)

    def term_failed(self, *, error: Exception) -> None:
        """Record a defect of ours that ended a term, with its traceback; the next term begins shortly."""
        self._log.error("the leader failed and starts again", exc_info=error)
        self._metrics.term_failed()

    def term_ended(self) -> None:
        """Record that this process leads no more, for whatever reason was told before."""
        self._log.debug("the term is over")
        self._metrics.led(leads=False)

    def waiting(self, *, obstacle: str) -> None:
        """Record that this process is not ready, and what would make it so."""
        self._log.warning("not ready", obstacle=obstacle)

    def schema_is_newer(self, *, notice: str) -> None:
        """Record that this process serves with a schema of newer code."""
        self._log.warning("serves with a newer schema", notice=notice)

    def observed(self, load: Load) -> None:
        """Take in how much there is to do; it happens each second, so that no line tells of it."""
        self._metrics.observed(load)
        for listener in self._listeners:
            listener.observed(load)

    def reconciled(self, *, changed: int, removed: int, scheduled: int) -> None:
        """Record that APScheduler's jobs were brought up to the table."""
        self._log.info("reconciled", changed=changed, removed=removed, scheduled=scheduled)
        self._metrics.reconciled(changed=changed + removed)

    def schedule_refused(self, *, cron_id: str, reason: str) -> None:
        """Record a cron that cannot be scheduled because its stored expression or zone is not accepted."""
        self._log.error("cron cannot be scheduled", cron_id=cron_id, reason=reason)
        self._metrics.schedule_refused()

    def claimed(self, runs: Sequence[NewRun]) -> None:
        """Record what became of fires; those that are queued are told in a line when they finish."""
        self._metrics.claimed(runs)
        self._touch(runs)
        for run in runs:
            if run.status is RunStatus.QUEUED:
                continue
            self._log.warning(
                f"run {run.status.value}",
                run_id=str(run.id),
                cron_id=str(run.cron_id),
                scheduled_for=run.scheduled_for.isoformat(),
                reason=run.reason,
                missed_count=run.missed_count,
            )

    def claim_postponed(self, *, jobs: int, error: Exception) -> None:
        """Record that due jobs wait because PostgreSQL is away."""
        self._log.warning("claim postponed", jobs=jobs, error=str(error))
        self._put_off("claiming")

    def database_away(self, *, doing: str, error: Exception) -> None:
        """Record that something was put off because PostgreSQL is away; `doing` is one of a few phrases."""
        self._log.warning("database away", doing=doing, error=str(error))
        self._put_off(doing)

    def _put_off(self, doing: str) -> None:
        self.process.leadership.lost_sight()
        self._metrics.database_away(doing=doing)

    def started(self, attempts: Sequence[StartedAttempt]) -> None:
        """Record attempts that passed the start gate; a line tells of each run when it finishes."""
        self._metrics.started(attempts)
        self._touch(attempts)

    def attempts_ended(self, outcomes: Iterable[str]) -> None:
        """Record how attempts ended; a line tells of the runs."""
        self._metrics.attempts_ended(outcomes)

    def handed_back(self, *, attempts: int) -> None:
        """Record attempts whose bodies were never entered, and whose runs are queued again."""
        self._log.info("runs were queued again", attempts=attempts)
        self._metrics.attempts_ended(["handed_back"] * attempts)

    def finished(self, runs: Sequence[FinishedRun]) -> None:
        """Record runs that reached a terminal state, a line each."""
        self._metrics.finished(runs)
        self._touch(runs)
        shows_completed = logging.getLogger(_LOGGER).isEnabledFor(logging.INFO)
        for run in runs:
            if run.status is not RunStatus.COMPLETED:
                self._finished(self._log.warning, run)
            elif shows_completed:
                self._finished(self._log.info, run)

    def _touch(self, happened: Sequence[NewRun | StartedAttempt | FinishedRun]) -> None:
        for listener in self._listeners:
            listener.touched(each.cron_id for each in happened)

    def _finished(self, log: Callable[..., object], run: FinishedRun) -> None:
        log(
            f"run {run.status.value}",
            cron=run.cron_name,
            run_id=str(run.id),
            cron_id=str(run.cron_id),
            scheduled_for=run.scheduled_for.isoformat(),
            reason=run.reason,
            seconds=round((run.finished_at - run.started_at).total_seconds(), 3) if run.started_at else None,
        )

    def retry_scheduled(self, *, run: RunState, decision: Decision) -> None:
        """Record a run whose attempt failed and that gets another one."""
        self._log.warning(
            "run is retried",
            run_id=str(run.id),
            attempt=run.attempt,
            reason=decision.reason,
            not_before=None if decision.not_before is None else decision.not_before.isoformat(),
        )

    def delayed(self, *, run_id: UUID, cron_id: UUID, reason: str) -> None:
        """Record what keeps an attempt in a pod from beginning, once for each reason."""
        self._log.warning("run is delayed", run_id=str(run_id), cron_id=str(cron_id), reason=reason)
        for listener in self._listeners:
            listener.touched([cron_id])

    def delayed_no_more(self, *, run_id: UUID, cron_id: UUID) -> None:
        """Record that what kept an attempt in a pod from beginning is gone."""
        self._log.info("run is delayed no more", run_id=str(run_id), cron_id=str(cron_id))
        for listener in self._listeners:
            listener.touched([cron_id])

    def launched(self, *, jobs: int) -> None:
        """Record Jobs that were made, or found made, for attempts."""
        self._log.info("jobs were launched", jobs=jobs)
        self._metrics.launched(jobs=jobs)

    def pods_unseen(self, *, reason: str) -> None:
        """Record that Kubernetes does not show the Jobs of attempts; they are looked at again shortly."""
        self._log.warning("the jobs of attempts cannot be seen", reason=reason)

    def handed_on(self, *, run: RunState) -> None:
        """Record a run whose work somebody else has now."""
        self._log.info("run waits", run_id=str(run.id), attempt=run.attempt)

    def superseded(self, *, attempts: int) -> None:
        """Record attempts whose end was not accepted, because they were over already."""
        self._log.warning("attempts were over already", attempts=attempts)
        self._metrics.superseded(attempts=attempts)

    def result_refused(self, *, run_id: str, error: str) -> None:
        """Record a result that PostgreSQL does not take; `error` is the kind of refusal, without the value."""
        self._log.warning("result refused", run_id=run_id, error=error)
        self._metrics.result_refused()

    def watch_ended(self, *, reason: str) -> None:
        """Record that kopf ended by itself; it is started again shortly, and crons fire meanwhile."""
        self._log.warning("kopf ended and is started again", reason=reason)
        self._metrics.watch_ended()

    def scanned(self, report: ScanReport) -> None:
        """Record what a scan of the whole record found: a line per kind of violation, with the first few of it."""
        self._log.info("scanned", violations=sum(report.counts.values()), seconds=round(report.seconds, 3))
        for kind, count in report.counts.items():
            self._log.error("the guarantee is violated", kind=kind.value, count=count, first=report.examples[kind])
        self._metrics.scanned(report.counts, seconds=report.seconds)

    def scan_failed(self, *, reason: str) -> None:
        """Record that a scan could not be made; the next is tried in its turn."""
        self._log.error("the record could not be scanned", reason=reason)
        self._metrics.scan_failed()
