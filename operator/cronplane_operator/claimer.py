"""Claims what came due: one transaction inserts the runs and moves the jobs on, so a crash neither loses nor doubles.

Whatever goes wrong, the due jobs are put back and claimed again; the stored `next_run_time` decides what was done. One
that is not as it is stored, or that is due by our reckoning alone, is the reconciler's to make anew.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import failpoints, run_transitions
from cronplane_core import lease as leases
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.lease import Lease
from cronplane_core.run_transitions import Advance, LockedCron, NewRun, QueuedRun
from cronplane_core.tables import RunStatus
from cronplane_operator.claim_decision import DueJob, decide, owed_fires
from cronplane_operator.claim_executor import ClaimExecutor
from cronplane_operator.run_recorder import RunRecorder

# Large enough to make a burst cheap, small enough that the first of it run while the rest is claimed.
CLAIM_BATCH = 1000
# Between two tries for crons that are being edited right now, or while PostgreSQL is away.
_EDITED_PAUSE = 0.02
_UNAVAILABLE_PAUSE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedBatch:
    """What one transaction did: the runs to launch, the jobs to try again, and those the reconciler must make anew."""

    queued: tuple[QueuedRun, ...]
    again: tuple[UUID, ...]
    outdated: tuple[UUID, ...]


class Claimer:
    """Claims for one lease. `settled` is held while a claim or a reconciliation is under way, never by both."""

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        lease: Lease,
        settled: asyncio.Lock,
        recorder: RunRecorder,
        on_queued: Callable[[Sequence[QueuedRun]], None],
        on_outdated: Callable[[Sequence[UUID]], None],
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._settled = settled
        self._recorder = recorder
        self._on_queued = on_queued
        self._on_outdated = on_outdated
        self._due = asyncio.Event()
        self.executor = ClaimExecutor(on_due=self._due.set)

    async def run(self) -> None:
        """Claim whenever something is due, until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        while True:
            await self._due.wait()
            pause = await self._claim_next()
            if not len(self.executor):
                self._due.clear()
            if pause:
                await asyncio.sleep(pause)

    async def _claim_next(self) -> float:
        async with self._settled:
            jobs = self.executor.take(limit=CLAIM_BATCH)
            try:
                batch = await self._claim(jobs)
            except DatabaseUnavailableError as error:
                self.executor.put_back([job.cron_id for job in jobs])
                self._recorder.claim_postponed(jobs=len(jobs), error=error)
                return _UNAVAILABLE_PAUSE
            self.executor.put_back(batch.again)
        if batch.queued:
            self._on_queued(batch.queued)
        if batch.outdated:
            self._on_outdated(batch.outdated)
        return _EDITED_PAUSE if batch.again else 0.0

    async def _claim(self, jobs: Sequence[DueJob]) -> ClaimedBatch:
        async with transaction(self._engine) as connection:
            now = await leases.check(connection, lease=self._lease)
            crons = await run_transitions.lock_crons(connection, cron_ids=[job.cron_id for job in jobs])
            claimable = [job for job in jobs if _is_claimable(job, crons.get(job.cron_id)) and _has_come(job, now)]
            runs = [run for job in claimable for run in decide(crons[job.cron_id], job, now=now)]
            inserted = await run_transitions.claim(
                connection,
                advances=[_advance(job) for job in claimable],
                runs=runs,
                epoch=self._lease.epoch,
                now=now,
            )
            failpoints.reach(Failpoint.CLAIM_COMMIT)
        failpoints.reach(Failpoint.CLAIM_COMMITTED)
        recorded = [run for run in runs if run.id in inserted]
        self._recorder.claimed(recorded)
        return _sort(jobs, crons=crons, recorded=recorded)


def _is_claimable(job: DueJob, cron: LockedCron | None) -> bool:
    return cron is not None and cron.generation == job.generation


def _has_come(job: DueJob, now: datetime) -> bool:
    """Tell whether all that a job is said to owe is due by the database itself, and not only by our reckoning."""
    return owed_fires(job.source, job.first, job.next_run_time).last <= now


def _advance(job: DueJob) -> Advance:
    return Advance(cron_id=job.cron_id, generation=job.generation, claimed=job.first, next_run_time=job.next_run_time)


def _sort(jobs: Sequence[DueJob], *, crons: dict[UUID, LockedCron], recorded: Sequence[NewRun]) -> ClaimedBatch:
    done = {run.cron_id for run in recorded}
    left = [job.cron_id for job in jobs if job.cron_id not in done]
    return ClaimedBatch(
        queued=tuple(_queued(run, crons) for run in recorded if run.status is RunStatus.QUEUED),
        again=tuple(cron_id for cron_id in left if cron_id not in crons),
        outdated=tuple(cron_id for cron_id in left if cron_id in crons),
    )


def _queued(run: NewRun, crons: dict[UUID, LockedCron]) -> QueuedRun:
    return QueuedRun(run.id, run.organization_id, crons[run.cron_id].entrypoint)
