"""Organizations, the tenants: made and listed by the installation."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.database import DatabaseError, violated_constraint
from cronplane_core.tables import OrganizationState, organizations


class OrganizationNameTakenError(DatabaseError):
    """Another organization has this name; choose another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """One row of `organizations`; `created_at` is aware and in UTC."""

    id: UUID
    name: str
    state: OrganizationState
    created_at: datetime


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
    return Organization(id=row.id, name=row.name, state=OrganizationState(row.state), created_at=row.created_at)
