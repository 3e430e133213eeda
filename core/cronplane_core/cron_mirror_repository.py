"""What resources show of each cron and of all runs, and where: `cron_mirrors` keeps a cron's name for its life.

No query here is filtered by organization: the mirror serves all of them. Nothing here reads a payload.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.tables import CronSource, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRun:
    """A run as a mirror shows it; `job` is the Job of its last attempt, if it had one."""

    id: UUID
    scheduled_for: datetime
    status: RunStatus
    reason: str
    job: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPlace:
    """Where the mirror of a cron is, and the UID of the resource that was made there, if one was."""

    namespace: str
    name: str
    uid: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCron:
    """A cron as a mirror shows it. Instants are aware and in UTC; `policies` are named and valued as in the API.

    `place` is None if it has not been mirrored yet; a cron that a resource defines has none, but `source_uid` and
    `source_generation`, those of the resource as it was registered.
    """

    id: UUID
    organization_id: UUID
    name: str
    cron_expr: str
    tz: str
    entrypoint: str
    enabled: bool
    policies: Mapping[str, Any]
    generation: int
    source: CronSource
    source_uid: str | None
    source_generation: int | None
    next_fire: datetime | None
    is_scheduled: bool
    runs: tuple[ShownRun, ...]
    failures: int
    place: MirrorPlace | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How many runs wait for an attempt, how many are running wherever that is, and how many mirrors are made."""

    queued: int
    running: int
    mirrored: int


_POLICIES = (
    "overlap", "catchup", "catchup_window", "timeout", "max_attempts", "backoff_initial", "backoff_maximum",
    "run_timeout", "jitter", "starts_at", "ends_at", "max_runs",
)  # fmt: skip
# How often a cron has failed in a row is counted only where its newest runs do not tell.
_SHOWN = """
    SELECT c.id, c.organization_id, c.name, c.cron_expr, c.tz, CAST(c.entrypoint AS text) AS entrypoint, c.enabled,
           c.generation, c.source, c.source_uid, c.source_generation, j.next_run_time,
           coalesce(j.generation = c.generation, false) AS is_scheduled,
           coalesce(newest.runs, '[]') AS runs, mirror.namespace, mirror.name AS mirror_name, mirror.uid,
           c.overlap, c.catchup, c.catchup_window, c.timeout, c.max_attempts, c.backoff_initial, c.backoff_maximum,
           c.run_timeout, c.jitter, c.starts_at, c.ends_at, c.max_runs,
           CASE WHEN newest.has_failed THEN (
               SELECT count(*) FROM (
                   SELECT sum(CASE status WHEN 'completed' THEN 1 ELSE 0 END)
                          OVER (ORDER BY scheduled_for DESC, id DESC) AS completed
                   FROM (
                       SELECT id, status, scheduled_for FROM scheduler.cron_runs
                       WHERE cron_id = c.id AND status IN ('completed', 'error', 'timed_out', 'lost')
                       ORDER BY scheduled_for DESC, id DESC LIMIT :most_failures
                   ) judged
               ) counted WHERE completed = 0
           ) ELSE 0 END AS failures
    FROM scheduler.cron_jobs c
    LEFT JOIN scheduler.apscheduler_jobs j ON j.id = c.id
    LEFT JOIN scheduler.cron_mirrors mirror ON mirror.cron_id = c.id
    LEFT JOIN LATERAL (
        SELECT jsonb_agg(jsonb_build_object('id', id, 'scheduled_for', scheduled_for, 'status', status,
                                            'reason', reason, 'job', job) ORDER BY scheduled_for DESC, id DESC) AS runs,
               bool_or(status IN ('error', 'timed_out', 'lost')) AS has_failed
        FROM (
            SELECT id, scheduled_for, status, reason,
                   (SELECT namespace || '/' || name FROM scheduler.attempt_jobs WHERE run_id = cron_runs.id
                    ORDER BY number DESC LIMIT 1) AS job
            FROM scheduler.cron_runs WHERE cron_id = c.id
            ORDER BY scheduled_for DESC, id DESC LIMIT 5
        ) latest
    ) newest ON true
    WHERE c.deleted_at IS NULL AND {condition}
    ORDER BY c.id LIMIT :limit
"""
_MOST_FAILURES = 100
_PAGE = text(_SHOWN.format(condition="c.id > :after"))
_BY_ID = text(_SHOWN.format(condition="c.id = ANY(CAST(:ids AS uuid[]))"))
_TOTALS = text(
    """
    SELECT count(*) FILTER (WHERE status = 'queued') AS queued, count(*) FILTER (WHERE status = 'running') AS running,
           (SELECT count(*) FROM scheduler.cron_mirrors WHERE uid IS NOT NULL) AS mirrored
    FROM scheduler.cron_runs WHERE finished_at IS NULL
    """
)
_TAKE_PLACE = text(
    """
    INSERT INTO scheduler.cron_mirrors (cron_id, namespace, name) VALUES (:cron_id, :namespace, :name)
    ON CONFLICT DO NOTHING RETURNING true
    """
)
_KEEP_UID = text("UPDATE scheduler.cron_mirrors SET uid = :uid WHERE cron_id = :cron_id AND uid IS DISTINCT FROM :uid")
_ABANDONED = text(
    """
    SELECT mirror.cron_id, mirror.namespace, mirror.name, mirror.uid
    FROM scheduler.cron_mirrors mirror JOIN scheduler.cron_jobs c ON c.id = mirror.cron_id
    WHERE c.deleted_at IS NOT NULL
    """
)
_AMONG = text("SELECT uid FROM scheduler.cron_mirrors WHERE uid = ANY(CAST(:uids AS text[]))")
_SHOWN_AT = text(
    """
    WITH place AS (SELECT * FROM unnest(CAST(:namespaces AS text[]), CAST(:names AS text[])) AS place (namespace, name))
    SELECT cron_id FROM scheduler.cron_mirrors JOIN place USING (namespace, name)
    UNION
    SELECT id FROM scheduler.cron_jobs JOIN place ON source_namespace = namespace AND source_name = place.name
    WHERE deleted_at IS NULL AND source = 'kubernetes'
    """
)
_MOVE = text("UPDATE scheduler.cron_mirrors SET name = :name, uid = NULL WHERE cron_id = :cron_id")
_GIVE_UP = text("DELETE FROM scheduler.cron_mirrors WHERE cron_id = :cron_id")


