"""Whether a process can serve with the database as it is, and if not, what an administrator has to do."""

from collections.abc import Iterable

from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.schema_revision import Readiness, SchemaState, judge

_INSUFFICIENT_PRIVILEGE = "42501"
_TABLES = text(
    """
    SELECT to_regclass('scheduler.alembic_version') IS NOT NULL AS has_revision,
           to_regclass('scheduler.schema_compatibility') IS NOT NULL AS has_compatibility
    """
)
_REVISION = text("SELECT version_num, NULL AS oldest_code FROM scheduler.alembic_version")
_REVISIONS = text(
    """
    SELECT version_num, oldest_code_revision AS oldest_code
    FROM scheduler.alembic_version LEFT JOIN scheduler.schema_compatibility ON true
    """
)
_MISSING = text(
    """
    SELECT name FROM unnest(CAST(:names AS text[])) AS name
    WHERE name NOT IN (
        SELECT enumlabel FROM pg_enum WHERE enumtypid = CAST('scheduler.entrypoint' AS regtype))
    ORDER BY name
    """
)


async def find_readiness(connection: AsyncConnection, *, entries: Iterable[str]) -> Readiness:
    """Say what keeps this process from serving `entries`, if anything does, and what else is to be told.

    Where the role may read nothing, the transaction is of no more use.
    """
    try:
        readiness = judge(await _read_state(connection))
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != _INSUFFICIENT_PRIVILEGE:
            raise
        return Readiness(
            obstacle="This role may not use the schema: run `cronplane migrate` as its owner, "
            "with CRONPLANE_SERVICE_ROLE set to this role"
        )
    if readiness.obstacle is not None:
        return readiness
    missing = list(await connection.scalars(_MISSING, {"names": [str(name) for name in entries]}))
    if missing:
        return Readiness(
            obstacle=f"The database does not know the entries {', '.join(missing)}: "
            "run `cronplane migrate` as its owner"
        )
    return readiness


async def _read_state(connection: AsyncConnection) -> SchemaState:
    tables = (await connection.execute(_TABLES)).one()
    if not tables.has_revision:
        return SchemaState(revision=None, oldest_code=None)
    found = (await connection.execute(_REVISIONS if tables.has_compatibility else _REVISION)).one()
    return SchemaState(revision=found.version_num, oldest_code=found.oldest_code)
