"""The runner: stands for leader, and while it is leader keeps APScheduler, claims and workers going.

Everything that leads belongs to one term, which ends as a whole when the lease is lost, when something in it fails, or
when the runner is told to stop. This module only composes and keeps time; each part decides for itself.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from uuid import UUID, uuid4

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import failpoints, idempotency_repository
from cronplane_core import lease as leases
from cronplane_core.database import DatabaseUnavailableError, create_engine, parse_url, transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.lease import Lease, LeaseLostError
from cronplane_core.readiness import find_readiness
from cronplane_core.run_transitions import QueuedRun
from cronplane_core.schema_revision import Readiness
from cronplane_core.settings import RunnerSettings
from cronplane_core.signed_tokens import token_signer
from cronplane_entries.core import ExecutionMode
from cronplane_entries.entry_settings import EntrySettings, read_entry_settings, read_execution_modes
from cronplane_entries.registry import CronRegistry
from cronplane_operator.account_scan import ScanError, scan
from cronplane_operator.change_listener import ChangeListener
from cronplane_operator.claimer import CLAIM_BATCH, Claimer
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.dispatcher import Dispatcher
from cronplane_operator.errors import RunnerError, SchemaUnfitError
from cronplane_operator.event_waits import any_set_or_elapsed
from cronplane_operator.job_store import EXECUTOR, JOB_STORE, CronJobStore
from cronplane_operator.leader_extension import ChangeSignal, LeaderExtension, TermContext
from cronplane_operator.pulse import Pulse
from cronplane_operator.reaper import REAP_INTERVAL, Reaper
from cronplane_operator.reconciler import Reconciler
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner_metrics import Load
from cronplane_operator.worker_pool import WorkerPool

CRONS_CHANNEL = "cronplane_crons"
RUNS_CHANNEL = "cronplane_runs"

_BEAT_PAUSE = 1.0
_STAND_PAUSE = 1.0
# Between two looks at a lease that somebody else holds: a leader that stops is followed within a second.
_STANDBY_PAUSE = 0.25
_EXPIRED_KEYS_BATCH = 1000
_RECORD_TIMEOUT = 10.0
# With PostgreSQL away, nobody knows what has passed the gate; the next leader ends it.
_GATE_TIMEOUT = 5.0
# Seconds between two looks of a leader at whether its code may still serve with the schema.
_SCHEMA_PAUSE = 10.0
# Seconds between two looks at what there is to do, for the metrics.
_OBSERVE_PAUSE = 1.0


class Runner:
    """One process's runner; any number may run on one database, and one of them leads.

    `extensions` go on beside the runner's own loops for as long as it leads; one of them runs the entries `in_pods`.
    """

    def __init__(
        self,
        *,
        settings: RunnerSettings,
        registry: CronRegistry,
        recorder: RunRecorder | None = None,
        extensions: Sequence[LeaderExtension] = (),
        in_pods: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._entry_settings = read_entry_settings(os.environ, registry)
        self._in_process = _in_process_entries(registry, in_pods)
        self._recorder = recorder or RunRecorder()
        self._extensions = extensions
        self._url: URL = parse_url(settings.database_url.get_secret_value())
        self._stopping = asyncio.Event()
        self._told = Readiness()
        self.leading = asyncio.Event()
        self.pulse = Pulse()
        self.reconciler_pulse = Pulse()

    def stop(self) -> None:
        """Ask the runner to drain and end; `run` returns when it has."""
        self._stopping.set()

    async def run(self) -> None:
        """Stand for leader and lead, again and again, until told to stop."""
        # A leader that stands still inside a transaction must not hold its successor up with what it has locked.
        engine = create_engine(
            self._url,
            pool_size=self._settings.runner_pool_size,
            application_name="cronplane-runner",
            patience=self._settings.lease_duration,
        )
        try:
            async with _going(self._beat()):
                while not self._stopping.is_set():
                    await self._serve_term(engine)
        finally:
            await engine.dispose()

    async def _beat(self) -> None:
        while True:
            self.pulse.beat()
            await asyncio.sleep(_BEAT_PAUSE)

    async def _serve_term(self, engine: AsyncEngine) -> None:
        [failure] = await asyncio.gather(self._lead(engine), return_exceptions=True)
        self.leading.clear()
        self._recorder.term_ended()
        match failure:
            case None:
                return
            case LeaseLostError() | SchemaUnfitError():
                self._recorder.stepped_down(reason=str(failure))
            case DatabaseUnavailableError():
                self._recorder.database_away(doing="leading", error=failure)
                await self._pause(_STAND_PAUSE)
            case Exception():
                # Crons must go on firing after a defect of ours; the traceback is in the log.
                self._recorder.term_failed(error=failure)
                await self._pause(_STAND_PAUSE)
            case _:
                raise failure

    async def _lead(self, engine: AsyncEngine) -> None:
        lease = await self._stand(engine)
        if lease is None:
            return
        self._recorder.became_leader(holder=lease.holder, epoch=lease.epoch)
        term = Term(
            engine=engine,
            url=self._url,
            lease=lease,
            settings=self._settings,
            registry=self._registry,
            entry_settings=self._entry_settings,
            in_process=self._in_process,
            recorder=self._recorder,
            extensions=self._extensions,
            reconciler_pulse=self.reconciler_pulse,
        )
        await term.serve(leading=self.leading, stopping=self._stopping)

    async def _stand(self, engine: AsyncEngine) -> Lease | None:
        holder = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        while not self._stopping.is_set():
            async with transaction(engine) as connection:
                readiness = await find_readiness(connection, entries=self._registry)
                lease = None
                if readiness.obstacle is None:
                    duration = self._settings.lease_duration
                    lease = await leases.acquire(connection, holder=holder, duration=duration)
                    self._recorder.leader_seen(await leases.read(connection))
            self._tell(readiness)
            if lease is not None:
                return lease
            await self._pause(_STANDBY_PAUSE if readiness.obstacle is None else _STAND_PAUSE)
        return None

    def _tell(self, readiness: Readiness) -> None:
        """Record what has changed of it, and not each second the same."""
        if readiness == self._told:
            return
        self._told = readiness
        if readiness.obstacle is not None:
            self._recorder.waiting(obstacle=readiness.obstacle)
        elif readiness.notice is not None:
            self._recorder.schema_is_newer(notice=readiness.notice)

    async def _pause(self, seconds: float) -> None:
        await any_set_or_elapsed(self._stopping, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What a leader is made of."""

    claimer: Claimer
    reconciler: Reconciler
    dispatcher: Dispatcher
    reaper: Reaper
    pool: WorkerPool
    store: CronJobStore
    scheduler: AsyncIOScheduler


