"""Takes queued runs through the start gate into the workers, and their outcomes back into the table.

Both ways go in batches, a transaction each. A run passes the gate only when a worker is about to be free for it, so
that what is marked running runs. It launches nothing that the gate did not let through, and judges no outcome.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import orjson
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import lease as leases
from cronplane_core import run_transitions
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.lease import Lease
from cronplane_core.run_transitions import FinishedAttempt, FinishedRun, StartedAttempt
from cronplane_core.tables import RunStatus
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
    """Dispatches for one lease. `entrypoints` are the entries that run in this runner's workers."""

    def __init__(
        self,
        *,
        engine: AsyncEngine,
        lease: Lease,
        entrypoints: Sequence[str],
        recorder: RunRecorder,
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._entrypoints = entrypoints
        self._recorder = recorder
        self._queue: deque[UUID] = deque()
        self._known: set[UUID] = set()
        self._started: dict[UUID, StartedAttempt] = {}
        self._outcomes: list[Outcome] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self._startable = asyncio.Event()
        self._finishable = asyncio.Event()

    def enqueue(self, run_ids: Iterable[UUID]) -> None:
        """Take in queued runs; one that is here already is not taken twice."""
        for run_id in run_ids:
            if run_id not in self._known:
                self._known.add(run_id)
                self._queue.append(run_id)
        self._startable.set()

    def on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Take in what the workers report."""
        self._outcomes.extend(outcomes)
        self._finishable.set()

    def on_appetite(self) -> None:
        """Learn that the workers want more."""
        self._startable.set()

    async def sweep(self) -> None:
        """Take in queued runs that nobody told of, and end those whose cron is gone or whose entry was taken back."""
        if len(self._queue) >= _SWEEP_BATCH:
            return
        async with transaction(self._engine) as connection:
            now = await leases.check(connection, lease=self._lease)
            ended = await run_transitions.cancel_deleted(connection, epoch=self._lease.epoch, now=now)
            ended += await run_transitions.skip_not_granted(connection, epoch=self._lease.epoch, now=now)
            queued = await run_transitions.queued_runs(
                connection, entrypoints=self._entrypoints, limit=_SWEEP_BATCH + len(self._known)
            )
        self._recorder.finished(ended)
        self.enqueue(queued)

    async def start_runs(self, pool: WorkerPool) -> None:
        """Start runs as the pool's workers come free, until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        while True:
            await self._startable.wait()
            self._startable.clear()
            while nonces := self._next_batch(pool.appetite):
                attempts = await self._start(nonces)
                self._known.difference_update(nonces)
                self._started.update((attempt.nonce, attempt) for attempt in attempts)
                self._idle.clear()
                pool.submit([_task(attempt) for attempt in attempts])

    def _next_batch(self, appetite: int) -> dict[UUID, UUID]:
        size = min(appetite, len(self._queue), _START_BATCH)
        return {self._queue.popleft(): uuid4() for _ in range(size)}

    async def _start(self, nonces: dict[UUID, UUID]) -> list[StartedAttempt]:
        """Pass the gate; after a lost answer, ask first which of them did: their bodies have not been entered."""
        passed: list[StartedAttempt] = []
        is_answer_lost = False
        while True:
            try:
                async with transaction(self._engine) as connection:
                    now = await leases.check(connection, lease=self._lease)
                    if is_answer_lost:
                        passed = await run_transitions.read_started(connection, nonces=nonces)
                    return passed + await run_transitions.start(
                        connection,
                        nonces=nonces,
                        epoch=self._lease.epoch,
                        location=self._lease.holder,
                        now=now,
                        margin=_LEASE_MARGIN,
                    )
            except DatabaseUnavailableError as error:
                is_answer_lost = True
                self._recorder.database_away(doing="starting runs", error=error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE)

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
                await self._finish([_finished(self._started[outcome.attempt_id], outcome) for outcome in batch])
                self._settle(outcome.attempt_id for outcome in batch)

    def _settle(self, nonces: Iterable[UUID]) -> None:
        for nonce in nonces:
            del self._started[nonce]
        if not self._started:
            self._idle.set()

    async def hand_back(self, tasks: Sequence[Task]) -> None:
        """Queue again what the workers never began."""
        nonces = [task.attempt_id for task in tasks]
        async with transaction(self._engine) as connection:
            await leases.check(connection, lease=self._lease)
            await run_transitions.hand_back(connection, nonces=nonces, epoch=self._lease.epoch)
        self._settle(nonces)

    async def wait_until_idle(self) -> None:
        """Return when every attempt that was started here has been recorded."""
        await self._idle.wait()

    async def _finish(self, attempts: Sequence[FinishedAttempt]) -> None:
        while True:
            try:
                async with transaction(self._engine) as connection:
                    now = await leases.check(connection, lease=self._lease)
                    ended = await run_transitions.finish(
                        connection, attempts=attempts, epoch=self._lease.epoch, now=now
                    )
            except DatabaseUnavailableError as error:
                self._recorder.database_away(doing="recording outcomes", error=error)
                await asyncio.sleep(_UNAVAILABLE_PAUSE)
            except DBAPIError as error:
                return await self._finish_apart(attempts, error)
            else:
                return self._record(attempts, ended, now)

    async def _finish_apart(self, attempts: Sequence[FinishedAttempt], error: DBAPIError) -> None:
        """Find the one outcome that PostgreSQL does not take, so that its neighbours are written all the same."""
        if len(attempts) > 1:
            half = len(attempts) // 2
            await self._finish(attempts[:half])
            await self._finish(attempts[half:])
            return
        self._recorder.result_refused(run_id=str(attempts[0].run_id), error=type(error.orig).__name__)
        await self._finish([_without_values(attempts[0])])

    def _record(self, attempts: Sequence[FinishedAttempt], ended: set[UUID], now: datetime) -> None:
        self._recorder.finished(
            [
                _finished_run(self._started[attempt.nonce], attempt, now)
                for attempt in attempts
                if attempt.run_id in ended
            ]
        )
        if len(ended) < len(attempts):
            self._recorder.superseded(attempts=len(attempts) - len(ended))


def _task(attempt: StartedAttempt) -> Task:
    return Task(
        attempt_id=attempt.nonce,
        entrypoint=attempt.entrypoint,
        payload_json=attempt.payload_json,
        cron_id=attempt.cron_id,
        cron_name=attempt.cron_name,
        organization_id=attempt.organization_id,
        run_id=attempt.run_id,
        trigger=attempt.trigger_kind.value,
        attempt=attempt.number,
        scheduled_for=attempt.scheduled_for,
        deadline=attempt.started_at + attempt.timeout,
        timeout=attempt.timeout.total_seconds(),
    )


def _finished(attempt: StartedAttempt, outcome: Outcome) -> FinishedAttempt:
    return FinishedAttempt(
        run_id=attempt.run_id,
        number=attempt.number,
        nonce=attempt.nonce,
        status=RunStatus(outcome.status),
        reason=outcome.reason,
        message=outcome.message,
        result_json=outcome.result_json,
        error_json=None if outcome.error is None else orjson.dumps(outcome.error).decode(),
        output=outcome.output,
    )


def _finished_run(started: StartedAttempt, attempt: FinishedAttempt, now: datetime) -> FinishedRun:
    return FinishedRun(
        id=attempt.run_id,
        organization_id=started.organization_id,
        cron_id=started.cron_id,
        cron_name=started.cron_name,
        scheduled_for=started.scheduled_for,
        status=attempt.status,
        reason=attempt.reason,
        started_at=started.started_at,
        finished_at=now,
    )


def _without_values(attempt: FinishedAttempt) -> FinishedAttempt:
    return replace(
        attempt,
        status=RunStatus.ERROR,
        reason="ResultInvalid",
        message="PostgreSQL did not take what the run returned or printed.",
        result_json=None,
        error_json=None,
        output="",
    )
