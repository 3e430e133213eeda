"""The routes of crons: registered, read, changed, deleted, paused, resumed and triggered."""

import unicodedata
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated
from uuid import UUID, uuid4

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.convertors import StringConvertor, register_url_convertor

from cronplane_api.answers import (
    Answer,
    IdempotencyKey,
    IfMatch,
    answered_before,
    carry_out,
    carry_out_once,
    check_if_match,
    committed,
    etag,
)
from cronplane_api.errors import CONFLICT, DEFINED_BY_RESOURCE, ProblemError, not_found
from cronplane_api.guarded_route import WITHOUT_NUL, GuardedRoute
from cronplane_api.manual_runs import admit_trigger, queue_run
from cronplane_api.pagination import DEFAULT_LIMIT, Cursor, Limit, read_cursor, write_cursor
from cronplane_api.principals import requires
from cronplane_api.problem_details import documented
from cronplane_api.schemas import (
    CronPage,
    CronPatch,
    CronPreview,
    CronRead,
    Fire,
    RunRead,
    RunTrigger,
    next_fires,
)
from cronplane_api.state import principal_of, state_of
from cronplane_core import cron_repository, organization_repository, run_repository
from cronplane_core.change_notifier import Channel
from cronplane_core.cron_repository import Cron, NewCron
from cronplane_core.database import autocommit
from cronplane_core.schedule import describe
from cronplane_core.tables import Role
from cronplane_core.time_zones import time_zone
from cronplane_entries.cron_request import CronCreation


class CronIdConvertor(StringConvertor):
    """What may stand in a path where a cron's id belongs."""

    regex = "(?!preview$)[^/]+"


router = APIRouter(prefix="/crons/{organization_id}", tags=["crons"], route_class=GuardedRoute)
# Asked for with another method, `preview` is no cron's id but a path that does not serve that method.
register_url_convertor("cron_id", CronIdConvertor())
_CRON = "/{cron_id:cron_id}"
_PREVIEWED_FIRES = 10
_TRIES = 20


@router.post(
    "",
    status_code=201,
    response_model=CronRead,
    responses=documented(403, 404, 409, 429),
    operation_id="create_cron",
)
@requires(Role.EDITOR)
async def create_cron(
    request: Request, organization_id: UUID, body: CronCreation, idempotency_key: IdempotencyKey = None
) -> Response:
    """Register a cron."""
    if (answer := await answered_before(request, idempotency_key)) is not None:
        return answer
    state, principal, cron_id = state_of(request), principal_of(request), uuid4()
    definition, _ = await state.registrar.check(
        body.draft(), organization=principal.organization, user=principal.user, cron_id=cron_id, now=principal.now
    )

    new_cron = NewCron(id=cron_id, definition=definition, created_by=principal.user.id)

    async def register(connection: AsyncConnection) -> Answer:
        [cron] = await state.registrar.register(connection, organization_id=organization_id, crons=[new_cron])
        return registered(cron)

    def registered(cron: Cron) -> Answer:
        headers = {"Location": f"/crons/{organization_id}/{cron.id}", **etag(cron)}
        return Answer(status=201, body=CronRead.of(cron, now=principal.now, last_run=None), headers=headers)

    async def attempt() -> Response:
        if idempotency_key is None:
            cron = await state.cron_insertion.call(organization_id, new_cron)
            return committed(request, registered(cron), notify=Channel.CRONS)
        return await carry_out_once(request, idempotency_key, register, notify=Channel.CRONS)

    return await organization_repository.counted_before_refused(state.engine, attempt, organization_id=organization_id)


