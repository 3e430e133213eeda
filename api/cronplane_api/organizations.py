"""The routes of organizations and their keys: for the installation, and for an organization's admin."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_api.answers import Answer, IdempotencyKey, carry_out, carry_out_once
from cronplane_api.errors import INVALID, ProblemDetail, ProblemError, not_found
from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.pagination import DEFAULT_LIMIT, Cursor, Limit, read_cursor, write_cursor
from cronplane_api.principals import Access, requires
from cronplane_api.problem_details import documented
from cronplane_api.schemas import (
    KeyCreation,
    KeyList,
    KeyRead,
    NewKeyRead,
    OrganizationCreation,
    OrganizationPage,
    OrganizationPatch,
    OrganizationRead,
)
from cronplane_api.state import principal_of, state_of
from cronplane_core import api_key_repository, organization_repository
from cronplane_core.database import autocommit
from cronplane_core.organization_repository import Organization
from cronplane_entries.registry import CronRegistry

router = APIRouter(prefix="/organizations", tags=["organizations"], route_class=GuardedRoute)


@router.post(
    "",
    status_code=201,
    response_model=OrganizationRead,
    responses=documented(403, 409),
    operation_id="create_organization",
)
@requires(Access.INSTALLATION)
async def create_organization(
    request: Request, body: OrganizationCreation, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make an organization."""

    async def create(connection: AsyncConnection) -> Answer:
        organization = await organization_repository.create_organization(connection, name=body.name)
        return Answer(status=201, body=OrganizationRead.model_validate(organization))

    return await carry_out_once(request, idempotency_key, create)


@router.get("", responses=documented(403), operation_id="list_organizations")
@requires(Access.INSTALLATION)
async def list_organizations(request: Request, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> OrganizationPage:
    """List every organization, oldest first."""
    after = read_cursor(request, cursor)
    async with autocommit(state_of(request).engine) as connection:
        found = await organization_repository.list_organizations(connection, after=after, limit=limit + 1)
    page = found[:limit]
    return OrganizationPage(
        items=[OrganizationRead.model_validate(organization) for organization in page],
        next_cursor=write_cursor(request, (page[-1].created_at, page[-1].id)) if len(found) > limit else None,
    )


@router.get(
    "/{organization_id}",
    response_model=OrganizationRead,
    responses=documented(403, 404),
    operation_id="get_organization",
)
@requires(Access.INSTALLATION_OR_ADMIN)
async def get_organization(request: Request, organization_id: UUID) -> Response:
    """Read an organization, with what it may use and how much of it."""

    async def read(connection: AsyncConnection) -> Answer:
        organization = await organization_repository.get_organization(connection, organization_id=organization_id)
        return _shown(organization)

    return await carry_out(request, read, is_one_statement=True)


@router.patch(
    "/{organization_id}",
    response_model=OrganizationRead,
    responses=documented(403, 404),
    operation_id="update_organization",
)
@requires(Access.INSTALLATION)
async def update_organization(request: Request, organization_id: UUID, body: OrganizationPatch) -> Response:
    """Grant an organization entries and quotas, or take them back; crons that it has over a quota are kept."""
    _check_entrypoints(body.entrypoints, registry=state_of(request).registrar.registry)

    async def change(connection: AsyncConnection) -> Answer:
        organization = await organization_repository.lock_organization(connection, organization_id=organization_id)
        if organization is None:
            raise not_found()
        # A new quota begins with a true number, whatever was changed by hand or by older code.
        await organization_repository.count_crons(connection, organization_id=organization_id)
        changes: dict[str, Any] = body.model_dump(exclude_unset=True)
        if body.entrypoints is not None:
            changes["entrypoints"] = frozenset(body.entrypoints)
        changed = replace(organization, **changes)
        return _shown(await organization_repository.update_organization(connection, organization=changed))

    return await carry_out(request, change)


def _check_entrypoints(names: Sequence[str] | None, *, registry: CronRegistry) -> None:
    unknown = [index for index, name in enumerate(names or ()) if name not in registry]
    if unknown:
        message = "there is no such entry; see GET /entrypoints"
        raise ProblemError(
            INVALID,
            "The grant names entries that there are not",
            errors=[
                ProblemDetail(pointer=f"/entrypoints/{index}", message=message, type="unknown_entry")
                for index in unknown
            ],
        )


def _shown(organization: Organization | None) -> Answer:
    if organization is None:
        raise not_found()
    return Answer(status=200, body=OrganizationRead.model_validate(organization))


@router.post(
    "/{organization_id}/keys",
    status_code=201,
    response_model=NewKeyRead,
    responses=documented(403, 404),
    operation_id="create_key",
)
@requires(Access.INSTALLATION_OR_ADMIN)
async def create_key(
    request: Request,
    organization_id: UUID,
    body: KeyCreation,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key", include_in_schema=False)] = None,
) -> Response:
    """Make a key; its text is in this answer and nowhere else, so an Idempotency-Key is refused here."""
    if idempotency_key is not None:
        message = "an answer that holds a secret is not kept, so it cannot be given again"
        detail = ProblemDetail(pointer="header.Idempotency-Key", message=message, type="not_supported")
        raise ProblemError(INVALID, "Send this request without an Idempotency-Key", errors=[detail])

    async def create(connection: AsyncConnection) -> Answer:
        await _check_organization(connection, organization_id)
        api_key, text = await api_key_repository.create_api_key(
            connection,
            organization_id=organization_id,
            name=body.name,
            role=body.role,
            created_by=principal_of(request).user.id,
        )
        return Answer(status=201, body=NewKeyRead.of(api_key, text), headers={"Cache-Control": "no-store"})

    return await carry_out(request, create)


@router.get("/{organization_id}/keys", responses=documented(403, 404), operation_id="list_keys")
@requires(Access.INSTALLATION_OR_ADMIN)
async def list_keys(request: Request, organization_id: UUID) -> KeyList:
    """List an organization's keys, revoked ones included."""
    async with autocommit(state_of(request).engine) as connection:
        await _check_organization(connection, organization_id)
        keys = await api_key_repository.list_api_keys(connection, organization_id=organization_id)
    return KeyList(items=[KeyRead.model_validate(key) for key in keys])


@router.delete(
    "/{organization_id}/keys/{key_id}",
    status_code=204,
    response_class=Response,
    responses=documented(403, 404),
    operation_id="revoke_key",
)
@requires(Access.INSTALLATION_OR_ADMIN)
async def revoke_key(request: Request, organization_id: UUID, key_id: UUID) -> Response:
    """Revoke a key; requests with it are refused from now on."""

    async def revoke(connection: AsyncConnection) -> Answer:
        if not await api_key_repository.revoke_api_key(connection, organization_id=organization_id, key_id=key_id):
            raise not_found()
        return Answer(status=204)

    return await carry_out(request, revoke)


async def _check_organization(connection: AsyncConnection, organization_id: UUID) -> None:
    if await organization_repository.get_organization(connection, organization_id=organization_id) is None:
        raise not_found()