class Term:
    """The time of one leader, from its lease to the end of it."""

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        url: URL,
        lease: Lease,
        settings: RunnerSettings,
        registry: CronRegistry,
        entry_settings: EntrySettings,
        in_process: Sequence[str],
        recorder: RunRecorder,
        extensions: Sequence[LeaderExtension],
        reconciler_pulse: Pulse,
    ) -> None:
        self._engine = engine
        self._url = url
        self._lease = lease
        self._settings = settings
        self._registry = registry
        self._entry_settings = entry_settings
        self._in_process = in_process
        self._recorder = recorder
        self._signer = token_signer(settings)
        self._clock = DatabaseClock()
        self._crons_changed = ChangeSignal()
        self._runs_changed = ChangeSignal()
        self._context = TermContext(
            engine=engine,
            lease=lease,
            recorder=recorder,
            clock=self._clock,
            crons_changed=self._crons_changed,
            runs_changed=self._runs_changed,
        )
        self._extensions = extensions
        self._reconciler_pulse = reconciler_pulse
        self._looks = -1

    async def serve(self, *, leading: asyncio.Event, stopping: asyncio.Event) -> None:
        """Lead until `stopping`, then drain and give the lease back.

        Raises:
            LeaseLostError: somebody else leads; whatever was running here has been stopped and is theirs to record.
            DatabaseUnavailableError: PostgreSQL went away before the term had begun.

        """
        await self._clock.measure(self._engine)
        parts = self._assemble()
        try:
            await self._lead(parts, leading=leading, stopping=stopping)
        finally:
            if parts.scheduler.running:
                parts.scheduler.shutdown(wait=False)
            await parts.pool.stop()
            await self._release()

    async def _lead(self, parts: _Parts, *, leading: asyncio.Event, stopping: asyncio.Event) -> None:
        async with _going(self._renew(), parts.dispatcher.finish_runs()):
            await self._take_over(parts)
            parts.scheduler.start()
            async with _going(*self._loops(parts)):
                leading.set()
                await stopping.wait()
                await self._shut_gate(parts)
            parts.scheduler.shutdown(wait=False)
            await self._drain(parts)

    async def _shut_gate(self, parts: _Parts) -> None:
        """Begin nothing more; what passes the gate meanwhile is handed back or ended with the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GATE_TIMEOUT):
                await parts.dispatcher.shut_gate()

    async def _release(self) -> None:
        """Let a successor in at once; by now nothing of this term runs any more."""
        try:
            async with transaction(self._engine) as connection:
                await leases.release(connection, lease=self._lease)
                failpoints.reach(Failpoint.LEASE_RELEASE)
        except DatabaseUnavailableError as error:
            self._recorder.database_away(doing="releasing the lease", error=error)

    def _assemble(self) -> _Parts:
        settled = asyncio.Lock()
        store = CronJobStore(clock=self._clock, batch=CLAIM_BATCH)
        dispatcher = Dispatcher(
            engine=self._engine,
            lease=self._lease,
            entrypoints=self._in_process,
            recorder=self._recorder,
            signer=self._signer,
            callback_entrypoints={str(name) for name, spec in self._registry.items() if spec.completes_by_callback},
        )
        claimer = Claimer(
            engine=self._engine,
            lease=self._lease,
            settled=settled,
            recorder=self._recorder,
            on_queued=partial(self._on_queued, dispatcher),
            on_outdated=lambda cron_ids: self._on_outdated(reconciler, cron_ids),
        )
        scheduler = _scheduler(store, claimer)
        reconciler = Reconciler(
            engine=self._engine,
            lease=self._lease,
            settled=settled,
            store=store,
            executor=claimer.executor,
            clock=self._clock,
            recorder=self._recorder,
        )
        pool = self._worker_pool(dispatcher)
        dispatcher.on_cancel(pool.cancel)
        return _Parts(
            claimer=claimer,
            reconciler=reconciler,
            dispatcher=dispatcher,
            reaper=Reaper(engine=self._engine, lease=self._lease, recorder=self._recorder, holds=dispatcher.holds),
            pool=pool,
            store=store,
            scheduler=scheduler,
        )

    def _on_queued(self, dispatcher: Dispatcher, runs: Sequence[QueuedRun]) -> None:
        dispatcher.enqueue(runs)
        self._context.runs_claimed.set()

    def _on_outdated(self, reconciler: Reconciler, cron_ids: Sequence[UUID]) -> None:
        reconciler.doubt(cron_ids)
        self._crons_changed.set()

    def _worker_pool(self, dispatcher: Dispatcher) -> WorkerPool:
        return WorkerPool(
            workers=self._settings.workers,
            max_workers=self._settings.max_workers,
            memory=self._settings.worker_memory,
            real_seconds=self._clock.real_seconds,
            on_outcomes=dispatcher.on_outcomes,
            on_appetite=dispatcher.on_appetite,
            settings=self._entry_settings,
        )

    async def _take_over(self, parts: _Parts) -> None:
        """Bring to an end what the leader before left open, and take up what it left queued or owed."""
        async with asyncio.TaskGroup() as group:
            group.create_task(parts.pool.start())
            await parts.reaper.end_orphans()
            await parts.reconciler.compare_all()
        await parts.dispatcher.sweep()

    def _loops(self, parts: _Parts) -> Sequence[Coroutine[None, None, None]]:
        listener = ChangeListener(
            url=self._url,
            callbacks={CRONS_CHANNEL: self._crons_changed.set, RUNS_CHANNEL: self._runs_changed.set},
            recorder=self._recorder,
        )
        resync = self._settings.resync_interval.total_seconds()
        comparison = self._settings.comparison_interval.total_seconds()
        scan_interval = self._settings.scan_interval.total_seconds()
        return (
            listener.run(),
            parts.claimer.run(),
            parts.dispatcher.start_runs(parts.pool),
            self._repeat(partial(self._resync, parts), on=self._crons_changed.subscribe(), every=resync),
            self._repeat(parts.dispatcher.sweep, on=self._runs_changed.subscribe(), every=resync),
            self._repeat(partial(self._compare, parts), on=asyncio.Event(), every=comparison),
            self._repeat(parts.reaper.reap, on=asyncio.Event(), every=self._clock.real_seconds(REAP_INTERVAL)),
            self._repeat(self._scan, on=asyncio.Event(), every=scan_interval),
            self._repeat(self._heed_schema, on=asyncio.Event(), every=_SCHEMA_PAUSE),
            self._observe(parts),
            *(loop for extension in self._extensions for loop in extension.loops(self._context)),
        )

    async def _repeat(self, action: Callable[[], Awaitable[None]], *, on: asyncio.Event, every: float) -> None:
        """Act on each signal, and in any case every so many seconds; an outage of PostgreSQL only puts it off."""
        while True:
            await any_set_or_elapsed(on, seconds=every)
            on.clear()
            try:
                await action()
            except DatabaseUnavailableError as error:
                self._recorder.database_away(doing="reading what changed", error=error)
                await asyncio.sleep(every)

    async def _renew(self) -> None:
        duration = self._settings.lease_duration
        while True:
            await asyncio.sleep(self._clock.real_seconds(duration.total_seconds() / 3))
            try:
                async with transaction(self._engine) as connection:
                    await leases.renew(connection, lease=self._lease, duration=duration)
                    failpoints.reach(Failpoint.LEASE_RENEWAL)
                    self._recorder.leader_seen(await leases.read(connection))
            except DatabaseUnavailableError as error:
                self._recorder.database_away(doing="renewing the lease", error=error)

    async def _resync(self, parts: _Parts) -> None:
        await self._clock.measure(self._engine)
        await parts.reconciler.read_changes()
        self._reconciler_pulse.beat()
        self._watch(parts)
        parts.scheduler.wakeup()

    def _watch(self, parts: _Parts) -> None:
        # Each resync wakes APScheduler, so by the next one it must have looked, or it is dead without saying so.
        if parts.store.looks == self._looks:
            raise RunnerError("APScheduler has stopped looking for due crons; the runner starts it again")
        self._looks = parts.store.looks

    async def _compare(self, parts: _Parts) -> None:
        await parts.reconciler.compare_all()
        async with transaction(self._engine) as connection:
            await idempotency_repository.delete_expired(connection, limit=_EXPIRED_KEYS_BATCH)

    async def _heed_schema(self) -> None:
        async with transaction(self._engine) as connection:
            readiness = await find_readiness(connection, entries=self._registry)
        if readiness.obstacle is not None:
            raise SchemaUnfitError(readiness.obstacle)

    async def _scan(self) -> None:
        try:
            report = await scan(self._url)
        except ScanError as error:
            self._recorder.scan_failed(reason=str(error))
        else:
            self._recorder.scanned(report)

    async def _observe(self, parts: _Parts) -> None:
        """Tell how much there is to do, also while PostgreSQL is away."""
        while True:
            self._recorder.observed(
                Load(
                    scheduled=len(parts.store),
                    queued=parts.dispatcher.queued,
                    workers=parts.pool.alive,
                    busy=parts.pool.busy,
                    next_fire_lag=self._next_fire_lag(parts),
                    next_fire=_next_fire(parts),
                )
            )
            await asyncio.sleep(_OBSERVE_PAUSE)

    def _next_fire_lag(self, parts: _Parts) -> float:
        now = self._clock.now()
        return max((now - (_next_fire(parts) or now)).total_seconds(), 0.0)

    async def _drain(self, parts: _Parts) -> None:
        """Let running bodies end, and give back what has not begun, before the lease goes."""
        grace = self._settings.drain_grace.total_seconds()
        unstarted = await parts.pool.drain(grace=grace)
        try:
            async with asyncio.timeout(_RECORD_TIMEOUT):
                if unstarted:
                    await parts.dispatcher.hand_back(unstarted)
                await parts.dispatcher.wait_until_idle()
        except TimeoutError:
            # PostgreSQL is away, as has been told; the next leader ends what is not recorded.
            return


def _next_fire(parts: _Parts) -> datetime | None:
    """Give the earliest fire that is not claimed (aware, UTC), or None if there is none."""
    return min(filter(None, (parts.claimer.executor.earliest_due(), parts.store.next_fire())), default=None)


def _scheduler(store: CronJobStore, claimer: Claimer) -> AsyncIOScheduler:
    """Make APScheduler of our parts. What it would do about late and overlapping jobs is the claim's business."""
    return AsyncIOScheduler(
        timezone=UTC,
        jobstores={JOB_STORE: store},
        executors={EXECUTOR: claimer.executor},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )


def _in_process_entries(registry: CronRegistry, in_pods: Collection[str]) -> list[str]:
    """Name the entries that workers run; one of containers that nobody runs in pods is among them, and says so."""
    modes = read_execution_modes(os.environ, registry)
    speechless = {str(name) for name, spec in registry.items() if spec.container is not None} - set(in_pods)
    return [name for name, mode in modes.items() if mode is ExecutionMode.IN_PROCESS or name in speechless]


@asynccontextmanager
async def _going(*loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Keep loops going for as long as the block lasts; if one of them fails, so does the block, with its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(loop) for loop in loops]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise _first(failures) from failures


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
