"""How runs change, for many at a time: claim, start, finish, and what is done about runs that a leader left behind.

Every change is a compare-and-set that names the state it leaves, so that saying it twice, or late, changes nothing.
The caller has fenced the transaction with the lease (`lease.check`) and commits it. Nothing is decided here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import CursorResult, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.tables import Overlap, RunStatus, TriggerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedCron:
    """A cron as it is while a claim holds it: no edit, pause or deletion can commit before the claim does.

    `is_granted` says whether its organization may use its entry.
    """

    id: UUID
    organization_id: UUID
    generation: int
    enabled: bool
    is_granted: bool
    overlap: Overlap
    catchup_window: timedelta | None
    active_run_id: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to insert for a fire; a `missed` one stands for all fires from `scheduled_for` to `missed_until`."""

    id: UUID
    organization_id: UUID
    cron_id: UUID
    scheduled_for: datetime
    status: RunStatus
    reason: str
    message: str
    generation: int
    missed_until: datetime | None = None
    missed_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """A job that moves from the fire being claimed (aware, UTC) to its next one, None if there is none."""

    cron_id: UUID
    generation: int
    claimed: datetime
    next_run_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedAttempt:
    """An attempt that passed the start gate, with all that its executor is told. Instants are aware and in UTC."""

    run_id: UUID
    number: int
    nonce: UUID
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    payload_json: str
    scheduled_for: datetime
    trigger_kind: TriggerKind
    started_at: datetime
    timeout: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAttempt:
    """How an attempt ended. `result_json` and `error_json` are JSON texts that PostgreSQL accepts."""

    run_id: UUID
    number: int
    nonce: UUID
    status: RunStatus
    reason: str
    message: str
    result_json: str | None
    error_json: str | None
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """A run that has reached a terminal state, for the record. `cron_name` is what people call its cron."""

    id: UUID
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    scheduled_for: datetime
    status: RunStatus
    reason: str
    started_at: datetime | None
    finished_at: datetime


