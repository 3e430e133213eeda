"""Keeps APScheduler's jobs equal to the table, whatever was missed on the way.

It is told when to look, never what to do: it reads both states, lets `plan` decide, and carries the plan out. It never
touches a job whose cron did not change, because re-adding a job would throw away a fire that is due.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import job_state_repository
from cronplane_core import lease as leases
from cronplane_core.database import transaction
from cronplane_core.job_state_repository import CronState, JobState
from cronplane_core.lease import Lease
from cronplane_core.schedule import Schedule, ScheduleError
from cronplane_core.timeline import FireSource
from cronplane_operator.claim_executor import ClaimExecutor
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.fire_trigger import FireTrigger
from cronplane_operator.job_store import CronJob, CronJobStore
from cronplane_operator.reconcile_plan import KnownJob, Plan, current_source, owed_source, plan
from cronplane_operator.run_recorder import RunRecorder

_BATCH = 2000


class Reconciler:
    """Reconciles for one lease. `settled` is held while it works, so that no claim is under way then."""

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        lease: Lease,
        settled: asyncio.Lock,
        store: CronJobStore,
        executor: ClaimExecutor,
        clock: DatabaseClock,
        recorder: RunRecorder,
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._settled = settled
        self._store = store
        self._executor = executor
        self._clock = clock
        self._recorder = recorder
        self._generations: dict[UUID, int] = {}
        self._triggers: dict[Schedule, FireTrigger] = {}
        self._seen_until = 0
        self._doubted: set[UUID] = set()

    def doubt(self, cron_ids: Iterable[UUID]) -> None:
        """Have these crons compared the next time, too: their jobs are not as they are stored, or seem not to be."""
        self._doubted.update(cron_ids)

    async def compare_all(self) -> None:
        """Compare every cron with every job."""
        async with self._settled:
            async with transaction(self._engine) as connection:
                seen_until = await job_state_repository.snapshot(connection)
                crons = [cron async for cron in job_state_repository.stream_all(connection)]
            await self._carry_out(plan(crons, self._actual(self._generations), complete=True))
            self._seen_until = seen_until

    async def read_changes(self) -> None:
        """Look only at the crons that some transaction has changed since the last look, and at those in doubt."""
        async with self._settled:
            doubted = set(self._doubted)
            async with transaction(self._engine) as connection:
                seen_until = await job_state_repository.snapshot(connection)
                changed = await job_state_repository.read_changed(connection, since=self._seen_until)
                asked = [*doubted.union(changed)]
                crons = await job_state_repository.read_by_id(connection, cron_ids=asked) if asked else []
            await self._carry_out(plan(crons, self._actual(asked), complete=False))
            self._seen_until = seen_until
            self._doubted -= doubted

    def _actual(self, cron_ids: Iterable[UUID]) -> dict[UUID, KnownJob]:
        return {
            cron_id: KnownJob(generation=self._generations[cron_id], next_run_time=self._next_unclaimed(cron_id))
            for cron_id in cron_ids
            if cron_id in self._generations
        }

    def _next_unclaimed(self, cron_id: UUID) -> datetime | None:
        due = self._executor.first_due(cron_id)
        if due is not None:
            return due
        job = self._store.lookup_job(str(cron_id))
        return None if job is None else job.next_run_time

    async def _carry_out(self, todo: Plan) -> None:
        for cron_id in todo.removed:
            self._forget(cron_id)
        for cron in todo.adopted:
            self._adopt(cron)
        for start in range(0, len(todo.outdated), _BATCH):
            await self._compute_anew(todo.outdated[start : start + _BATCH])
        changed = len(todo.adopted) + len(todo.outdated)
        if changed or todo.removed:
            self._recorder.reconciled(changed=changed, removed=len(todo.removed), scheduled=len(self._store))

    def _adopt(self, cron: CronState) -> None:
        try:
            source = current_source(cron)
        except ScheduleError as error:
            self._recorder.schedule_refused(cron_id=str(cron.id), reason=str(error))
            return
        self._hold(cron, source, cron.next_run_time)

    async def _compute_anew(self, crons: Sequence[CronState]) -> None:
        computed: list[tuple[CronState, FireSource, datetime | None]] = []
        async with transaction(self._engine) as connection:
            await leases.check(connection, lease=self._lease)
            versions = await job_state_repository.read_versions(connection, cron_ids=[cron.id for cron in crons])
            for cron in crons:
                try:
                    computed.append((cron, *owed_source(cron, versions[cron.id])))
                except ScheduleError as error:
                    self._recorder.schedule_refused(cron_id=str(cron.id), reason=str(error))
            await job_state_repository.store(
                connection,
                jobs=[
                    JobState(id=cron.id, generation=cron.generation, next_run_time=first) for cron, _, first in computed
                ],
            )
        for cron, source, first in computed:
            self._hold(cron, source, first)

    def _hold(self, cron: CronState, source: FireSource, next_run_time: datetime | None) -> None:
        self._generations[cron.id] = cron.generation
        self._executor.forget(cron.id)
        if next_run_time is None:
            self._store.discard(str(cron.id))
            return
        self._store.put(
            CronJob(
                cron_id=cron.id,
                organization_id=cron.organization_id,
                generation=cron.generation,
                trigger=self._trigger(source),
                next_run_time=next_run_time,
            )
        )

    def _trigger(self, source: FireSource) -> FireTrigger:
        trigger = FireTrigger(source=source, clock=self._clock)
        return self._triggers.setdefault(source, trigger) if isinstance(source, Schedule) else trigger

    def _forget(self, cron_id: UUID) -> None:
        del self._generations[cron_id]
        self._executor.forget(cron_id)
        self._store.discard(str(cron_id))
