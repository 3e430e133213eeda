"""The routes of runs: what became of a cron's fires."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_api.answers import Answer, IdempotencyKey, carry_out_once
from cronplane_api.errors import not_found
from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.manual_runs import cancel, run_again
from cronplane_api.pagination import DEFAULT_LIMIT, Cursor, Limit, read_cursor, write_cursor
from cronplane_api.principals import requires
from cronplane_api.problem_details import documented
from cronplane_api.schemas import RunDetail, RunPage, RunRead
from cronplane_api.state import state_of
from cronplane_core import attempt_job_repository, cron_repository, run_repository
from cronplane_core.change_notifier import Channel
from cronplane_core.database import autocommit
from cronplane_core.run_repository import RunFilter
from cronplane_core.tables import Role, RunStatus, TriggerKind
from cronplane_entries.cron_request import Instant
from cronplane_entries.registry import MOST_ATTEMPTS

router = APIRouter(prefix="/crons/{organization_id}/{cron_id}/runs", tags=["runs"], route_class=GuardedRoute)


@router.get("", responses=documented(404), operation_id="list_runs")
@requires(Role.VIEWER)
async def list_runs(
    *,
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    status: Annotated[list[RunStatus] | None, Query(description="only these; may be given more than once")] = None,
    trigger: Annotated[TriggerKind | None, Query(description="only runs of this kind")] = None,
    scheduled_from: Annotated[Instant | None, Query(alias="from", description="scheduled at or after this")] = None,
    scheduled_until: Annotated[Instant | None, Query(alias="until", description="scheduled at or before this")] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> RunPage:
    """List a cron's runs, newest first."""
    after = read_cursor(request, cursor)
    run_filter = RunFilter(
        statuses=status, trigger_kind=trigger, scheduled_from=scheduled_from, scheduled_until=scheduled_until
    )
    async with autocommit(state_of(request).engine) as connection:
        runs = await run_repository.list_runs(
            connection,
            organization_id=organization_id,
            cron_id=cron_id,
            run_filter=run_filter,
            after=after,
            limit=limit + 1,
        )
        if not runs and not await _exists(connection, organization_id, cron_id):
            raise not_found()
    page = runs[:limit]
    return RunPage(
        items=[RunRead.model_validate(run) for run in page],
        next_cursor=write_cursor(request, (page[-1].scheduled_for, page[-1].id)) if len(runs) > limit else None,
    )


@router.get("/{run_id}", responses=documented(404), operation_id="get_run")
@requires(Role.VIEWER)
async def get_run(request: Request, organization_id: UUID, cron_id: UUID, run_id: UUID) -> RunDetail:
    """Read a run with its attempts, and what it printed."""
    async with autocommit(state_of(request).engine) as connection:
        found = await run_repository.get_run(
            connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id
        )
    if found is None:
        raise not_found()
    return RunDetail.of(*found)


@router.get(
    "/{run_id}/log",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}}, **documented(404)},
    operation_id="get_run_log",
)
@requires(Role.VIEWER)
async def get_run_log(
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    run_id: UUID,
    attempt: Annotated[
        int | None, Query(ge=1, le=MOST_ATTEMPTS, description="whose log; left out, the last one's")
    ] = None,
) -> PlainTextResponse:
    """Read what an attempt wrote: the end of its pod's log once the pod is over, else what its executor printed."""
    async with autocommit(state_of(request).engine) as connection:
        found = await run_repository.get_run(
            connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id
        )
        if found is None:
            raise not_found()
        number = found[0].attempts if attempt is None else attempt
        log = await attempt_job_repository.read_log(
            connection, organization_id=organization_id, run_id=run_id, number=number
        )
    return PlainTextResponse(log or "")


@router.post(
    "/{run_id}/cancel",
    status_code=202,
    response_model=RunRead,
    responses=documented(403, 404, 409),
    operation_id="cancel_run",
)
@requires(Role.OPERATOR)
async def cancel_run(
    request: Request, organization_id: UUID, cron_id: UUID, run_id: UUID, idempotency_key: IdempotencyKey = None
) -> Response:
    """End a run: one that is queued or waiting at once, one that is running as soon as its worker has been stopped."""

    async def end(connection: AsyncConnection) -> Answer:
        return await cancel(request, connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id)

    return await carry_out_once(request, idempotency_key, end, notify=Channel.RUNS)


@router.post(
    "/{run_id}/rerun",
    status_code=202,
    response_model=RunRead,
    responses=documented(403, 404, 409, 429),
    operation_id="rerun_run",
)
@requires(Role.OPERATOR)
async def rerun_run(
    request: Request, organization_id: UUID, cron_id: UUID, run_id: UUID, idempotency_key: IdempotencyKey = None
) -> Response:
    """Run what is over once more, as a new run: with the payload that it had of its own, or the cron's of today."""

    async def rerun(connection: AsyncConnection) -> Answer:
        return await run_again(request, connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id)

    return await carry_out_once(request, idempotency_key, rerun, notify=Channel.RUNS)


async def _exists(connection: AsyncConnection, organization_id: UUID, cron_id: UUID) -> bool:
    cron = await cron_repository.get_cron(connection, organization_id=organization_id, cron_id=cron_id)
    return cron is not None
