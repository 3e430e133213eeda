"""Brings on the runs that nobody else brings on any more: those a dead leader was running, and those past their time.

It reads them under their locks and lets `run_states` decide; it looks at no worker and starts nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import lease as leases
from cronplane_core import run_states, run_transitions
from cronplane_core.database import transaction
from cronplane_core.lease import Lease
from cronplane_core.run_states import AttemptEnd, Decision, EndedAttempt
from cronplane_core.run_transitions import FinishedAttempt, OpenRun, Transition
from cronplane_core.tables import RunStatus
from cronplane_operator.run_recorder import RunRecorder

REAP_INTERVAL = 5.0
_BATCH = 1000
_RUNNER_GONE = EndedAttempt(
    end=AttemptEnd.LOST,
    reason="RunnerGone",
    message="The runner that ran it is gone; how far it got is not known.",
)
_LEASE_EXPIRED = EndedAttempt(
    end=AttemptEnd.LOST,
    reason="HeartbeatsStopped",
    message="Nothing was heard of the attempt any more; how far it got is not known.",
)


class Reaper:
    """Reaps for one lease. `holds` tells whether an attempt, by its nonce, is in this runner's own hands."""

    def __init__(
        self, *, engine: AsyncEngine, lease: Lease, recorder: RunRecorder, holds: Callable[[UUID], bool]
    ) -> None:
        self._engine = engine
        self._lease = lease
        self._recorder = recorder
        self._holds = holds

    async def end_orphans(self) -> None:
        """End the attempts that were under way in workers of earlier leaders: these died with their runner.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        async with transaction(self._engine) as connection:
            now = await leases.check(connection, lease=self._lease)
            orphans = await run_transitions.lock_orphans(connection, epoch=self._lease.epoch)
            decided = [(orphan, _after(orphan, _RUNNER_GONE, now=now)) for orphan in orphans]
            made = await self._move(connection, decided, now=now)
        self._record(made, now=now)

    async def reap(self) -> None:
        """End what is past its deadline or its lease, until nothing of that kind is left.

        Raises:
            LeaseLostError: this process is not the leader any more; nothing was changed.

        """
        while await self._reap_batch() == _BATCH:
            pass

    async def _reap_batch(self) -> int:
        async with transaction(self._engine) as connection:
            now = await leases.check(connection, lease=self._lease)
            overdue = await run_transitions.lock_overdue(connection, now=now, limit=_BATCH)
            # What its worker has just told is on its way into the table.
            others = [found for found in overdue if found.nonce is None or not self._holds(found.nonce)]
            decided = [(found, _overdue(found, now=now)) for found in others]
            made = await self._move(connection, decided, now=now)
        self._record(made, now=now)
        return len(made)

    async def _move(
        self, connection: AsyncConnection, decided: Sequence[tuple[OpenRun, Transition]], *, now: datetime
    ) -> list[tuple[OpenRun, Transition]]:
        transitions = [transition for _, transition in decided]
        if not transitions:
            return []
        made = set(await run_transitions.move(connection, transitions=transitions, epoch=self._lease.epoch, now=now))
        return [(open_run, transition) for open_run, transition in decided if transition in made]

    def _record(self, made: Iterable[tuple[OpenRun, Transition]], *, now: datetime) -> None:
        for open_run, transition in made:
            if transition.attempt is not None:
                self._recorder.attempts_ended([transition.attempt.ended.end.value])
            finished = run_transitions.finished_run(open_run, transition.decision, now=now)
            if finished is not None:
                self._recorder.finished([finished])
            else:
                self._recorder.retry_scheduled(run=open_run.run, decision=transition.decision)


def _after(open_run: OpenRun, ended: EndedAttempt, *, now: datetime) -> Transition:
    return _transition(open_run, run_states.after_attempt(open_run.run, ended, now=now), ended)


def _overdue(open_run: OpenRun, *, now: datetime) -> Transition:
    run = open_run.run
    if run.status is RunStatus.RUNNING:
        is_late = open_run.attempt_deadline is not None and open_run.attempt_deadline <= now
        return _after(open_run, run_states.ATTEMPT_TIMEOUT if is_late else _LEASE_EXPIRED, now=now)
    decision = run_states.cancelled(run) if run.is_cancel_requested else None
    decision = decision or run_states.after_deadline(run)
    end = AttemptEnd.CANCELLED if decision.status is RunStatus.CANCELLED else AttemptEnd.TIMED_OUT
    return _transition(open_run, decision, EndedAttempt(end=end, reason=decision.reason, message=decision.message))


def _transition(open_run: OpenRun, decision: Decision, ended: EndedAttempt) -> Transition:
    attempt = None if open_run.nonce is None else FinishedAttempt(nonce=open_run.nonce, ended=ended)
    return Transition(run=open_run.run, decision=decision, attempt=attempt)
