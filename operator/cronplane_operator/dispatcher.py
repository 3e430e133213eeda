"""Takes queued runs through the start gate into the workers, and their outcomes back into the table.

Both ways go in batches, a transaction each. A run passes the gate only when a worker is about to be free for it, so
that what is marked running runs. It launches nothing that the gate did not let through, and judges no outcome.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import failpoints, run_transitions
from cronplane_core import lease as leases
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.lease import Lease
from cronplane_core.run_states import AttemptEnd, Decision, EndedAttempt, after_attempt, after_completion
from cronplane_core.run_transitions import FinishedAttempt, FinishedRun, QueuedRun, StartedAttempt, Transition
from cronplane_core.signed_tokens import TokenSigner, token_hash
from cronplane_core.tables import Execution, RunStatus
from cronplane_operator.fair_queue import FairQueue
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.worker_pool import WorkerPool
from cronplane_operator.worker_protocol import Outcome, Task

_START_BATCH = 1000
_FINISH_BATCH = 1000
_SWEEP_BATCH = 5000
# Results that come within this many seconds of each other are written together: few, so that a lone one is not late.
_GATHER = 0.005
_UNAVAILABLE_PAUSE = 0.5
# What an attempt may take beyond its timeout before others may call it lost.
_LEASE_MARGIN = timedelta(seconds=30)


class Dispatcher:
    """Dispatches for one lease. `entrypoints` are the entries that run in this runner's workers.

    For the `callback_entrypoints` among them `signer` makes tokens by which somebody else may tell the end of a run.
    """

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        lease: Lease,
        entrypoints: Sequence[str],
        recorder: RunRecorder,
        signer: TokenSigner | None,
        callback_entrypoints: Collection[str],
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._entrypoints = entrypoints
        self._recorder = recorder
        self._signer = signer
        self._callback_entrypoints = callback_entrypoints
        self._on_cancel: Callable[[Collection[UUID]], None] = _nobody_to_cancel
        self._queue: FairQueue[UUID] = FairQueue()
        self._known: set[UUID] = set()
        self._started: dict[UUID, StartedAttempt] = {}
        self._outcomes: list[Outcome] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._gate = asyncio.Lock()
        self._is_gate_shut = False
        self._startable = asyncio.Event()
        self._finishable = asyncio.Event()

    def on_cancel(self, cancel: Callable[[Collection[UUID]], None]) -> None:
        """Have attempts that somebody wants to end told to `cancel`, by their nonces, until their end is recorded."""
        self._on_cancel = cancel

    def holds(self, nonce: UUID) -> bool:
        """Tell whether an attempt was started here and its end is not recorded yet."""
        return nonce in self._started

    @property
    def queued(self) -> int:
        """How many runs wait here for a worker."""
        return len(self._queue)

    def enqueue(self, runs: Iterable[QueuedRun]) -> None:
        """Take in queued runs of the entries that run here; one that is here already is not taken twice."""
        for run_id, organization_id, entrypoint in runs:
            if run_id not in self._known and entrypoint in self._entrypoints:
                self._known.add(run_id)
                self._queue.put(organization_id, run_id)
        self._startable.set()

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Take in what the workers report."""
        self._outcomes.extend(outcomes)
        self._finishable.set()

    def on_appetite(self) -> None:
        """Learn that the workers want more."""
        self._startable.set()

    async def sweep(self) -> None:
        """Take in queued runs that nobody told of, and end those that are not wanted any more.

        An organization that has much waiting here already gets no more, so that others' are found beside it.
        """
        await self._stop_cancelled()
        sated = self._queue.owners_with(_SWEEP_BATCH)
        async with transaction(self._engine) as connection:
            now = await leases.check(connection, lease=self._lease)
            ended = [] if sated else await self._end_unwanted(connection, now)
            queued = await run_transitions.queued_runs(
                connection,
                entrypoints=self._entrypoints,
                now=now,
                limit=_SWEEP_BATCH + len(self._known) - sum(sated.values()),
                besides=sated,
            )
        self._recorder.finished(ended)
        self.enqueue(queued)

    async def _end_unwanted(self, connection: AsyncConnection, now: datetime) -> list[FinishedRun]:
        ended = await run_transitions.cancel_deleted(connection, epoch=self._lease.epoch, now=now)
        return ended + await run_transitions.skip_not_granted(connection, epoch=self._lease.epoch, now=now)

    async def _stop_cancelled(self) -> None:
        async with transaction(self._engine) as connection:
            unwanted = await run_transitions.cancel_requested(connection, epoch=self._lease.epoch)
        self._on_cancel(unwanted)

    async def start_runs(self, pool: WorkerPool) -> None:
        """Start runs as the pool's workers come free, until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        while True:
            await self._startable.wait()
            self._startable.clear()
            async with self._gate:
                while nonces := self._next_batch(pool.appetite):
                    await self._let_through(nonces, pool)

    async def shut_gate(self) -> None:
        """Let no more runs through; returns when those on their way have got to their workers."""
        self._is_gate_shut = True
        await self._gate.acquire()

    async def _let_through(self, nonces: dict[UUID, UUID], pool: WorkerPool) -> None:
        attempts, now = await self._start(nonces)
        failpoints.reach(Failpoint.START_COMMITTED)
        self._recorder.started(attempts)
        self._known.difference_update(nonces)
        self._started.update((attempt.nonce, attempt) for attempt in attempts)
        self._idle.clear()
        pool.submit([_task(attempt, self._callback_token(attempt), now=now) for attempt in attempts])

    def _next_batch(self, appetite: int) -> dict[UUID, UUID]:
        size = 0 if self._is_gate_shut else min(appetite, len(self._queue), _START_BATCH)
        return {run_id: uuid4() for run_id in self._queue.take(size)}

    async def _start(self, nonces: dict[UUID, UUID]) -> tuple[list[StartedAttempt], datetime]:
        """Pass the gate; after a lost answer, ask first which of them did: their bodies have not been entered.

        Gives the time by the database, too. What is past its deadline when the answer comes at last is left to the
        reaper.
        """
        passed: list[StartedAttempt] = []
        is_answer_lost = False
        while True:
            try:
                async with transaction(self._engine) as connection:
                    now = await leases.check(connection, lease=self._lease)
                    if is_answer_lost:
                        passed = await run_transitions.read_started(connection, nonces=nonces)
                    started = await run_transitions.start(
                        connection,
                        nonces=nonces,
                        epoch=self._lease.epoch,
                        location=self._lease.holder,
                        execution=Execution.IN_PROCESS,
                        entrypoints=self._entrypoints,
                        now=now,
                        lease=_LEASE_MARGIN,
                    )
                    await self._keep_callbacks(connection, started)
                    failpoints.reach(Failpoint.START_COMMIT)
                    return [attempt for attempt in passed if attempt.deadline > now] + started, now
            except DatabaseUnavailableError as error:
                is_answer_lost = True
                self._recorder.database_away(doing="starting runs", error=error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE)

    async def _keep_callbacks(self, connection: AsyncConnection, attempts: Sequence[StartedAttempt]) -> None:
        tokens = {(attempt.run.id, attempt.run.attempt): self._callback_token(attempt) for attempt in attempts}
        hashes = {key: token_hash(token) for key, token in tokens.items() if token is not None}
        if hashes:
            await run_transitions.keep_callbacks(connection, hashes=hashes)

    def _callback_token(self, attempt: StartedAttempt) -> str | None:
        """Make the token by which somebody else may tell the attempt's end, the same each time it is asked for."""
        if self._signer is None or attempt.entrypoint not in self._callback_entrypoints:
            return None
        return self._signer.sign(attempt.callback_claims())

    async def finish_runs(self) -> None:
        """Write outcomes as they come, until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        while True:
            await self._finishable.wait()
            await asyncio.sleep(_GATHER)
            self._finishable.clear()
            while self._outcomes:
                batch, self._outcomes = self._outcomes[:_FINISH_BATCH], self._outcomes[_FINISH_BATCH:]
                await self._finish([_finished(outcome) for outcome in batch])
                self._settle(outcome.attempt_id for outcome in batch)

    def _settle(self, nonces: Iterable[UUID]) -> None:
        for nonce in nonces:
            del self._started[nonce]
        if not self._started:
            self._idle.set()

    async def hand_back(self, tasks: Sequence[Task]) -> None:
        """Queue again what the workers never began, however long PostgreSQL is away."""
        nonces = {task.run_id: task.attempt_id for task in tasks}
        while True:
            try:
                async with transaction(self._engine) as connection:
                    await leases.check(connection, lease=self._lease)
                    await run_transitions.hand_back(connection, nonces=nonces, epoch=self._lease.epoch)
                    failpoints.reach(Failpoint.HAND_BACK_COMMIT)
            except DatabaseUnavailableError as error:
                self._recorder.database_away(doing="handing runs back", error=error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE)
            else:
                break
        self._recorder.handed_back(attempts=len(nonces))
        self._settle(nonces.values())

    async def wait_until_idle(self) -> None:
        """Return when every attempt that was started here has been recorded."""
        await self._idle.wait()

    async def _finish(self, attempts: Sequence[FinishedAttempt]) -> None:
        while True:
            try:
                async with transaction(self._engine) as connection:
                    now = await leases.check(connection, lease=self._lease)
                    decided = await self._move(connection, attempts, now)
                    failpoints.reach(Failpoint.FINISH_COMMIT)
            except DatabaseUnavailableError as error:
                self._recorder.database_away(doing="recording outcomes", error=error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE)
            except DBAPIError as error:
                return await self._finish_apart(attempts, error)
            else:
                failpoints.reach(Failpoint.FINISH_COMMITTED)
                return self._record(attempts, decided, now)

    async def _move(
        self, connection: AsyncConnection, attempts: Sequence[FinishedAttempt], now: datetime
    ) -> dict[UUID, Decision]:
        """Decide and carry out: what is complete at once, everything else by the run as it is under its lock."""
        complete = [
            Transition(run=self._started[attempt.nonce].run, decision=after_completion(attempt.ended), attempt=attempt)
            for attempt in attempts
            if attempt.ended.end is AttemptEnd.COMPLETED
        ]
        decided = await self._carry_out(connection, complete, now)
        left = {attempt.nonce: attempt for attempt in attempts if attempt.nonce not in decided}
        if not left:
            return decided
        run_ids = [self._started[nonce].run.id for nonce in left]
        judged = [
            Transition(run=found.run, decision=after_attempt(found.run, attempt.ended, now=now), attempt=attempt)
            for found in await run_transitions.lock_open_runs(connection, run_ids=run_ids)
            if found.run.status is RunStatus.RUNNING and found.nonce and (attempt := left.get(found.nonce))
        ]
        return decided | await self._carry_out(connection, judged, now)

    async def _carry_out(
        self, connection: AsyncConnection, transitions: Sequence[Transition], now: datetime
    ) -> dict[UUID, Decision]:
        if not transitions:
            return {}
        made = await run_transitions.move(connection, transitions=transitions, epoch=self._lease.epoch, now=now)
        return {transition.attempt.nonce: transition.decision for transition in made if transition.attempt is not None}

    async def _finish_apart(self, attempts: Sequence[FinishedAttempt], error: DBAPIError) -> None:
        """Find the one outcome that PostgreSQL does not take, so that its neighbours are written all the same."""
        if len(attempts) > 1:
            half = len(attempts) // 2
            await self._finish(attempts[:half])
            await self._finish(attempts[half:])
            return
        run_id = str(self._started[attempts[0].nonce].run.id)
        self._recorder.result_refused(run_id=run_id, error=type(error.orig).__name__)
        await self._finish([_without_values(attempts[0])])

    def _record(self, attempts: Sequence[FinishedAttempt], decided: Mapping[UUID, Decision], now: datetime) -> None:
        counted = [attempt for attempt in attempts if attempt.nonce in decided]
        self._recorder.attempts_ended(attempt.ended.end.value for attempt in counted)
        finished: list[FinishedRun] = []
        for attempt in counted:
            started, decision = self._started[attempt.nonce], decided[attempt.nonce]
            if (run := run_transitions.finished_run(started, decision, now=now)) is not None:
                finished.append(run)
            elif decision.status is RunStatus.QUEUED:
                self._recorder.retry_scheduled(run=started.run, decision=decision)
            else:
                self._recorder.handed_on(run=started.run)
        self._recorder.finished(finished)
        if len(counted) < len(attempts):
            self._recorder.superseded(attempts=len(attempts) - len(counted))


def _nobody_to_cancel(_: Collection[UUID]) -> None:
    """Before there are workers, nothing runs in them."""


def _task(attempt: StartedAttempt, callback_token: str | None, *, now: datetime) -> Task:
    return Task(
        attempt_id=attempt.nonce,
        entrypoint=attempt.entrypoint,
        payload_json=attempt.payload_json,
        cron_id=attempt.cron_id,
        cron_name=attempt.cron_name,
        organization_id=attempt.organization_id,
        run_id=attempt.run.id,
        trigger=attempt.trigger_kind.value,
        attempt=attempt.run.attempt,
        scheduled_for=attempt.scheduled_for,
        deadline=attempt.deadline,
        timeout=(attempt.deadline - now).total_seconds(),
        callback_token=callback_token,
        callback_deadline=None if callback_token is None else attempt.run_deadline,
    )


_ENDS = {end.value: end for end in AttemptEnd}


def _finished(outcome: Outcome) -> FinishedAttempt:
    return FinishedAttempt(
        nonce=outcome.attempt_id,
        ended=EndedAttempt(
            end=_ENDS[outcome.status],
            reason=outcome.reason,
            message=outcome.message,
            may_retry=outcome.may_retry,
            retry_after=None if outcome.retry_after is None else timedelta(seconds=outcome.retry_after),
        ),
        result_json=outcome.result_json,
        error_json=None if outcome.error is None else orjson.dumps(outcome.error).decode(),
        output=outcome.output,
    )


def _without_values(attempt: FinishedAttempt) -> FinishedAttempt:
    return FinishedAttempt(
        nonce=attempt.nonce,
        ended=EndedAttempt(
            end=AttemptEnd.ERROR,
            reason="ResultInvalid",
            message="PostgreSQL did not take what the run returned or printed.",
            may_retry=False,
        ),
        output="",
    )