@router.get("", responses=documented(404), operation_id="list_crons")
@requires(Role.VIEWER)
async def list_crons(
    *,
    request: Request,
    organization_id: UUID,
    entrypoint: Annotated[
        str | None, Query(max_length=63, pattern=WITHOUT_NUL, description="only crons of this entry")
    ] = None,
    enabled: Annotated[bool | None, Query(description="only these")] = None,
    name: Annotated[
        str | None, Query(max_length=200, pattern=WITHOUT_NUL, description="only the cron of exactly this name")
    ] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> CronPage:
    """List the organization's crons, oldest first."""
    after = read_cursor(request, cursor)
    async with autocommit(state_of(request).engine) as connection:
        crons = await cron_repository.list_crons(
            connection,
            organization_id=organization_id,
            entrypoint=entrypoint,
            enabled=enabled,
            name=None if name is None else unicodedata.normalize("NFC", name),
            after=after,
            limit=limit + 1,
        )
        page = crons[:limit]
        runs = await run_repository.latest_runs(
            connection, organization_id=organization_id, cron_ids=[cron.id for cron in page]
        )
    now = principal_of(request).now
    return CronPage(
        items=[CronRead.of(cron, now=now, last_run=runs.get(cron.id)) for cron in page],
        next_cursor=write_cursor(request, (page[-1].created_at, page[-1].id)) if len(crons) > limit else None,
    )


@router.post(
    "/preview",
    response_model=CronPreview,
    responses=documented(403, 404, 409),
    operation_id="preview_cron",
)
@requires(Role.EDITOR)
async def preview_cron(
    request: Request, organization_id: UUID, body: CronCreation, idempotency_key: IdempotencyKey = None
) -> Response:
    """Show what a registration would make, and when it would fire; writes no cron."""
    del organization_id
    if (answer := await answered_before(request, idempotency_key)) is not None:
        return answer
    state, principal = state_of(request), principal_of(request)
    definition, schedule = await state.registrar.check(
        body.draft(), organization=principal.organization, user=principal.user, cron_id=uuid4(), now=principal.now
    )

    async def preview(_: AsyncConnection) -> Answer:
        zone = time_zone(definition.tz)
        fires = next_fires(schedule, now=principal.now, count=_PREVIEWED_FIRES)
        shown = CronPreview(
            name=definition.name,
            description=describe(schedule),
            cron_expr=definition.cron_expr,
            tz=definition.tz,
            entrypoint=definition.entrypoint,
            payload=definition.user_payload,
            next_fires=[Fire(utc=fire, local=fire.astimezone(zone).isoformat()) for fire in fires],
        )
        return Answer(status=200, body=shown)

    return await carry_out_once(request, idempotency_key, preview)


@router.get(_CRON, response_model=CronRead, responses=documented(404), operation_id="get_cron")
@requires(Role.VIEWER)
async def get_cron(request: Request, organization_id: UUID, cron_id: UUID) -> Response:
    """Read a cron, with its next fires and its last run."""

    async def read(connection: AsyncConnection) -> Answer:
        cron = await cron_repository.get_cron(connection, organization_id=organization_id, cron_id=cron_id)
        return await _shown(request, connection, cron)

    return await carry_out(request, read)


@router.patch(
    _CRON,
    response_model=CronRead,
    responses=documented(403, 404, 409, 412),
    operation_id="update_cron",
)
@requires(Role.EDITOR)
async def update_cron(
    request: Request, organization_id: UUID, cron_id: UUID, body: CronPatch, if_match: IfMatch = None
) -> Response:
    """Change a cron; a new schedule counts from now on and never fires into the past."""
    principal = principal_of(request)

    async def attempt() -> Response:
        cron = _changeable(await _found(request, organization_id, cron_id, if_match))
        definition = await state_of(request).registrar.check_changes(
            body.changes(), cron=cron, organization=principal.organization, user=principal.user, now=principal.now
        )

        async def change(connection: AsyncConnection) -> Answer:
            locked = _changeable(await _locked_as_judged(connection, cron, if_match))
            changed = await cron_repository.update_cron(
                connection, cron=locked, definition=definition, updated_by=principal.user.id
            )
            return await _shown(request, connection, changed)

        return await carry_out(request, change, notify=Channel.CRONS)

    return await _until_undisturbed(attempt)


@router.delete(
    _CRON,
    status_code=204,
    response_class=Response,
    responses=documented(403, 404, 409, 412),
    operation_id="delete_cron",
)
@requires(Role.EDITOR)
async def delete_cron(request: Request, organization_id: UUID, cron_id: UUID, if_match: IfMatch = None) -> Response:
    """Delete a cron: it fires no more, its name is free, and its runs are kept."""

    async def delete(connection: AsyncConnection) -> Answer:
        await organization_repository.lock_organization(connection, organization_id=organization_id)
        cron = _changeable(await _locked(connection, organization_id, cron_id, if_match))
        await cron_repository.delete_cron(connection, cron=cron, deleted_by=principal_of(request).user.id)
        return Answer(status=204)

    return await carry_out(request, delete, notify=Channel.CRONS)


@router.post(
    "/{cron_id}/pause",
    response_model=CronRead,
    responses=documented(403, 404, 409, 412),
    operation_id="pause_cron",
)
@requires(Role.OPERATOR)
async def pause_cron(
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Stop firing; what has been claimed already still runs."""
    return await _set_enabled(request, organization_id, cron_id, if_match, idempotency_key, enabled=False)


@router.post(
    "/{cron_id}/resume",
    response_model=CronRead,
    responses=documented(403, 404, 409, 412),
    operation_id="resume_cron",
)
@requires(Role.OPERATOR)
async def resume_cron(
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Fire again, from the next fire on."""
    return await _set_enabled(request, organization_id, cron_id, if_match, idempotency_key, enabled=True)


@router.post(
    "/{cron_id}/trigger",
    status_code=202,
    response_model=RunRead,
    responses=documented(403, 404, 409, 429),
    operation_id="trigger_cron",
)
@requires(Role.OPERATOR)
async def trigger_cron(
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    body: RunTrigger | None = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Run a cron now, paused or not; while a run of it is not over, the new one is recorded as skipped."""
    if (answer := await answered_before(request, idempotency_key)) is not None:
        return answer
    if body is None or body.payload is None:

        async def trigger(connection: AsyncConnection) -> Answer:
            await admit_trigger(request, connection)
            return await queue_run(request, connection, await _locked(connection, organization_id, cron_id, None))

        return await carry_out_once(request, idempotency_key, trigger, notify=Channel.RUNS)
    payload, principal = body.payload, principal_of(request)

    async def attempt() -> Response:
        cron = await _found(request, organization_id, cron_id, None)
        override = await state_of(request).registrar.check_override(
            payload, cron=cron, organization=principal.organization, user=principal.user
        )

        async def trigger(connection: AsyncConnection) -> Answer:
            await admit_trigger(request, connection)
            locked = await _locked_as_judged(connection, cron, None)
            return await queue_run(request, connection, locked, execution_payload=override)

        return await carry_out_once(request, idempotency_key, trigger, notify=Channel.RUNS)

    return await _until_undisturbed(attempt)


async def _set_enabled(
    request: Request,
    organization_id: UUID,
    cron_id: UUID,
    if_match: str | None,
    idempotency_key: str | None,
    *,
    enabled: bool,
) -> Response:
    async def change(connection: AsyncConnection) -> Answer:
        cron = _changeable(await _locked(connection, organization_id, cron_id, if_match))
        changed = await cron_repository.update_cron(
            connection,
            cron=cron,
            definition=replace(cron.definition, enabled=enabled),
            updated_by=principal_of(request).user.id,
        )
        return await _shown(request, connection, changed)

    return await carry_out_once(request, idempotency_key, change, notify=Channel.CRONS)


class _ChangedMeanwhileError(ProblemError):
    """Somebody else has changed the cron since it was judged; judge it again."""


async def _until_undisturbed(attempt: Callable[[], Awaitable[Response]]) -> Response:
    """Judge and then change, again if need be.

    An entry takes its time to judge a payload, and meanwhile nothing may be locked and no connection be held.
    """
    for _ in range(_TRIES - 1):
        with suppress(_ChangedMeanwhileError):
            return await attempt()
    return await attempt()


async def _found(request: Request, organization_id: UUID, cron_id: UUID, if_match: str | None) -> Cron:
    async with autocommit(state_of(request).engine) as connection:
        cron = await cron_repository.get_cron(connection, organization_id=organization_id, cron_id=cron_id)
    return _as_expected(cron, if_match)


async def _locked_as_judged(connection: AsyncConnection, judged: Cron, if_match: str | None) -> Cron:
    locked = await _locked(connection, judged.organization_id, judged.id, if_match)
    if locked.generation != judged.generation:
        raise _ChangedMeanwhileError(CONFLICT, "The cron is being changed by others; read it and try again")
    return locked


async def _locked(connection: AsyncConnection, organization_id: UUID, cron_id: UUID, if_match: str | None) -> Cron:
    cron = await cron_repository.lock_cron(connection, organization_id=organization_id, cron_id=cron_id)
    return _as_expected(cron, if_match)


def _changeable(cron: Cron) -> Cron:
    """Let a cron be changed here, unless there is a resource that would have the last word anyhow."""
    resource = cron.resource
    if resource is not None and resource.uid is not None:
        detail = f"The cron is defined by the Cron resource {resource.namespace}/{resource.name}; change or delete that"
        raise ProblemError(DEFINED_BY_RESOURCE, detail)
    return cron


def _as_expected(cron: Cron | None, if_match: str | None) -> Cron:
    if cron is None:
        raise not_found()
    check_if_match(if_match, cron)
    return cron


async def _shown(request: Request, connection: AsyncConnection, cron: Cron | None) -> Answer:
    if cron is None:
        raise not_found()
    runs = await run_repository.latest_runs(connection, organization_id=cron.organization_id, cron_ids=[cron.id])
    shown = CronRead.of(cron, now=principal_of(request).now, last_run=runs.get(cron.id))
    return Answer(status=200, body=shown, headers=etag(cron))
