"""Which Kubernetes Job may run which attempt, how far that is, and what its pod wrote.

The leader writes here, in transactions that it has fenced with its lease; what becomes of runs is decided and carried
out elsewhere (`run_states`, `run_transitions`). No query here is filtered by organization, except the one of a log.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.tables import RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlaunchedAttempt:
    """The next attempt of a queued run, for which there is no Job. Instants are aware and in UTC.

    `since` is when it could have begun; `catchup_window` is None if the cron leaves that to us.
    """

    run_id: UUID
    number: int
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    timeout: timedelta
    since: datetime
    catchup_window: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAttempt:
    """The next attempt of a queued run with all that its body is told. Instants are aware and in UTC.

    `deadline` is the attempt's if it began now.
    """

    run_id: UUID
    number: int
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    payload_json: str
    scheduled_for: datetime
    trigger_kind: str
    deadline: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptJob:
    """The Job that may run an attempt."""

    run_id: UUID
    number: int
    namespace: str
    name: str
    uid: str
    service_account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsettledJob:
    """A Job for which something may be left to do, and how its attempt stands. Instants are aware and in UTC.

    `status`, `reason` and `attempts` are the run's. `has_begun` says whether the attempt has passed the start gate;
    `nonce` is its own while it is not over, `started_at` is when it passed the gate, `deadline` when it has to be over,
    `ended_at` when it was, or the run. An attempt of this number that went another way, because the entry was changed,
    is not the Job's.
    """

    job: AttemptJob
    created_at: datetime
    status: RunStatus
    reason: str
    attempts: int
    is_cancel_requested: bool
    has_begun: bool
    nonce: UUID | None
    started_at: datetime | None
    deadline: datetime | None
    ended_at: datetime | None

    @property
    def is_waiting(self) -> bool:
        """Say whether the attempt has yet to pass the start gate."""
        return self.status is RunStatus.QUEUED and self.attempts + 1 == self.job.number

    @property
    def awaited_since(self) -> datetime:
        """Give since when its pod could have been running: the gate, if it was passed first, or else the noting."""
        return self.started_at or self.created_at

    @property
    def under_way(self) -> UUID | None:
        """Give the attempt's nonce if it has passed the start gate and its process has yet to tell its end."""
        return self.nonce if self.status is RunStatus.RUNNING and self.attempts == self.job.number else None


