"""Writes what becomes of attempts in pods of which their own process tells nothing, as the leader.

What is decided comes from `run_states`; each change is one transaction, fenced by the lease.
"""

from datetime import timedelta
from uuid import UUID, uuid4

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import attempt_job_repository as attempt_jobs
from cronplane_core import failpoints, run_transitions
from cronplane_core import lease as leases
from cronplane_core.attempt_job_repository import AttemptJob, PendingAttempt
from cronplane_core.database import transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.run_states import EndedAttempt, after_attempt
from cronplane_core.run_transitions import FinishedAttempt, OpenRun, StartedAttempt, Transition
from cronplane_core.tables import Execution, RunStatus
from cronplane_operator.job_manifest import job_name
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.worker_protocol import ErrorRecord

# Never waited for: the attempt ends in the transaction that begins it.
_LEASE = timedelta(seconds=60)
# Beyond the deadline of an attempt that nobody tells of: for its container to end, and for seeing that in its Job.
_OBSERVED_MARGIN = timedelta(seconds=25)


class _PayloadChangedError(Exception):
    """What was to begin is not what was looked at before."""


class PodAttemptRecord:
    """Writes for one term. Every method raises `LeaseLostError` if it is over; then nothing was changed."""

    def __init__(self, term: TermContext) -> None:
        self._term = term

    async def note(self, run_id: UUID, number: int, *, reason: str, message: str) -> None:
        """Say with a run what keeps its attempt from beginning."""
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            cron_id = await attempt_jobs.note(connection, run_id=run_id, number=number, reason=reason, message=message)
        if cron_id is not None:
            self._term.recorder.delayed(run_id=run_id, cron_id=cron_id, reason=reason)

    async def note_begun(self, run_id: UUID, number: int) -> None:
        """Say with a run that an attempt is under way of which something else was said before."""
        reason, message = "Started", "An attempt is under way."
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            cron_id = await attempt_jobs.note(connection, run_id=run_id, number=number, reason=reason, message=message)
        if cron_id is not None:
            self._term.recorder.delayed_no_more(run_id=run_id, cron_id=cron_id)

    async def miss(self, run_id: UUID, *, reason: str, message: str) -> None:
        """End as missed a run of which no attempt was begun."""
        term = self._term
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            missed = await run_transitions.miss(
                connection, run_id=run_id, reason=reason, message=message, epoch=term.lease.epoch, now=now
            )
        term.recorder.finished(missed)

    async def read_pending(self, run_id: UUID, number: int) -> PendingAttempt | None:
        """Read what an attempt is to do that has yet to begin; None if it cannot any more."""
        async with transaction(self._term.engine) as connection:
            return await attempt_jobs.read_pending(connection, run_id=run_id, number=number)

    async def begin(self, attempt: PendingAttempt) -> StartedAttempt | None:
        """Pass the start gate for an attempt whose body tells nothing of itself; None if it cannot any more, or not so.

        Its payload and entry are those that `attempt` says, or it does not begin.
        """
        try:
            async with transaction(self._term.engine) as connection:
                started = await self._start(connection, attempt)
                failpoints.reach(Failpoint.JOB_START_COMMIT)
        except _PayloadChangedError:
            return None
        failpoints.reach(Failpoint.JOB_START_COMMITTED)
        self._term.recorder.started(started)
        return started[0] if started else None

    async def _start(self, connection: AsyncConnection, attempt: PendingAttempt) -> list[StartedAttempt]:
        now = await leases.check(connection, lease=self._term.lease)
        started = await run_transitions.start(
            connection,
            nonces={attempt.run_id: uuid4()},
            epoch=self._term.lease.epoch,
            location=job_name(attempt.run_id, attempt.number),
            execution=Execution.POD,
            now=now,
            lease=_OBSERVED_MARGIN,
            number=attempt.number,
            entrypoints=[attempt.entrypoint],
            is_observed=True,
        )
        if any(each.payload_json != attempt.payload_json for each in started):
            raise _PayloadChangedError
        return started

    async def end_unbegun(
        self, run_id: UUID, number: int, ended: EndedAttempt, *, error: ErrorRecord | None = None
    ) -> bool:
        """Count an attempt that never passed the start gate as one that did, and ended so; False if it has by now.

        That shuts the gate, so that what may still come of the attempt's pod finds it shut.
        """
        term, nonce = self._term, uuid4()
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            begun = await run_transitions.start(
                connection,
                nonces={run_id: nonce},
                epoch=term.lease.epoch,
                location=job_name(run_id, number),
                execution=Execution.POD,
                now=now,
                lease=_LEASE,
                number=number,
            )
            error_json = None if error is None else orjson.dumps(error).decode()
            finished = FinishedAttempt(nonce=nonce, ended=ended, error_json=error_json)
            moved = await self._end(connection, run_id, finished)
        self._tell(moved, ended)
        return bool(begun)

    async def end_under_way(self, run_id: UUID, finished: FinishedAttempt) -> None:
        """End an attempt that passed the gate, unless its own process has told of its end by now."""
        async with transaction(self._term.engine) as connection:
            moved = await self._end(connection, run_id, finished)
        self._tell(moved, finished.ended)

    async def keep_log(self, job: AttemptJob, log: str) -> None:
        """Keep what a pod wrote that is about to be taken away."""
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            await attempt_jobs.keep_log(connection, job=job, log=log)

    async def settle(self, job: AttemptJob, log: str | None) -> None:
        """Note that nothing is left to do for a Job, and what its pod wrote."""
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            await attempt_jobs.settle(connection, job=job, log=log)

    async def forget(self, job: AttemptJob) -> None:
        """Let an attempt have another Job."""
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            await attempt_jobs.forget(connection, job=job)
        self._term.runs_changed.set()

    async def _end(
        self, connection: AsyncConnection, run_id: UUID, finished: FinishedAttempt
    ) -> list[tuple[OpenRun, Transition]]:
        term = self._term
        now = await leases.check(connection, lease=term.lease)
        moved: list[tuple[OpenRun, Transition]] = []
        for found in await run_transitions.lock_open_runs(connection, run_ids=[run_id]):
            if found.nonce != finished.nonce or found.run.status is not RunStatus.RUNNING:
                continue
            decision = after_attempt(found.run, finished.ended, now=now)
            transition = Transition(run=found.run, decision=decision, attempt=finished)
            if await run_transitions.move(connection, transitions=[transition], epoch=term.lease.epoch, now=now):
                moved.append((found, transition))
        return moved

    def _tell(self, moved: list[tuple[OpenRun, Transition]], ended: EndedAttempt) -> None:
        recorder = self._term.recorder
        for found, transition in moved:
            recorder.attempts_ended([ended.end.value])
            finished = run_transitions.finished_run(found, transition.decision, now=self._term.clock.now())
            if finished is not None:
                recorder.finished([finished])
            else:
                recorder.retry_scheduled(run=found.run, decision=transition.decision)