async def read_page(connection: AsyncConnection, *, after: UUID, limit: int) -> list[ShownCron]:
    """Read the crons that are not deleted, in the order of their ids, from behind `after`."""
    parameters = {"after": after, "limit": limit, "most_failures": _MOST_FAILURES}
    return [_shown(row) for row in await connection.execute(_PAGE, parameters)]


async def read_by_id(connection: AsyncConnection, *, cron_ids: Sequence[UUID]) -> list[ShownCron]:
    """Read those of these crons that are not deleted."""
    parameters = {"ids": arrays.uuids(cron_ids), "limit": len(cron_ids), "most_failures": _MOST_FAILURES}
    return [_shown(row) for row in await connection.execute(_BY_ID, parameters)]


async def read_totals(connection: AsyncConnection) -> Totals:
    """Count runs and mirrors of all organizations."""
    return Totals(**(await connection.execute(_TOTALS)).mappings().one())


async def take_place(connection: AsyncConnection, *, cron_id: UUID, namespace: str, name: str) -> bool:
    """Keep a name in a namespace for a cron; False if it has one already, or another cron has this one."""
    return await connection.scalar(_TAKE_PLACE, {"cron_id": cron_id, "namespace": namespace, "name": name}) is not None


async def keep_uid(connection: AsyncConnection, *, cron_id: UUID, uid: str) -> None:
    """Note which resource is the mirror of a cron."""
    await connection.execute(_KEEP_UID, {"cron_id": cron_id, "uid": uid})


async def move_place(connection: AsyncConnection, *, cron_id: UUID, name: str) -> None:
    """Give the mirror of a cron another name, under which no resource has been made yet."""
    await connection.execute(_MOVE, {"cron_id": cron_id, "name": name})


async def read_mirrors_among(connection: AsyncConnection, *, uids: Collection[str]) -> set[str]:
    """Give those of these UIDs that are mirrors of crons."""
    return set(await connection.scalars(_AMONG, {"uids": arrays.texts(uids)})) if uids else set()


async def read_shown_at(connection: AsyncConnection, *, places: Collection[tuple[str, str]]) -> set[UUID]:
    """Name the crons that resources at these places (namespace, name) mirror or define."""
    if not places:
        return set()
    namespaces, names = (arrays.texts(part) for part in zip(*places, strict=True))
    return set(await connection.scalars(_SHOWN_AT, {"namespaces": namespaces, "names": names}))


async def read_abandoned(connection: AsyncConnection) -> dict[UUID, MirrorPlace]:
    """Give the mirrors of crons that were deleted."""
    rows = await connection.execute(_ABANDONED)
    return {row.cron_id: MirrorPlace(namespace=row.namespace, name=row.name, uid=row.uid) for row in rows}


async def give_place_up(connection: AsyncConnection, *, cron_id: UUID) -> None:
    """Forget where the mirror of a cron was."""
    await connection.execute(_GIVE_UP, {"cron_id": cron_id})


def _shown(row: Row[Any]) -> ShownCron:
    place = None
    if row.namespace is not None:
        place = MirrorPlace(namespace=row.namespace, name=row.mirror_name, uid=row.uid)
    return ShownCron(
        id=row.id,
        organization_id=row.organization_id,
        name=row.name,
        cron_expr=row.cron_expr,
        tz=row.tz,
        entrypoint=row.entrypoint,
        enabled=row.enabled,
        policies={name: getattr(row, name) for name in _POLICIES},
        generation=row.generation,
        source=CronSource(row.source),
        source_uid=row.source_uid,
        source_generation=row.source_generation,
        next_fire=row.next_run_time,
        is_scheduled=row.is_scheduled,
        runs=tuple(_run(found) for found in row.runs),
        failures=row.failures,
        place=place,
    )


def _run(found: Mapping[str, Any]) -> ShownRun:
    return ShownRun(
        id=UUID(found["id"]),
        scheduled_for=datetime.fromisoformat(found["scheduled_for"]),
        status=RunStatus(found["status"]),
        reason=found["reason"],
        job=found["job"],
    )