_UNLAUNCHED = text(
    """
    SELECT run.id AS run_id, run.attempts + 1 AS number, run.organization_id, run.cron_id, cron.name AS cron_name,
           CAST(cron.entrypoint AS text) AS entrypoint,
           cron.timeout, cron.catchup_window,
           coalesce(run.not_before, CASE run.trigger_kind WHEN 'schedule' THEN run.scheduled_for
                                                          ELSE run.created_at END) AS since
    FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    LEFT JOIN LATERAL (
        SELECT true AS is_launched FROM scheduler.attempt_jobs
        WHERE run_id = run.id AND number = run.attempts + 1 OFFSET 0
    ) job ON true
    WHERE run.finished_at IS NULL AND run.status = 'queued' AND cron.deleted_at IS NULL
      AND run.cancel_requested_at IS NULL AND CAST(cron.entrypoint AS text) = ANY(:entrypoints)
      AND (run.not_before IS NULL OR run.not_before <= :now) AND job.is_launched IS NULL
      AND run.id <> ALL(CAST(:besides AS uuid[]))
    ORDER BY row_number() OVER (PARTITION BY run.organization_id ORDER BY run.created_at), run.created_at
    LIMIT :limit
    """
)
_PENDING = text(
    """
    SELECT run.id AS run_id, run.attempts + 1 AS number, run.organization_id, run.cron_id, cron.name AS cron_name,
           CAST(cron.entrypoint AS text) AS entrypoint,
           CAST(coalesce(run.execution_payload, cron.execution_payload) AS text) AS payload_json,
           run.scheduled_for, run.trigger_kind, least(scheduler.now() + cron.timeout, run.deadline) AS deadline
    FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE run.id = :run_id AND run.status = 'queued' AND run.attempts + 1 = :number
    """
)
_KEEP = text(
    """
    INSERT INTO scheduler.attempt_jobs (run_id, number, namespace, name, uid, service_account)
    SELECT kept.* FROM unnest(CAST(:run_ids AS uuid[]), CAST(:numbers AS integer[]), CAST(:namespaces AS text[]),
                              CAST(:names AS text[]), CAST(:uids AS text[]), CAST(:accounts AS text[]))
                              AS kept
    ON CONFLICT DO NOTHING
    """
)
_UNSETTLED = text(
    """
    SELECT job.run_id, job.number, job.namespace, job.name, job.uid, job.service_account,
           job.created_at, run.status, run.reason, run.attempts,
           run.cancel_requested_at IS NOT NULL AS is_cancel_requested, attempt.run_id IS NOT NULL AS has_begun,
           CASE WHEN attempt.outcome IS NULL THEN attempt.nonce END AS nonce, attempt.started_at, attempt.deadline,
           coalesce(attempt.finished_at, run.finished_at) AS ended_at
    FROM scheduler.attempt_jobs job
    JOIN scheduler.cron_runs run ON run.id = job.run_id
    LEFT JOIN LATERAL (
        SELECT * FROM scheduler.cron_attempts
        WHERE run_id = job.run_id AND number = job.number AND execution = 'pod' OFFSET 0
    ) attempt ON true
    WHERE job.settled_at IS NULL
    ORDER BY job.created_at
    """
)
_SETTLE = text(
    """
    UPDATE scheduler.attempt_jobs SET settled_at = scheduler.now(), log = coalesce(:log, log)
    WHERE run_id = :run_id AND number = :number AND uid = :uid AND settled_at IS NULL
    """
)
_KEEP_LOG = text(
    """
    UPDATE scheduler.attempt_jobs SET log = :log
    WHERE run_id = :run_id AND number = :number AND uid = :uid AND settled_at IS NULL
    """
)
_FORGET = text("DELETE FROM scheduler.attempt_jobs WHERE run_id = :run_id AND number = :number AND uid = :uid")
_NOTE = text(
    """
    UPDATE scheduler.cron_runs SET reason = :reason, message = :message
    WHERE id = :run_id AND finished_at IS NULL AND status IN ('queued', 'running') AND reason <> :reason
      AND attempts = CASE status WHEN 'queued' THEN :number - 1 ELSE :number END
    RETURNING cron_id
    """
)
_WANTED = text(
    """
    SELECT asked.run_id, asked.number FROM unnest(CAST(:run_ids AS uuid[]), CAST(:numbers AS integer[]))
        AS asked (run_id, number)
    JOIN scheduler.cron_runs run ON run.id = asked.run_id
    WHERE run.status = 'queued' AND run.attempts + 1 = asked.number
       OR EXISTS (SELECT FROM scheduler.attempt_jobs job WHERE job.run_id = asked.run_id AND job.number = asked.number)
    """
)
_READ = text("SELECT * FROM scheduler.attempt_jobs WHERE run_id = :run_id AND number = :number")
_WRITTEN = text(
    """
    SELECT coalesce(job.log, attempt.output) FROM scheduler.cron_runs run
    LEFT JOIN scheduler.attempt_jobs job ON job.run_id = run.id AND job.number = :number
    LEFT JOIN scheduler.cron_attempts attempt ON attempt.run_id = run.id AND attempt.number = :number
    WHERE run.id = :run_id AND run.organization_id = :organization_id
    """
)


async def read_unlaunched(
    connection: AsyncConnection, *, entrypoints: Sequence[str], now: datetime, besides: Collection[UUID], limit: int
) -> list[UnlaunchedAttempt]:
    """Read up to `limit` attempts of these entries that want a Job by `now`, those of the runs `besides` left out.

    Each organization's oldest come first, then each one's next.
    """
    parameters = {"entrypoints": list(entrypoints), "now": now, "besides": arrays.uuids(besides), "limit": limit}
    found = await connection.execute(_UNLAUNCHED, parameters)
    return [UnlaunchedAttempt(**row) for row in found.mappings()]


