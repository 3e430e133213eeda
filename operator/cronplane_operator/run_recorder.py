"""One method per thing that happens to runs; each writes the log line, and nothing else decides what is logged.

No payload, result or output passes through here.
"""

import logging
from collections.abc import Callable, Sequence

import structlog

from cronplane_core.run_transitions import FinishedRun, NewRun
from cronplane_core.tables import RunStatus

_LOGGER = "cronplane.runner"


class RunRecorder:
    """Tells people what the runner does."""

    def __init__(self) -> None:
        self._log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(_LOGGER)

    def became_leader(self, *, holder: str, epoch: int) -> None:
        """Record that this process fires from now on."""
        self._log.info("became leader", holder=holder, epoch=epoch)

    def stepped_down(self, *, reason: str) -> None:
        """Record that this process fires no more."""
        self._log.warning("stepped down", reason=reason)

    def term_failed(self, *, error: Exception) -> None:
        """Record a defect of ours that ended a term, with its traceback; the next term begins shortly."""
        self._log.error("the leader failed and starts again", exc_info=error)

    def waiting(self, *, obstacle: str) -> None:
        """Record that this process is not ready, and what would make it so."""
        self._log.warning("not ready", obstacle=obstacle)

    def reconciled(self, *, changed: int, removed: int, scheduled: int) -> None:
        """Record that APScheduler's jobs were brought up to the table."""
        self._log.info("reconciled", changed=changed, removed=removed, scheduled=scheduled)

    def schedule_refused(self, *, cron_id: str, reason: str) -> None:
        """Record a cron that cannot be scheduled because its stored expression or zone is not accepted."""
        self._log.error("cron cannot be scheduled", cron_id=cron_id, reason=reason)

    def claimed(self, runs: Sequence[NewRun]) -> None:
        """Record what became of fires; those that are queued are recorded when they finish."""
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

    def database_away(self, *, doing: str, error: Exception) -> None:
        """Record that something was put off because PostgreSQL is away."""
        self._log.warning("database away", doing=doing, error=str(error))

    def finished(self, runs: Sequence[FinishedRun]) -> None:
        """Record runs that reached a terminal state, a line each."""
        shows_completed = logging.getLogger(_LOGGER).isEnabledFor(logging.INFO)
        for run in runs:
            if run.status is not RunStatus.COMPLETED:
                self._finished(self._log.warning, run)
            elif shows_completed:
                self._finished(self._log.info, run)

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

    def superseded(self, *, attempts: int) -> None:
        """Record attempts whose end was not accepted, because they were over already."""
        self._log.warning("attempts were over already", attempts=attempts)

    def result_refused(self, *, run_id: str, error: str) -> None:
        """Record a result that PostgreSQL does not take; `error` is the kind of refusal, without the value."""
        self._log.warning("result refused", run_id=run_id, error=error)
