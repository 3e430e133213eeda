"""The routes by which a process that runs an attempt tells of it, and by which somebody else tells a run's end.

They ask for no key of an organization but for proof of one attempt, or of the right to tell one run's end. They go
through the same functions as the runner's own workers: the start gate, the decisions, the compare-and-set.
"""

from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_api.answers import Answer, carry_out
from cronplane_api.attempt_proof import ProvenAttempt, renewed_token
from cronplane_api.attempt_schemas import (
    AttemptBeat,
    AttemptFinish,
    AttemptGoesOn,
    AttemptStart,
    AttemptStarted,
    CallbackFinish,
    CallbackRead,
    FinishRecorded,
)
from cronplane_api.errors import ATTEMPT_OVER, INVALID, NOT_HANDED_ON, NOT_READY, UNAUTHENTICATED, ProblemError
from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.principals import Access, bearer_key, requires
from cronplane_api.problem_details import documented
from cronplane_api.state import attempt_of, state_of
from cronplane_core import lease, run_transitions
from cronplane_core.change_notifier import Channel
from cronplane_core.run_states import ATTEMPT_TIMEOUT, after_attempt
from cronplane_core.run_transitions import FinishedAttempt, OpenRun, StartedAttempt, Transition
from cronplane_core.signed_tokens import Purpose, TokenClaims, TokenInvalidError, TokenSigner, token_hash
from cronplane_core.tables import Execution, RunStatus
from cronplane_entries.registry import MOST_ATTEMPTS, CronEntrypoint

router = APIRouter(prefix="/runs/{run_id}", tags=["attempts"], route_class=GuardedRoute)
Number = Annotated[int, Path(ge=1, le=MOST_ATTEMPTS, description="of the attempt, from 1 on")]
# An attempt of which nothing was heard for so long is lost.
ATTEMPT_LEASE = timedelta(seconds=60)


@router.post(
    "/attempts/{number}/start",
    response_model=AttemptStarted,
    responses=documented(401, 409, 503),
    operation_id="start_attempt",
)
@requires(Access.TOKEN)
async def start_attempt(request: Request, run_id: UUID, number: Number, body: AttemptStart) -> Response:
    """Pass the start gate, once; with the same nonce the answer may be asked for again. The body runs after it."""

    attempt = attempt_of(request, run_id=run_id, number=number)

    async def start(connection: AsyncConnection) -> Answer:
        now = await lease.database_time(connection)
        nonces = {run_id: body.nonce}
        passed = await run_transitions.start(
            connection,
            nonces=nonces,
            epoch=None,
            location=body.location,
            execution=Execution.POD,
            now=now,
            lease=ATTEMPT_LEASE,
            number=number,
        ) or await run_transitions.read_started(connection, nonces=nonces)
        if not passed or not _is_of(passed[0].organization_id, attempt) or passed[0].run.attempt != number:
            raise await _over(connection, attempt)
        token = renewed_token(state_of(request).token_signer, attempt, now=now)
        callback = await _callback(request, connection, passed[0])
        return Answer(
            status=200, body=AttemptStarted.of(passed[0], lease=ATTEMPT_LEASE, token=token, callback=callback)
        )

    return await carry_out(request, start)


@router.post(
    "/attempts/{number}/heartbeat",
    response_model=AttemptGoesOn,
    responses=documented(401, 409, 503),
    operation_id="beat_attempt",
)
@requires(Access.TOKEN)
async def beat_attempt(request: Request, run_id: UUID, number: Number, body: AttemptBeat) -> Response:
    """Say that the attempt goes on, and learn whether it still should."""

    attempt = attempt_of(request, run_id=run_id, number=number)

    async def beat(connection: AsyncConnection) -> Answer:
        now = await lease.database_time(connection)
        found = await _running(connection, attempt, nonce=body.nonce)
        await run_transitions.renew_attempt(connection, nonce=body.nonce, run_id=run_id, until=now + ATTEMPT_LEASE)
        goes_on = AttemptGoesOn(
            is_cancel_requested=found.run.is_cancel_requested,
            deadline=found.attempt_deadline,
            lease=ATTEMPT_LEASE.total_seconds(),
            token=renewed_token(state_of(request).token_signer, attempt, now=now),
        )
        return Answer(status=200, body=goes_on)

    return await carry_out(request, beat)


@router.post(
    "/attempts/{number}/finish",
    response_model=FinishRecorded,
    responses=documented(401, 409, 503),
    operation_id="finish_attempt",
)
@requires(Access.TOKEN)
async def finish_attempt(request: Request, run_id: UUID, number: Number, body: AttemptFinish) -> Response:
    """Tell how the attempt ended; of one that is over, or another's, nothing is changed."""

    attempt = attempt_of(request, run_id=run_id, number=number)

    async def finish(connection: AsyncConnection) -> Answer:
        now = await lease.database_time(connection)
        found = await _running(connection, attempt, nonce=body.nonce)
        if body.outcome == "accepted" and not found.has_callback:
            raise ProblemError(INVALID, "Nobody could tell the end of the run: its entry has no completes_by_callback")
        return await _move(connection, found, _finished(body, found, now=now), now=now)

    return await carry_out(request, finish, notify=Channel.RUNS)


