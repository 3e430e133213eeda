"""APScheduler's executor: it runs nothing, it collects what a pass found due, so that all of it is claimed at once.

If that is more than one claim takes, organizations take turns.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from apscheduler.executors.base import BaseExecutor

from cronplane_operator.claim_decision import DueJob
from cronplane_operator.fair_queue import FairQueue
from cronplane_operator.job_store import CronJob


class ClaimExecutor(BaseExecutor):  # type: ignore[misc]  # APScheduler has no type information
    """Holds due jobs until a claim has settled them; a job that comes due again meanwhile only owes more."""

    def __init__(self, *, on_due: Callable[[], None]) -> None:
        super().__init__()
        self._on_due = on_due
        self._due: dict[UUID, tuple[datetime, CronJob]] = {}
        self._taken: dict[UUID, tuple[datetime, CronJob]] = {}
        # One that was forgotten meanwhile, or is in it twice, is passed over when its turn comes.
        self._turns: FairQueue[UUID] = FairQueue()

    def __len__(self) -> int:
        return len(self._due)

    def submit_job(self, job: CronJob, run_times: list[datetime]) -> None:
        """Collect a due job; APScheduler counts no instances here, since overlap is decided by the claim."""
        self._do_submit_job(job, run_times)

    def _do_submit_job(self, job: CronJob, run_times: list[datetime]) -> None:
        first, _ = self._due.get(job.cron_id, (run_times[0], job))
        self._wait(first, job)
        self._on_due()

    def _wait(self, first: datetime, job: CronJob) -> None:
        if job.cron_id not in self._due:
            self._turns.put(job.organization_id, job.cron_id)
        self._due[job.cron_id] = (first, job)

    def take(self, *, limit: int) -> list[DueJob]:
        """Hand over up to `limit` due jobs, with what each owes by now; the ones taken before count as settled."""
        self._taken = {}
        while len(self._taken) < limit and (turns := self._turns.take(limit - len(self._taken))):
            self._taken |= {cron_id: self._due.pop(cron_id) for cron_id in turns if cron_id in self._due}
        return [_due_job(first, job) for first, job in self._taken.values()]

    def put_back(self, cron_ids: Sequence[UUID]) -> None:
        """Take back jobs that could not be claimed: each owes everything since its first fire."""
        for cron_id in cron_ids:
            first, job = self._taken[cron_id]
            _, latest = self._due.get(cron_id, (first, job))
            self._wait(first, latest)

    def earliest_due(self) -> datetime | None:
        """Give the earliest fire (aware, UTC) that waits here to be claimed, or None."""
        return min((first for first, _ in self._due.values()), default=None)

    def first_due(self, cron_id: UUID) -> datetime | None:
        """Give the first fire (aware, UTC) that a job waits here to have claimed, or None."""
        due = self._due.get(cron_id)
        return None if due is None else due[0]

    def forget(self, cron_id: UUID) -> None:
        """Drop a due job, because the reconciler has made it anew from what is stored."""
        self._due.pop(cron_id, None)


def _due_job(first: datetime, job: CronJob) -> DueJob:
    return DueJob(
        cron_id=job.cron_id,
        generation=job.generation,
        first=first,
        next_run_time=job.next_run_time,
        source=job.source,
    )
