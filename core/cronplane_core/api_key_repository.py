"""API keys: made, listed, revoked and recognized.

A key's secret has 256 random bits and is shown once; the table holds its SHA-256. A slow hash would protect only
secrets that can be guessed.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, DateTime, Row, Text, Uuid, bindparam, cast, func, insert, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.tables import NOW, OrganizationState, Role, api_keys, organizations

_SECRET_BYTES = 32
_FORM = re.compile(r"cronplane_([0-9a-f]{32})_([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One row of `api_keys`, without what could prove anything. Instants are aware and in UTC."""

    id: UUID
    organization_id: UUID
    name: str
    role: Role
    created_at: datetime
    created_by: str
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatedKey:
    """Who stands behind a request, and when it came by the database's clock (aware, UTC).

    `granted_entrypoints` are the entries that the organization may use, None for every one.
    """

    id: UUID
    name: str
    role: Role
    organization_id: UUID
    organization_name: str
    granted_entrypoints: frozenset[str] | None
    now: datetime


_AUTHENTICATE = (
    select(
        api_keys.c.id,
        api_keys.c.name,
        api_keys.c.role,
        api_keys.c.secret_hash,
        api_keys.c.organization_id,
        organizations.c.name.label("organization_name"),
        organizations.c.entrypoints,
        literal_column("scheduler.now()", DateTime(timezone=True)).label("now"),
    )
    .join(organizations, organizations.c.id == api_keys.c.organization_id)
    .where(
        api_keys.c.id == func.any(cast(bindparam("key_ids", type_=Text()), ARRAY(Uuid()))),
        api_keys.c.revoked_at.is_(None),
        organizations.c.state == OrganizationState.ACTIVE.value,
    )
)


async def create_api_key(
    connection: AsyncConnection, *, organization_id: UUID, name: str, role: Role, created_by: str
) -> tuple[ApiKey, str]:
    """Make a key; the second value is the key's text, which is nowhere to be had again."""
    key_id, secret = uuid4(), secrets.token_urlsafe(_SECRET_BYTES)
    statement = insert(api_keys).values(
        id=key_id,
        organization_id=organization_id,
        name=name,
        role=role.value,
        secret_hash=_hash(secret),
        created_by=created_by,
    )
    result = await connection.execute(statement.returning(api_keys))
    return _api_key(result.one()), f"cronplane_{key_id.hex}_{secret}"


async def list_api_keys(connection: AsyncConnection, *, organization_id: UUID) -> list[ApiKey]:
    """List an organization's keys in the order in which they were made, revoked ones included."""
    query = (
        select(api_keys)
        .where(api_keys.c.organization_id == organization_id)
        .order_by(api_keys.c.created_at, api_keys.c.id)
    )
    return [_api_key(row) for row in await connection.execute(query)]


async def revoke_api_key(connection: AsyncConnection, *, organization_id: UUID, key_id: UUID) -> bool:
    """Revoke a key of this organization; False if it has no such key that is still good."""
    statement = (
        update(api_keys)
        .where(api_keys.c.organization_id == organization_id, api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=NOW)
    )
    return (await connection.execute(statement)).rowcount == 1


async def authenticate(connection: AsyncConnection, *, key_texts: Sequence[str]) -> list[AuthenticatedKey | None]:
    """Recognize keys' texts, in one look at the table; None for what is not a good key of an active organization."""
    forms = [_FORM.fullmatch(key_text) for key_text in key_texts]
    key_ids = {UUID(form[1]) for form in forms if form is not None}
    if not key_ids:
        return [None] * len(forms)
    found = await connection.execute(_AUTHENTICATE, {"key_ids": arrays.uuids(key_ids)})
    rows = {row.id: row for row in found}
    return [None if form is None else _authenticated(rows.get(UUID(form[1])), secret=form[2]) for form in forms]


def _authenticated(row: Row[Any] | None, *, secret: str) -> AuthenticatedKey | None:
    if row is None or not hmac.compare_digest(row.secret_hash, _hash(secret)):
        return None
    return AuthenticatedKey(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        organization_id=row.organization_id,
        organization_name=row.organization_name,
        granted_entrypoints=None if row.entrypoints is None else frozenset(row.entrypoints),
        now=row.now,
    )


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        created_by=row.created_by,
        revoked_at=row.revoked_at,
    )
