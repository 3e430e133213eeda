"""Whether a process can serve with the database as it is, and if not, what an administrator has to do."""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_HAS_SCHEMA = text("SELECT to_regclass('scheduler.leases') IS NOT NULL")
_MISSING = text(
    """
    SELECT name FROM unnest(CAST(:names AS text[])) AS name
    WHERE name NOT IN (
        SELECT enumlabel FROM pg_enum WHERE enumtypid = CAST('scheduler.entrypoint' AS regtype))
    ORDER BY name
    """
)


async def find_obstacle(connection: AsyncConnection, *, entries: Iterable[str]) -> str | None:
    """Say what keeps this process from serving `entries`, in a sentence; None if nothing does."""
    if not await connection.scalar(_HAS_SCHEMA):
        return "The database has no schema yet: run `cronplane migrate` as its owner"
    missing = list(await connection.scalars(_MISSING, {"names": [str(name) for name in entries]}))
    if missing:
        return f"The database does not know the entries {', '.join(missing)}: run `cronplane migrate` as its owner"
    return None
