"""Organizations, the tenants: made and listed by the installation."""

import enum
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Row, bindparam, func, insert, or_, select, text, tuple_, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core.database import DatabaseError, transaction, violated_constraint
from cronplane_core.tables import OrganizationState, organizations

T = TypeVar("T")


class OrganizationNameTakenError(DatabaseError):
    """Another organization has this name; choose another."""


class QuotaExceededError(DatabaseError):
    """The organization has as much as it may have; remove something, wait, or ask the administrator for more.

    `retry_after` is how long to wait until it may be asked again, None where waiting does not help.
    """

    def __init__(self, message: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """One row of `organizations`; `created_at` is aware and in UTC.

    `entrypoints` are the entries that it may use, None for every one. A quota that is None is the installation's.
    """

    id: UUID
    name: str
    state: OrganizationState
    created_at: datetime
    entrypoints: frozenset[str] | None
    cron_quota: int | None
    triggers_per_minute: int | None
    crons: int


class Declaration(enum.StrEnum):
    """What had to be done for an organization to be as it was declared."""

    MADE = "made"
    CHANGED = "changed"
    KEPT = "as declared"


_COUNT_CRONS = text(
    """
    UPDATE scheduler.organizations SET crons = (
        SELECT count(*) FROM scheduler.cron_jobs WHERE organization_id = :organization_id AND deleted_at IS NULL
    )
    WHERE id = :organization_id
    """
)
_LOCK = (
    select(func.coalesce(organizations.c.triggers_per_minute, bindparam("default")))
    .where(organizations.c.id == bindparam("organization_id"))
    .with_for_update(key_share=True)
)
# The newest of the triggers that leave no room for another, and when it is a minute old.
_TRIGGERED = text(
    """
    SELECT created_at + interval '1 minute' - scheduler.now() AS wait
    FROM scheduler.cron_runs
    WHERE organization_id = :organization_id AND trigger_kind = 'manual'
      AND created_at > scheduler.now() - interval '1 minute'
    ORDER BY created_at DESC OFFSET CAST(:quota AS bigint) - 1 LIMIT 1
    """
)
_MINUTE = timedelta(minutes=1)


async def create_organization(connection: AsyncConnection, *, name: str) -> Organization:
    """Make an organization.

    Raises:
        OrganizationNameTakenError: the name is in use; the transaction must be rolled back.

    """
    try:
        result = await connection.execute(insert(organizations).values(name=name).returning(organizations))
    except IntegrityError as error:
        if violated_constraint(error) != "organizations_name_key":
            raise
        raise OrganizationNameTakenError(f"An organization named {name!r} exists already") from error
    return _organization(result.one())


async def get_organization(connection: AsyncConnection, *, organization_id: UUID) -> Organization | None:
    """Find an organization, or None."""
    row = (await connection.execute(select(organizations).where(organizations.c.id == organization_id))).one_or_none()
    return None if row is None else _organization(row)


async def find_organizations(connection: AsyncConnection, *, references: Collection[UUID | str]) -> list[Organization]:
    """Find organizations by their ids and by their names; those that there are not are left out."""
    ids = [each for each in references if isinstance(each, UUID)]
    names = [each for each in references if isinstance(each, str)]
    query = select(organizations).where(or_(organizations.c.id.in_(ids), organizations.c.name.in_(names)))
    return [_organization(row) for row in await connection.execute(query)]


async def lock_organization(connection: AsyncConnection, *, organization_id: UUID) -> Organization | None:
    """Find an organization and let nobody else change it until the transaction ends; None if it is absent."""
    query = select(organizations).where(organizations.c.id == organization_id).with_for_update(key_share=True)
    row = (await connection.execute(query)).one_or_none()
    return None if row is None else _organization(row)


async def update_organization(connection: AsyncConnection, *, organization: Organization) -> Organization:
    """Write what a locked organization may use, and how much of it."""
    granted = None if organization.entrypoints is None else sorted(organization.entrypoints)
    statement = (
        update(organizations)
        .where(organizations.c.id == organization.id)
        .values(
            entrypoints=granted,
            cron_quota=organization.cron_quota,
            triggers_per_minute=organization.triggers_per_minute,
        )
        .returning(organizations)
    )
    return _organization((await connection.execute(statement)).one())


async def declare_organization(
    connection: AsyncConnection, *, name: str, limits: Mapping[str, Any]
) -> tuple[Organization, Declaration]:
    """Let there be an organization of this name with these `limits`, which are fields of `Organization`.

    Who declares several in one transaction does it in the order of their names, so that two who do wait for each other.
    """
    query = postgresql.insert(organizations).values(name=name).on_conflict_do_nothing(index_elements=["name"])
    is_new = (await connection.execute(query.returning(organizations.c.id))).one_or_none() is not None
    locked = select(organizations).where(organizations.c.name == name).with_for_update(key_share=True)
    found = _organization((await connection.execute(locked)).one())
    declared = replace(found, **limits)
    if declared != found:
        await count_crons(connection, organization_id=found.id)
        declared = await update_organization(connection, organization=declared)
    if is_new:
        return declared, Declaration.MADE
    return declared, Declaration.KEPT if declared == found else Declaration.CHANGED


async def count_crons(connection: AsyncConnection, *, organization_id: UUID) -> None:
    """Count an organization's crons again: its number of them may be off if rows were changed by hand."""
    await lock_organization(connection, organization_id=organization_id)
    await connection.execute(_COUNT_CRONS, {"organization_id": organization_id})


async def counted_before_refused(
    engine: AsyncEngine, attempt: Callable[[], Awaitable[T]], *, organization_id: UUID
) -> T:
    """Ask again once the crons have been counted, if `attempt` raised that there are too many.

    Raises:
        QuotaExceededError: there are too many, counted.

    """
    with suppress(QuotaExceededError):
        return await attempt()
    async with transaction(engine) as connection:
        await count_crons(connection, organization_id=organization_id)
    return await attempt()


async def admit_trigger(connection: AsyncConnection, *, organization_id: UUID, default_quota: int) -> None:
    """Let one more manual run be made in this transaction, as far as those of the last minute leave room for it.

    The organization stays locked, so that triggers at the same time are judged one after the other.

    Raises:
        QuotaExceededError: there were as many as the organization may make in a minute.

    """
    quota = await connection.scalar(_LOCK, {"organization_id": organization_id, "default": default_quota})
    wait: timedelta | None = _MINUTE
    if quota:
        wait = await connection.scalar(_TRIGGERED, {"organization_id": organization_id, "quota": quota})
    if wait is not None:
        raise QuotaExceededError(f"The organization may trigger {quota or 0} runs a minute; wait", retry_after=wait)


async def list_organizations(
    connection: AsyncConnection, *, after: tuple[datetime, UUID] | None, limit: int
) -> list[Organization]:
    """List organizations in the order in which they were made, from behind the key `after`."""
    key = (organizations.c.created_at, organizations.c.id)
    query = select(organizations).order_by(*key).limit(limit)
    if after is not None:
        query = query.where(tuple_(*key) > after)
    return [_organization(row) for row in await connection.execute(query)]


def _organization(row: Row[Any]) -> Organization:
    return Organization(
        id=row.id,
        name=row.name,
        state=OrganizationState(row.state),
        created_at=row.created_at,
        entrypoints=None if row.entrypoints is None else frozenset(row.entrypoints),
        cron_quota=row.cron_quota,
        triggers_per_minute=row.triggers_per_minute,
        crons=row.crons,
    )