async def read_pending(connection: AsyncConnection, *, run_id: UUID, number: int) -> PendingAttempt | None:
    """Read the next attempt of a queued run; None if it is not this one, or not queued any more."""
    row = (await connection.execute(_PENDING, {"run_id": run_id, "number": number})).mappings().one_or_none()
    return None if row is None else PendingAttempt(**row)


async def keep(connection: AsyncConnection, *, jobs: Sequence[AttemptJob]) -> None:
    """Note which Jobs may run which attempts; what is noted already stays."""
    await connection.execute(
        _KEEP,
        {
            "run_ids": arrays.uuids(job.run_id for job in jobs),
            "numbers": arrays.integers(job.number for job in jobs),
            "namespaces": arrays.texts(job.namespace for job in jobs),
            "names": arrays.texts(job.name for job in jobs),
            "uids": arrays.texts(job.uid for job in jobs),
            "accounts": arrays.texts(job.service_account for job in jobs),
        },
    )


async def read_unsettled(connection: AsyncConnection) -> list[UnsettledJob]:
    """Read every Job for which something may be left to do."""
    return [_unsettled(row) for row in await connection.execute(_UNSETTLED)]


async def keep_log(connection: AsyncConnection, *, job: AttemptJob, log: str) -> None:
    """Keep the end of what a Job's pod wrote, without NUL characters, before the pod is taken away."""
    await connection.execute(_KEEP_LOG, {"run_id": job.run_id, "number": job.number, "uid": job.uid, "log": log})


async def settle(connection: AsyncConnection, *, job: AttemptJob, log: str | None) -> None:
    """Note that nothing is left to do for a Job, and the end of what its pod wrote, without NUL characters.

    None leaves what was kept of it.
    """
    await connection.execute(_SETTLE, {"run_id": job.run_id, "number": job.number, "uid": job.uid, "log": log})


async def forget(connection: AsyncConnection, *, job: AttemptJob) -> None:
    """Let an attempt have another Job."""
    await connection.execute(_FORGET, {"run_id": job.run_id, "number": job.number, "uid": job.uid})


async def note(connection: AsyncConnection, *, run_id: UUID, number: int, reason: str, message: str) -> UUID | None:
    """Say with a run what keeps this attempt from beginning; gives its cron's id, or None if that was said already."""
    cron_id: UUID | None = await connection.scalar(
        _NOTE, {"run_id": run_id, "number": number, "reason": reason, "message": message}
    )
    return cron_id


async def read_wanted(connection: AsyncConnection, *, attempts: Collection[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
    """Give those of these attempts, by run and number, that may still pass the start gate, or whose Job was noted."""
    parameters = {
        "run_ids": arrays.uuids(run_id for run_id, _ in attempts),
        "numbers": arrays.integers(number for _, number in attempts),
    }
    return {(row.run_id, row.number) for row in await connection.execute(_WANTED, parameters)}


async def read(connection: AsyncConnection, *, run_id: UUID, number: int) -> AttemptJob | None:
    """Give the Job that may run an attempt, None if none was noted."""
    row = (await connection.execute(_READ, {"run_id": run_id, "number": number})).one_or_none()
    return None if row is None else _job(row)


async def read_log(connection: AsyncConnection, *, organization_id: UUID, run_id: UUID, number: int) -> str | None:
    """Give what an attempt wrote: its pod's log if there was one, else what its executor printed; None if neither."""
    written: str | None = await connection.scalar(
        _WRITTEN, {"organization_id": organization_id, "run_id": run_id, "number": number}
    )
    return written


def _job(row: Row[Any]) -> AttemptJob:
    return AttemptJob(
        run_id=row.run_id,
        number=row.number,
        namespace=row.namespace,
        name=row.name,
        uid=row.uid,
        service_account=row.service_account,
    )


def _unsettled(row: Row[Any]) -> UnsettledJob:
    return UnsettledJob(
        job=_job(row),
        created_at=row.created_at,
        status=RunStatus(row.status),
        reason=row.reason,
        attempts=row.attempts,
        is_cancel_requested=row.is_cancel_requested,
        has_begun=row.has_begun,
        nonce=row.nonce,
        started_at=row.started_at,
        deadline=row.deadline,
        ended_at=row.ended_at,
    )