_LOCK_CRONS = text(
    """
    SELECT c.id, c.organization_id, c.generation, c.enabled AND c.deleted_at IS NULL AS enabled,
           o.entrypoints IS NULL OR CAST(c.entrypoint AS text) = ANY(o.entrypoints) AS is_granted,
           c.overlap, c.catchup_window,
           (SELECT r.id FROM scheduler.cron_runs r
            WHERE r.cron_id = c.id AND r.finished_at IS NULL LIMIT 1) AS active_run_id
    FROM scheduler.cron_jobs c JOIN scheduler.organizations o ON o.id = c.organization_id
    WHERE c.id = ANY(CAST(:ids AS uuid[]))
    FOR SHARE OF c SKIP LOCKED
    """
)
_CLAIM = text(
    """
    WITH advanced AS (
        UPDATE scheduler.apscheduler_jobs job SET next_run_time = due.next_run_time
        FROM unnest(CAST(:job_ids AS uuid[]), CAST(:job_generations AS bigint[]), CAST(:claimed AS timestamptz[]),
                    CAST(:next_run_times AS timestamptz[])) AS due (id, generation, claimed, next_run_time)
        WHERE job.id = due.id AND job.generation = due.generation AND job.next_run_time = due.claimed
        RETURNING job.id
    )
    INSERT INTO scheduler.cron_runs (id, organization_id, cron_id, scheduled_for, trigger_kind, status, reason, message,
                                     generation, epoch, finished_at, missed_until, missed_count)
    SELECT run.id, run.organization_id, run.cron_id, run.scheduled_for, 'schedule', run.status, run.reason, run.message,
           run.generation, :epoch, CASE run.status WHEN 'queued' THEN NULL ELSE CAST(:now AS timestamptz) END,
           run.missed_until, run.missed_count
    FROM unnest(CAST(:ids AS uuid[]), CAST(:organization_ids AS uuid[]), CAST(:cron_ids AS uuid[]),
                CAST(:scheduled_for AS timestamptz[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
                CAST(:messages AS text[]), CAST(:generations AS bigint[]), CAST(:missed_until AS timestamptz[]),
                CAST(:missed_counts AS bigint[]))
         AS run (id, organization_id, cron_id, scheduled_for, status, reason, message, generation, missed_until,
                 missed_count)
    JOIN advanced ON advanced.id = run.cron_id
    ON CONFLICT (cron_id, scheduled_for) WHERE trigger_kind = 'schedule' DO NOTHING
    RETURNING id
    """
)
_START = text(
    """
    WITH asked AS (
        SELECT * FROM unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[])) AS asked (run_id, nonce)
    ), started AS (
        UPDATE scheduler.cron_runs run
        SET status = 'running', reason = 'Started', message = 'An attempt is under way.', attempts = run.attempts + 1,
            started_at = coalesce(run.started_at, :now), generation = cron.generation, epoch = :epoch
        FROM asked, scheduler.cron_jobs cron, scheduler.organizations organization
        WHERE run.id = asked.run_id AND run.status = 'queued' AND cron.id = run.cron_id AND cron.deleted_at IS NULL
          AND organization.id = cron.organization_id
          AND (organization.entrypoints IS NULL OR CAST(cron.entrypoint AS text) = ANY(organization.entrypoints))
        RETURNING run.id AS run_id, run.attempts AS number, asked.nonce, run.organization_id, run.cron_id,
                  cron.name AS cron_name, CAST(cron.entrypoint AS text) AS entrypoint,
                  CAST(coalesce(run.execution_payload, cron.execution_payload) AS text) AS payload_json,
                  run.scheduled_for, run.trigger_kind, CAST(:now AS timestamptz) AS started_at, cron.timeout
    ), attempt AS (
        INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at, started_at)
        SELECT run_id, number, nonce, :epoch, :location, started_at + timeout + :margin, started_at FROM started
    )
    SELECT * FROM started
    """
)
_STARTED = text(
    """
    SELECT run.id AS run_id, attempt.number, attempt.nonce, run.organization_id, run.cron_id, cron.name AS cron_name,
           CAST(cron.entrypoint AS text) AS entrypoint,
           CAST(coalesce(run.execution_payload, cron.execution_payload) AS text) AS payload_json,
           run.scheduled_for, run.trigger_kind, attempt.started_at, cron.timeout
    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[])) AS asked (run_id, nonce)
    JOIN scheduler.cron_attempts attempt ON attempt.run_id = asked.run_id AND attempt.nonce = asked.nonce
    JOIN scheduler.cron_runs run ON run.id = attempt.run_id
    JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE attempt.outcome IS NULL
    """
)
# As if it had never passed the gate: its body was not entered, so it does not count as an attempt.
_HAND_BACK = text(
    """
    WITH attempt AS (
        DELETE FROM scheduler.cron_attempts WHERE nonce = ANY(:nonces) AND outcome IS NULL RETURNING run_id, number
    )
    UPDATE scheduler.cron_runs run
    SET status = 'queued', reason = 'HandedBack', message = 'The runner stopped before the run started.',
        attempts = attempt.number - 1, epoch = :epoch,
        started_at = CASE WHEN attempt.number > 1 THEN run.started_at END
    FROM attempt WHERE run.id = attempt.run_id AND run.status = 'running'
    """
)
_FINISH = text(
    """
    WITH outcome AS (
        SELECT * FROM unnest(
            CAST(:run_ids AS uuid[]), CAST(:numbers AS integer[]), CAST(:nonces AS uuid[]), CAST(:statuses AS text[]),
            CAST(:reasons AS text[]), CAST(:messages AS text[]), CAST(:results AS jsonb[]), CAST(:errors AS jsonb[]),
            CAST(:outputs AS text[]))
            AS ended (run_id, number, nonce, status, reason, message, result, error, output)
    ), attempt AS (
        UPDATE scheduler.cron_attempts attempt
        SET finished_at = :now, outcome = ended.status, reason = ended.reason, message = ended.message,
            error = ended.error, output = ended.output
        FROM outcome ended
        WHERE attempt.run_id = ended.run_id AND attempt.number = ended.number AND attempt.nonce = ended.nonce
          AND attempt.outcome IS NULL
        RETURNING ended.*
    )
    UPDATE scheduler.cron_runs run
    SET status = ended.status, reason = ended.reason, message = ended.message, result = ended.result,
        error = ended.error, finished_at = :now, epoch = :epoch
    FROM attempt ended
    WHERE run.id = ended.run_id AND run.status = 'running'
    RETURNING run.id
    """
)
# The workers of an earlier epoch died with their runner, so whatever they had open ends here.
_END_LOST = text(
    """
    WITH attempt AS (
        UPDATE scheduler.cron_attempts attempt
        SET finished_at = :now, outcome = 'lost', reason = 'RunnerGone', message = :message
        FROM scheduler.cron_runs run
        WHERE run.finished_at IS NULL AND run.status = 'running' AND attempt.run_id = run.id
          AND attempt.outcome IS NULL AND attempt.epoch < :epoch
        RETURNING attempt.run_id
    )
    UPDATE scheduler.cron_runs run
    SET status = 'lost', reason = 'RunnerGone', message = :message, finished_at = :now, epoch = :epoch
    FROM attempt, scheduler.cron_jobs cron
    WHERE run.id = attempt.run_id AND run.status = 'running' AND cron.id = run.cron_id
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name, run.scheduled_for, run.status,
              run.reason, run.started_at, run.finished_at
    """
)
_CANCEL_DELETED = text(
    """
    UPDATE scheduler.cron_runs run
    SET status = 'cancelled', reason = 'CronDeleted', message = 'The cron was deleted before the run started.',
        finished_at = :now, epoch = :epoch
    FROM scheduler.cron_jobs cron
    WHERE run.finished_at IS NULL AND run.status = 'queued' AND cron.id = run.cron_id
      AND cron.deleted_at IS NOT NULL
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name, run.scheduled_for, run.status,
              run.reason, run.started_at, run.finished_at
    """
)
_SKIP_NOT_GRANTED = text(
    """
    UPDATE scheduler.cron_runs run
    SET status = 'skipped', reason = 'EntryNotGranted', finished_at = :now, epoch = :epoch,
        message = 'The entry was taken back from the organization before the run started.'
    FROM scheduler.cron_jobs cron JOIN scheduler.organizations organization ON organization.id = cron.organization_id
    WHERE run.finished_at IS NULL AND run.status = 'queued' AND cron.id = run.cron_id
      AND (organization.entrypoints IS NULL
           OR CAST(cron.entrypoint AS text) = ANY(organization.entrypoints)) IS NOT TRUE
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name, run.scheduled_for, run.status,
              run.reason, run.started_at, run.finished_at
    """
)
_QUEUED = text(
    """
    SELECT run.id FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE run.finished_at IS NULL AND run.status = 'queued' AND cron.deleted_at IS NULL
      AND CAST(cron.entrypoint AS text) = ANY(:entrypoints)
    ORDER BY run.created_at LIMIT :limit
    """
)


