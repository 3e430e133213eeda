"""Runs that people ask for: triggered, run again, cancelled. What the routes of crons and of runs share."""

from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_api.answers import Answer
from cronplane_api.errors import CONFLICT, ProblemError, not_found
from cronplane_api.schemas import RunRead
from cronplane_api.state import principal_of, state_of
from cronplane_core import cron_repository, lease, organization_repository, run_repository, run_states, run_transitions
from cronplane_core.cron_repository import Cron
from cronplane_core.run_repository import Run
from cronplane_core.run_states import AttemptEnd, EndedAttempt
from cronplane_core.run_transitions import FinishedAttempt, Transition
from cronplane_core.tables import ACTIVE_STATUSES


async def admit_trigger(request: Request, connection: AsyncConnection) -> None:
    """Let the organization make one more run by hand, as far as its quota goes; it stays locked."""
    await organization_repository.admit_trigger(
        connection,
        organization_id=principal_of(request).organization.id,
        default_quota=state_of(request).triggers_per_minute,
    )


async def queue_run(
    request: Request,
    connection: AsyncConnection,
    cron: Cron,
    *,
    execution_payload: dict[str, Any] | None = None,
    rerun_of: UUID | None = None,
) -> Answer:
    """Queue a run of a locked cron."""
    state_of(request).registrar.check_grant(cron.definition.entrypoint, organization=principal_of(request).organization)
    run = await run_repository.insert_manual_run(
        connection,
        cron=cron,
        created_by=principal_of(request).user.id,
        execution_payload=execution_payload,
        rerun_of=rerun_of,
    )
    location = f"/crons/{cron.organization_id}/{cron.id}/runs/{run.id}"
    return Answer(status=202, body=RunRead.model_validate(run), headers={"Location": location})


async def run_again(
    request: Request, connection: AsyncConnection, *, organization_id: UUID, cron_id: UUID, run_id: UUID
) -> Answer:
    """Queue a run with what a finished one was given: a payload of its own, or else the cron's as it is today."""
    await admit_trigger(request, connection)
    cron = await cron_repository.lock_cron(connection, organization_id=organization_id, cron_id=cron_id)
    run = await _run(connection, organization_id, cron_id, run_id)
    if cron is None:
        raise not_found()
    if run.status in ACTIVE_STATUSES:
        raise ProblemError(CONFLICT, f"The run is not over, it is {run.status.value}; cancel it, or wait for its end")
    payload = await run_repository.read_payload(connection, run=run)
    return await queue_run(request, connection, cron, execution_payload=payload, rerun_of=run.id)


async def cancel(
    request: Request, connection: AsyncConnection, *, organization_id: UUID, cron_id: UUID, run_id: UUID
) -> Answer:
    """End a run that is queued or waiting, or have it ended where it runs."""
    await _run(connection, organization_id, cron_id, run_id)
    now = await lease.database_time(connection)
    for found in await run_transitions.lock_open_runs(connection, run_ids=[run_id]):
        requested_by = principal_of(request).user.id
        await run_repository.request_cancel(connection, run_id=run_id, requested_by=requested_by)
        decision = run_states.cancelled(found.run)
        if decision is not None:
            ended = EndedAttempt(end=AttemptEnd.CANCELLED, reason=decision.reason, message=decision.message)
            attempt = None if found.nonce is None else FinishedAttempt(nonce=found.nonce, ended=ended)
            wanted = replace(found.run, is_cancel_requested=True)
            transition = Transition(run=wanted, decision=decision, attempt=attempt)
            await run_transitions.move(connection, transitions=[transition], epoch=None, now=now)
        run = await _run(connection, organization_id, cron_id, run_id)
        return Answer(status=202, body=RunRead.model_validate(run))
    run = await _run(connection, organization_id, cron_id, run_id)
    raise ProblemError(CONFLICT, f"The run is over: {run.status.value} ({run.reason})")


async def _run(connection: AsyncConnection, organization_id: UUID, cron_id: UUID, run_id: UUID) -> Run:
    found = await run_repository.get_run(connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id)
    if found is None:
        raise not_found()
    return found[0]