@router.post("/finish", response_model=FinishRecorded, responses=documented(401, 409, 503), operation_id="finish_run")
@requires(Access.TOKEN)
async def finish_run(request: Request, run_id: UUID, body: CallbackFinish) -> Response:
    """Tell the end of a run whose executor has handed its work on, with the token that it was given, once."""

    async def finish(connection: AsyncConnection) -> Answer:
        now = await lease.database_time(connection)
        token = bearer_key(request)
        claims = _read(_signer(request), token, now=now)
        if claims.run_id != run_id:
            raise _not_proven()
        attempt = ProvenAttempt(organization_id=claims.organization_id, run_id=claims.run_id, number=claims.attempt)
        found = await _open(connection, attempt)
        if found.run.status is not RunStatus.WAITING:
            raise ProblemError(NOT_HANDED_ON, "The executor has not handed its work on yet; tell the end again shortly")
        if found.nonce is None or not await run_transitions.use_callback(
            connection, nonce=found.nonce, run_id=run_id, token_hash=token_hash(token)
        ):
            raise await _over(connection, attempt)
        finished = FinishedAttempt(
            nonce=found.nonce, ended=body.ended(), result_json=body.result_json(), error_json=body.error_json()
        )
        return await _move(connection, found, finished, now=now)

    return await carry_out(request, finish, notify=Channel.RUNS)


def _is_of(organization_id: UUID, attempt: ProvenAttempt) -> bool:
    return attempt.organization_id in {None, organization_id}


def _signer(request: Request) -> TokenSigner:
    signer = state_of(request).token_signer
    if signer is None:
        raise ProblemError(UNAUTHENTICATED, "The installation has no keys for tokens of runs: set CRONPLANE_TOKEN_KEYS")
    return signer


def _read(signer: TokenSigner, token: str, *, now: datetime) -> TokenClaims:
    try:
        return signer.read(token, purpose=Purpose.CALLBACK, now=now)
    except TokenInvalidError as error:
        raise _not_proven() from error


def _not_proven() -> ProblemError:
    return ProblemError(UNAUTHENTICATED, "The token is not good for this, or not any more")


async def _running(connection: AsyncConnection, attempt: ProvenAttempt, *, nonce: UUID) -> OpenRun:
    """Lock the run of an attempt that the process with this nonce has under way.

    Raises:
        ProblemError: 409, the attempt is over, handed on, or another process's.

    """
    found = await _open(connection, attempt)
    if found.nonce != nonce or found.run.status is not RunStatus.RUNNING:
        raise await _over(connection, attempt)
    return found


def _finished(body: AttemptFinish, found: OpenRun, *, now: datetime) -> FinishedAttempt:
    """Give the end that a process tells; what it tells after its deadline comes too late to count."""
    if found.attempt_deadline is not None and now > found.attempt_deadline:
        return FinishedAttempt(nonce=body.nonce, ended=ATTEMPT_TIMEOUT, output=body.output)
    return FinishedAttempt(
        nonce=body.nonce,
        ended=body.ended(),
        result_json=body.result_json(),
        error_json=body.error_json(),
        output=body.output,
    )


async def _open(connection: AsyncConnection, attempt: ProvenAttempt) -> OpenRun:
    """Lock the run of an attempt that is not over.

    Raises:
        ProblemError: 409, the attempt is over.

    """
    for found in await run_transitions.lock_open_runs(connection, run_ids=[attempt.run_id]):
        is_this = found.run.attempt == attempt.number and _is_of(found.organization_id, attempt)
        if is_this and found.nonce is not None:
            return found
    raise await _over(connection, attempt)


async def _over(connection: AsyncConnection, attempt: ProvenAttempt) -> ProblemError:
    why = await run_transitions.explain(
        connection, run_id=attempt.run_id, organization_id=attempt.organization_id, number=attempt.number
    )
    return ProblemError(ATTEMPT_OVER, why)


async def _move(connection: AsyncConnection, found: OpenRun, finished: FinishedAttempt, *, now: datetime) -> Answer:
    decision = after_attempt(found.run, finished.ended, now=now)
    transition = Transition(run=found.run, decision=decision, attempt=finished)
    if not await run_transitions.move(connection, transitions=[transition], epoch=None, now=now):
        raise ProblemError(ATTEMPT_OVER, "The attempt ended meanwhile")
    return Answer(status=200, body=FinishRecorded(status=decision.status, reason=decision.reason))


async def _callback(request: Request, connection: AsyncConnection, attempt: StartedAttempt) -> CallbackRead | None:
    registry = state_of(request).registrar.registry
    if attempt.entrypoint not in registry:
        raise ProblemError(NOT_READY, "This replica of the API does not know the run's entry; another one may")
    spec = registry[CronEntrypoint(attempt.entrypoint)]
    if not spec.completes_by_callback:
        return None
    token = _signer(request).sign(attempt.callback_claims())
    await run_transitions.keep_callbacks(connection, hashes={(attempt.run.id, attempt.run.attempt): token_hash(token)})
    return CallbackRead(path=f"/runs/{attempt.run.id}/finish", token=token, deadline=attempt.run_deadline)