async def lock_crons(connection: AsyncConnection, *, cron_ids: Sequence[UUID]) -> dict[UUID, LockedCron]:
    """Hold these crons still until the transaction ends; one that is being changed right now is left out."""
    rows = await connection.execute(_LOCK_CRONS, {"ids": arrays.uuids(cron_ids)})
    return {
        row.id: LockedCron(
            id=row.id,
            organization_id=row.organization_id,
            generation=row.generation,
            enabled=row.enabled,
            is_granted=row.is_granted,
            overlap=Overlap(row.overlap),
            catchup_window=row.catchup_window,
            active_run_id=row.active_run_id,
        )
        for row in rows
    }


async def claim(
    connection: AsyncConnection, *, advances: Sequence[Advance], runs: Sequence[NewRun], epoch: int, now: datetime
) -> set[UUID]:
    """Insert the runs of each job that moves on, both or neither; returns the ids of the runs that were inserted.

    A job that is not where `advances` says has been claimed before, and nothing of it is inserted.
    """
    inserted = await connection.scalars(
        _CLAIM,
        {
            "job_ids": arrays.uuids(advance.cron_id for advance in advances),
            "job_generations": arrays.integers(advance.generation for advance in advances),
            "claimed": arrays.instants(advance.claimed for advance in advances),
            "next_run_times": arrays.instants(advance.next_run_time for advance in advances),
            "ids": arrays.uuids(run.id for run in runs),
            "organization_ids": arrays.uuids(run.organization_id for run in runs),
            "cron_ids": arrays.uuids(run.cron_id for run in runs),
            "scheduled_for": arrays.instants(run.scheduled_for for run in runs),
            "statuses": arrays.texts(run.status.value for run in runs),
            "reasons": arrays.texts(run.reason for run in runs),
            "messages": arrays.texts(run.message for run in runs),
            "generations": arrays.integers(run.generation for run in runs),
            "missed_until": arrays.instants(run.missed_until for run in runs),
            "missed_counts": arrays.integers(run.missed_count for run in runs),
            "epoch": epoch,
            "now": now,
        },
    )
    return set(inserted)


