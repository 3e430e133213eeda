"""What the reconciler reads and writes: definitions as the runner needs them, and APScheduler's own state.

Definitions live in `cron_jobs`; `apscheduler_jobs` holds only when each cron fires next and for which generation that
was computed. No query here is filtered by organization: the runner serves all of them.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class CronState:
    """A cron and what is stored of its job. Instants are aware and in UTC; the job's fields are None if it has no row.

    `enabled` is false for deleted crons. `next_run_time` is the first fire that is not claimed yet.
    """

    id: UUID
    organization_id: UUID
    generation: int
    cron_expr: str
    tz: str
    enabled: bool
    effective_from: datetime
    job_generation: int | None
    next_run_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """One row of `cron_job_versions`, without its policies."""

    cron_id: UUID
    generation: int
    effective_from: datetime
    cron_expr: str
    tz: str
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """One row of `apscheduler_jobs`; `next_run_time` (aware, UTC) is None if the cron does not fire again."""

    id: UUID
    generation: int
    next_run_time: datetime | None


_STATE = """
    SELECT c.id, c.organization_id, c.generation, c.cron_expr, c.tz, c.enabled AND c.deleted_at IS NULL AS enabled,
           c.effective_from, j.generation AS job_generation, j.next_run_time
    FROM scheduler.cron_jobs c LEFT JOIN scheduler.apscheduler_jobs j ON j.id = c.id
"""
# A deleted cron stays in sight until its last owed fires are claimed, also if no runner has ever seen it before.
_ALL = text(
    f"""
    {_STATE}
    WHERE c.deleted_at IS NULL OR j.next_run_time IS NOT NULL OR j.generation IS DISTINCT FROM c.generation
    """
)
_BY_ID = text(f"{_STATE} WHERE c.id = ANY(CAST(:ids AS uuid[]))")
_SNAPSHOT = text("SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)")
_CHANGED = text(
    """
    SELECT id FROM scheduler.cron_jobs
    WHERE changed_by_transaction >= CAST(CAST(:since AS text) AS xid8)
    """
)
_VERSIONS = text(
    """
    SELECT cron_id, generation, effective_from, cron_expr, tz, enabled
    FROM scheduler.cron_job_versions WHERE cron_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY cron_id, generation
    """
)
_STORE = text(
    """
    INSERT INTO scheduler.apscheduler_jobs AS job (id, generation, next_run_time)
    SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS bigint[]), CAST(:next_run_times AS timestamptz[]))
    ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, next_run_time = excluded.next_run_time
    """
)


async def stream_all(connection: AsyncConnection) -> AsyncIterator[CronState]:
    """Read every cron that fires or has something left to claim, in chunks that keep memory bounded."""
    result = await connection.stream(_ALL)
    # The crons of an organization share its id, which would weigh 10 MB in 100,000 copies.
    organizations: dict[UUID, UUID] = {}
    async for row in result:
        yield _state(row, organizations.setdefault(row.organization_id, row.organization_id))


async def read_by_id(connection: AsyncConnection, *, cron_ids: Sequence[UUID]) -> list[CronState]:
    """Read the named crons, deleted ones included; those whose row is gone are left out."""
    rows = await connection.execute(_BY_ID, {"ids": arrays.uuids(cron_ids)})
    return [_state(row, row.organization_id) for row in rows]


async def snapshot(connection: AsyncConnection) -> int:
    """Give the oldest transaction still under way: whatever it or a later one changes is seen by `read_changed`."""
    oldest: int = (await connection.execute(_SNAPSHOT)).scalar_one()
    return oldest


async def read_changed(connection: AsyncConnection, *, since: int) -> list[UUID]:
    """Name the crons changed by transaction `since` or any later one; some may have been read before."""
    return list(await connection.scalars(_CHANGED, {"since": since}))


async def read_versions(connection: AsyncConnection, *, cron_ids: Sequence[UUID]) -> dict[UUID, list[StoredVersion]]:
    """Read every version of these crons, oldest first."""
    versions: dict[UUID, list[StoredVersion]] = {cron_id: [] for cron_id in cron_ids}
    for row in await connection.execute(_VERSIONS, {"ids": arrays.uuids(cron_ids)}):
        versions[row.cron_id].append(
            StoredVersion(
                cron_id=row.cron_id,
                generation=row.generation,
                effective_from=row.effective_from,
                cron_expr=row.cron_expr,
                tz=row.tz,
                enabled=row.enabled,
            )
        )
    return versions


async def store(connection: AsyncConnection, *, jobs: Sequence[JobState]) -> None:
    """Write what is to be remembered of these jobs; a job's row is made if it is absent."""
    await connection.execute(
        _STORE,
        {
            "ids": arrays.uuids(job.id for job in jobs),
            "generations": arrays.integers(job.generation for job in jobs),
            "next_run_times": arrays.instants(job.next_run_time for job in jobs),
        },
    )


def _state(row: Row[tuple[object, ...]], organization_id: UUID) -> CronState:
    return CronState(
        id=row.id,
        organization_id=organization_id,
        generation=row.generation,
        cron_expr=row.cron_expr,
        tz=row.tz,
        enabled=row.enabled,
        effective_from=row.effective_from,
        job_generation=row.job_generation,
        next_run_time=row.next_run_time,
    )
