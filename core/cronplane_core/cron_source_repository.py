"""Which crons are defined by which resources in a cluster, and what becomes of them when those are gone.

The leader asks and writes here, in transactions that it has fenced with its lease; no query is filtered by
organization. Definitions are changed elsewhere (`cron_repository`).
"""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.cron_repository import DefiningResource


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceCron:
    """A cron that a resource defines, in short; one that `is_held` lost it together with too many others."""

    id: UUID
    organization_id: UUID
    resource: DefiningResource
    is_held: bool


_READ = text(
    """
    SELECT id, organization_id, source_namespace, source_name, source_uid, source_generation, source_scope,
           deletion_held
    FROM scheduler.cron_jobs WHERE deleted_at IS NULL AND source = 'kubernetes'
    """
)

_HOLD = text(
    """
    UPDATE scheduler.cron_jobs SET deletion_held = (id = ANY(CAST(:held AS uuid[])))
    WHERE deleted_at IS NULL AND source = 'kubernetes' AND deletion_held <> (id = ANY(CAST(:held AS uuid[])))
    """
)


async def read_all(connection: AsyncConnection) -> list[ResourceCron]:
    """Give every cron that a resource defines, or has defined before it went with its scope."""
    return [
        ResourceCron(
            id=row.id,
            organization_id=row.organization_id,
            resource=DefiningResource(
                namespace=row.source_namespace,
                name=row.source_name,
                uid=row.source_uid,
                generation=row.source_generation,
                scope=row.source_scope,
            ),
            is_held=row.deletion_held,
        )
        for row in await connection.execute(_READ)
    ]


async def hold(connection: AsyncConnection, *, cron_ids: Collection[UUID]) -> None:
    """Note that the deletion of these crons is held, and that of no other one."""
    await connection.execute(_HOLD, {"held": arrays.uuids(cron_ids)})