async def start(
    connection: AsyncConnection,
    *,
    nonces: Mapping[UUID, UUID],
    epoch: int,
    location: str,
    now: datetime,
    margin: timedelta,
) -> list[StartedAttempt]:
    """Let queued runs through the start gate, each at most once, with a new attempt; others are left out.

    `nonces` gives each run's id the nonce of the attempt. The attempt's lease lasts for its timeout and `margin`;
    `location` says where it runs.
    """
    asked = {"run_ids": arrays.uuids(nonces), "nonces": arrays.uuids(nonces.values())}
    return _started(
        await connection.execute(_START, {**asked, "epoch": epoch, "location": location, "now": now, "margin": margin})
    )


async def read_started(connection: AsyncConnection, *, nonces: Mapping[UUID, UUID]) -> list[StartedAttempt]:
    """Give the open attempts that have these nonces, to a caller that lost the answer of `start`."""
    asked = {"run_ids": arrays.uuids(nonces), "nonces": arrays.uuids(nonces.values())}
    return _started(await connection.execute(_STARTED, asked))


async def finish(
    connection: AsyncConnection, *, attempts: Sequence[FinishedAttempt], epoch: int, now: datetime
) -> set[UUID]:
    """End these attempts and their runs; gives the runs that ended.

    An attempt that is over already, or another's, changes nothing.
    """
    ended = await connection.scalars(
        _FINISH,
        {
            "run_ids": arrays.uuids(attempt.run_id for attempt in attempts),
            "numbers": arrays.integers(attempt.number for attempt in attempts),
            "nonces": arrays.uuids(attempt.nonce for attempt in attempts),
            "statuses": arrays.texts(attempt.status.value for attempt in attempts),
            "reasons": arrays.texts(attempt.reason for attempt in attempts),
            "messages": arrays.texts(attempt.message for attempt in attempts),
            "results": arrays.texts(attempt.result_json for attempt in attempts),
            "errors": arrays.texts(attempt.error_json for attempt in attempts),
            "outputs": arrays.texts(attempt.output for attempt in attempts),
            "epoch": epoch,
            "now": now,
        },
    )
    return set(ended)


async def hand_back(connection: AsyncConnection, *, nonces: Sequence[UUID], epoch: int) -> None:
    """Queue again the runs of attempts that passed the gate and whose body was never entered."""
    await connection.execute(_HAND_BACK, {"nonces": list(nonces), "epoch": epoch})


async def end_lost(connection: AsyncConnection, *, epoch: int, now: datetime) -> list[FinishedRun]:
    """End as `lost` what was running under an earlier epoch."""
    message = "The runner that ran it is gone; how far it got is not known."
    return _finished(await connection.execute(_END_LOST, {"epoch": epoch, "now": now, "message": message}))


async def cancel_deleted(connection: AsyncConnection, *, epoch: int, now: datetime) -> list[FinishedRun]:
    """End as `cancelled` the queued runs of deleted crons."""
    return _finished(await connection.execute(_CANCEL_DELETED, {"epoch": epoch, "now": now}))


async def skip_not_granted(connection: AsyncConnection, *, epoch: int, now: datetime) -> list[FinishedRun]:
    """End as `skipped` the queued runs whose organization may not use their entry any more."""
    return _finished(await connection.execute(_SKIP_NOT_GRANTED, {"epoch": epoch, "now": now}))


async def queued_runs(connection: AsyncConnection, *, entrypoints: Sequence[str], limit: int) -> list[UUID]:
    """Name up to `limit` queued runs of these entries, oldest first."""
    return list(await connection.scalars(_QUEUED, {"entrypoints": list(entrypoints), "limit": limit}))


def _started(rows: CursorResult[Any]) -> list[StartedAttempt]:
    return [
        StartedAttempt(
            run_id=row.run_id,
            number=row.number,
            nonce=row.nonce,
            organization_id=row.organization_id,
            cron_id=row.cron_id,
            cron_name=row.cron_name,
            entrypoint=row.entrypoint,
            payload_json=row.payload_json,
            scheduled_for=row.scheduled_for,
            trigger_kind=TriggerKind(row.trigger_kind),
            started_at=row.started_at,
            timeout=row.timeout,
        )
        for row in rows
    ]


def _finished(rows: CursorResult[Any]) -> list[FinishedRun]:
    return [
        FinishedRun(
            id=row.id,
            organization_id=row.organization_id,
            cron_id=row.cron_id,
            cron_name=row.cron_name,
            scheduled_for=row.scheduled_for,
            status=RunStatus(row.status),
            reason=row.reason,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for row in rows
    ]
