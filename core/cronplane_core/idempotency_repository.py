"""What was answered to a request that carried an Idempotency-Key, kept for a day and in the effect's own transaction.

So a client that lost an answer may ask again: it is told the same, and nothing happens twice.
Source: draft-ietf-httpapi-idempotency-key-header.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import bindparam

from cronplane_core.database import DatabaseError


class IdempotencyKeyReusedError(DatabaseError):
    """The Idempotency-Key was used before with another request; take a new key for a new request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """An answer to give again: its status, its headers, and its body as JSON."""

    status: int
    headers: dict[str, str]
    body: object


# A twin under way at the same time waits here for the first to commit. A key of more than a day ago is as good as new.
_BEGIN = text(
    """
    INSERT INTO scheduler.idempotency_keys AS stored (scope, key, fingerprint)
    VALUES (:scope, :key, :fingerprint)
    ON CONFLICT (scope, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, status = NULL, headers = NULL, body = NULL, created_at = scheduler.now()
    WHERE stored.created_at < scheduler.now() - interval '1 day'
    RETURNING true
    """
)
_READ = text(
    """
    SELECT fingerprint, status, headers, body, created_at < scheduler.now() - interval '1 day' AS is_expired
    FROM scheduler.idempotency_keys WHERE scope = :scope AND key = :key
    """
)
_COMPLETE = text(
    """
    UPDATE scheduler.idempotency_keys SET status = :status, headers = :headers, body = :body
    WHERE scope = :scope AND key = :key
    """
).bindparams(bindparam("headers", type_=JSON), bindparam("body", type_=JSON(none_as_null=True)))
_DELETE_EXPIRED = text(
    """
    DELETE FROM scheduler.idempotency_keys WHERE (scope, key) IN (
        SELECT scope, key FROM scheduler.idempotency_keys
        WHERE created_at < (SELECT scheduler.now()) - interval '1 day'
        LIMIT :limit FOR UPDATE SKIP LOCKED)
    """
)


async def begin(connection: AsyncConnection, *, scope: str, key: str, fingerprint: bytes) -> StoredResponse | None:
    """Take the key for this request; None means that it is the first and goes on, else the answer to give again.

    Raises:
        IdempotencyKeyReusedError: the key belongs to a request with another fingerprint.

    """
    identity = {"scope": scope, "key": key}
    if await connection.scalar(_BEGIN, {**identity, "fingerprint": fingerprint}):
        return None
    return _stored((await connection.execute(_READ, identity)).one(), fingerprint)


async def find(connection: AsyncConnection, *, scope: str, key: str, fingerprint: bytes) -> StoredResponse | None:
    """Look whether this request was answered before, taking nothing.

    Raises:
        IdempotencyKeyReusedError: the key belongs to a request with another fingerprint.

    """
    stored = (await connection.execute(_READ, {"scope": scope, "key": key})).one_or_none()
    if stored is None or stored.is_expired:
        return None
    return _stored(stored, fingerprint)


async def complete(
    connection: AsyncConnection, *, scope: str, key: str, status: int, headers: dict[str, str], body: object
) -> None:
    """Keep the answer to give again; nothing is kept if the transaction is rolled back."""
    await connection.execute(
        _COMPLETE, {"scope": scope, "key": key, "status": status, "headers": headers, "body": body}
    )


async def delete_expired(connection: AsyncConnection, *, limit: int) -> int:
    """Forget up to `limit` keys of more than a day ago; returns how many."""
    return (await connection.execute(_DELETE_EXPIRED, {"limit": limit})).rowcount


def _stored(row: Row[Any], fingerprint: bytes) -> StoredResponse:
    if row.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError("This Idempotency-Key was used with another request; use a new key")
    return StoredResponse(status=row.status, headers=row.headers, body=row.body)
