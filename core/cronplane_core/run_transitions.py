"""How runs change, for many at a time: claim, start, and whatever `run_states` decides of them.

Every change is a compare-and-set that names the state it leaves, so that saying it twice, or late, changes nothing.
A leader has fenced the transaction with its lease (`lease.check`); the caller commits it. Nothing is decided here. What
is made anew for every run is a named tuple, as immutable as a frozen data class and made in half its time.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, CursorResult, DateTime, Interval, Text, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import array_literals as arrays
from cronplane_core.run_states import ActiveRun, AttemptEnd, Decision, EndedAttempt, RunState
from cronplane_core.signed_tokens import Purpose, TokenClaims
from cronplane_core.tables import ACTIVE_STATUSES, Execution, Overlap, RunStatus, TriggerKind


class LockedCron(NamedTuple):
    """A cron as it is while a claim holds it: no edit, pause or deletion can commit before the claim does.

    `is_granted` says whether its organization may use its entry.
    """

    id: UUID
    organization_id: UUID
    entrypoint: str
    generation: int
    enabled: bool
    is_granted: bool
    overlap: Overlap
    catchup_window: timedelta | None
    run_timeout: timedelta | None
    active_run_id: UUID | None


class NewRun(NamedTuple):
    """A run to insert for a fire; a `missed` one stands for all fires from `scheduled_for` to `missed_until`."""

    id: UUID
    organization_id: UUID
    cron_id: UUID
    scheduled_for: datetime
    status: RunStatus
    reason: str
    message: str
    generation: int
    deadline: datetime | None = None
    missed_until: datetime | None = None
    missed_count: int | None = None


class QueuedRun(NamedTuple):
    """A run that waits to begin, whose it is, and by which entry."""

    id: UUID
    organization_id: UUID
    entrypoint: str


class Advance(NamedTuple):
    """A job that moves from the fire being claimed (aware, UTC) to its next one, None if there is none."""

    cron_id: UUID
    generation: int
    claimed: datetime
    next_run_time: datetime | None


class StartedAttempt(NamedTuple):
    """An attempt that passed the start gate, with all that its executor is told. Instants are aware and in UTC.

    `run` is its run as it is from now on; the attempt has to end by `deadline`, and the run by `run_deadline`.
    """

    run: RunState
    nonce: UUID
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    payload_json: str
    scheduled_for: datetime
    trigger_kind: TriggerKind
    started_at: datetime
    deadline: datetime
    run_deadline: datetime

    def callback_claims(self) -> TokenClaims:
        """Give what the token says by which somebody else may tell the attempt's end; the same each time."""
        return TokenClaims(
            purpose=Purpose.CALLBACK,
            organization_id=self.organization_id,
            run_id=self.run.id,
            attempt=self.run.attempt,
            expires_at=self.run_deadline,
        )


class FinishedAttempt(NamedTuple):
    """How an attempt ended. `result_json` and `error_json` are JSON texts that PostgreSQL accepts."""

    nonce: UUID
    ended: EndedAttempt
    result_json: str | None = None
    error_json: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run that is not over, read under its lock, with what its records need. `nonce` is its open attempt's, or None.

    Instants are aware and in UTC. `lease_expires_at` and `attempt_deadline` are the open attempt's; `has_callback` says
    whether somebody else may tell its end.
    """

    run: ActiveRun
    nonce: UUID | None
    execution: Execution | None
    lease_expires_at: datetime | None
    attempt_deadline: datetime | None
    has_callback: bool
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    scheduled_for: datetime
    started_at: datetime | None

    def is_overdue(self, now: datetime) -> bool:
        """Tell whether nobody brings the run on any more, or nobody wants it."""
        if self.run.status is RunStatus.RUNNING:
            return self.lease_expires_at is not None and self.lease_expires_at <= now
        return self.run.is_cancel_requested or (self.run.deadline is not None and self.run.deadline <= now)


class Transition(NamedTuple):
    """What was decided of a run in the state `run`, and of its open attempt if that ends, too (`attempt`)."""

    run: RunState
    decision: Decision
    attempt: FinishedAttempt | None = None


class FinishedRun(NamedTuple):
    """A run that has reached a terminal state, for the record. `cron_name` is what people call its cron."""

    id: UUID
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    entrypoint: str
    scheduled_for: datetime
    status: RunStatus
    reason: str
    started_at: datetime | None
    finished_at: datetime


_LOCK_CRONS = text(
    """
    SELECT c.id, c.organization_id, c.entrypoint, c.generation, c.enabled AND c.deleted_at IS NULL AS enabled,
           o.entrypoints IS NULL OR CAST(c.entrypoint AS text) = ANY(o.entrypoints) AS is_granted,
           c.overlap, c.catchup_window, c.run_timeout
    FROM scheduler.cron_jobs c JOIN scheduler.organizations o ON o.id = c.organization_id
    WHERE c.id = ANY(CAST(:ids AS uuid[]))
    FOR SHARE OF c SKIP LOCKED
    """
)
# Apart, and after the locks: a statement does not see the run of whoever held a cron when it began.
_ACTIVE = text(
    """
    SELECT claimed.cron_id, active.id FROM unnest(CAST(:ids AS uuid[])) AS claimed (cron_id)
    CROSS JOIN LATERAL (
        SELECT id FROM scheduler.cron_runs WHERE cron_id = claimed.cron_id AND finished_at IS NULL LIMIT 1
    ) active
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
                                     generation, epoch, finished_at, missed_until, missed_count, deadline)
    SELECT run.id, run.organization_id, run.cron_id, run.scheduled_for, 'schedule', run.status, run.reason, run.message,
           run.generation, :epoch, CASE run.status WHEN 'queued' THEN NULL ELSE CAST(:now AS timestamptz) END,
           run.missed_until, run.missed_count, run.deadline
    FROM unnest(CAST(:ids AS uuid[]), CAST(:organization_ids AS uuid[]), CAST(:cron_ids AS uuid[]),
                CAST(:scheduled_for AS timestamptz[]), CAST(:statuses AS text[]), CAST(:reasons AS text[]),
                CAST(:messages AS text[]), CAST(:generations AS bigint[]), CAST(:missed_until AS timestamptz[]),
                CAST(:missed_counts AS bigint[]), CAST(:deadlines AS timestamptz[]))
         AS run (id, organization_id, cron_id, scheduled_for, status, reason, message, generation, missed_until,
                 missed_count, deadline)
    JOIN advanced ON advanced.id = run.cron_id
    ON CONFLICT (cron_id, scheduled_for) WHERE trigger_kind = 'schedule' DO NOTHING
    RETURNING id
    """
)
# In a CASE, into which the planner does not look: it would take the conditions for rarer than they are, and go through
# all that is queued to find the few that are asked for.
# Without a timeout of its own a run has time for all of its attempts, counted from the start of the first.
_START = text(
    """
    WITH asked AS (
        SELECT * FROM unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[]), CAST(:numbers AS integer[]))
            AS asked (run_id, nonce, number)
    ), started AS (
        UPDATE scheduler.cron_runs run
        SET status = 'running', reason = 'Started', message = 'An attempt is under way.', attempts = run.attempts + 1,
            started_at = coalesce(run.started_at, :now), generation = cron.generation, not_before = NULL,
            epoch = coalesce(:epoch, run.epoch),
            deadline = coalesce(run.deadline, :now + cron.timeout * cron.max_attempts
                                              + cron.backoff_maximum * (cron.max_attempts - 1))
        FROM asked, scheduler.cron_jobs cron, scheduler.organizations organization
        WHERE run.id = asked.run_id AND cron.id = run.cron_id AND organization.id = cron.organization_id
          AND CASE WHEN run.status = 'queued' AND cron.deleted_at IS NULL AND run.cancel_requested_at IS NULL
                    AND (CAST(:entrypoints AS text[]) IS NULL
                         OR CAST(cron.entrypoint AS text) = ANY(CAST(:entrypoints AS text[])))
                    AND (asked.number IS NULL OR run.attempts + 1 = asked.number)
                    AND (run.not_before IS NULL OR run.not_before <= :now)
                    AND (run.deadline IS NULL OR run.deadline > :now)
                    AND (organization.entrypoints IS NULL
                         OR CAST(cron.entrypoint AS text) = ANY(organization.entrypoints))
               THEN true ELSE false END
        RETURNING run.id AS run_id, run.attempts AS number, asked.nonce, run.organization_id, run.cron_id,
                  cron.name AS cron_name, CAST(cron.entrypoint AS text) AS entrypoint,
                  CAST(coalesce(run.execution_payload, cron.execution_payload) AS text) AS payload_json,
                  run.scheduled_for, run.trigger_kind, CAST(:now AS timestamptz) AS started_at,
                  least(:now + cron.timeout, run.deadline) AS deadline, run.deadline AS run_deadline
    ), attempt AS (
        INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, execution, lease_expires_at,
                                             started_at, deadline)
        SELECT run_id, number, nonce, coalesce(:epoch, 0), :location, :execution,
               CASE WHEN :sends_heartbeats THEN least(started_at + :lease, deadline) ELSE deadline + :lease END,
               started_at, deadline
        FROM started
    )
    SELECT * FROM started
    """
).bindparams(
    bindparam("epoch", type_=BigInteger()),
    bindparam("lease", type_=Interval()),
    bindparam("execution", type_=Text()),
    bindparam("sends_heartbeats", type_=Boolean()),
    bindparam("now", type_=DateTime(timezone=True)),
)
# Who asks again has not begun, so it is told what the cron says now, and the run remembers that.
_STARTED = text(
    """
    UPDATE scheduler.cron_runs run SET generation = cron.generation
    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[])) AS asked (run_id, nonce)
    JOIN scheduler.cron_attempts attempt ON attempt.run_id = asked.run_id AND attempt.nonce = asked.nonce,
    scheduler.cron_jobs cron
    WHERE run.id = asked.run_id AND run.status = 'running' AND run.attempts = attempt.number
      AND attempt.outcome IS NULL AND cron.id = run.cron_id
    RETURNING run.id AS run_id, attempt.number, attempt.nonce, run.organization_id, run.cron_id, cron.name AS cron_name,
              CAST(cron.entrypoint AS text) AS entrypoint,
              CAST(coalesce(run.execution_payload, cron.execution_payload) AS text) AS payload_json,
              run.scheduled_for, run.trigger_kind, attempt.started_at, attempt.deadline, run.deadline AS run_deadline
    """
)
_KEEP_CALLBACKS = text(
    """
    UPDATE scheduler.cron_attempts attempt SET callback_hash = kept.hash
    FROM unnest(CAST(:run_ids AS uuid[]), CAST(:numbers AS integer[]), CAST(:hashes AS bytea[]))
         AS kept (run_id, number, hash)
    WHERE attempt.run_id = kept.run_id AND attempt.number = kept.number AND attempt.outcome IS NULL
    """
)
_USE_CALLBACK = text(
    """
    UPDATE scheduler.cron_attempts SET callback_hash = NULL
    WHERE run_id = :run_id AND nonce = :nonce AND outcome IS NULL AND callback_hash = :hash
    RETURNING true
    """
)
_RENEW_ATTEMPT = text(
    """
    UPDATE scheduler.cron_attempts SET lease_expires_at = least(CAST(:until AS timestamptz), deadline)
    WHERE run_id = :run_id AND nonce = :nonce AND outcome IS NULL AND execution <> 'in_process'
    """
)
_EXPLAIN = text(
    """
    SELECT status, reason, attempts FROM scheduler.cron_runs
    WHERE id = :run_id AND organization_id = coalesce(CAST(:organization_id AS uuid), organization_id)
    """
)
# As if it had never passed the gate: its body was not entered, so it does not count as an attempt.
_HAND_BACK = text(
    """
    WITH attempt AS (
        DELETE FROM scheduler.cron_attempts attempt
        USING unnest(CAST(:run_ids AS uuid[]), CAST(:nonces AS uuid[])) AS unstarted (run_id, nonce)
        WHERE attempt.run_id = unstarted.run_id AND attempt.nonce = unstarted.nonce AND attempt.outcome IS NULL
        RETURNING attempt.run_id, attempt.number
    )
    UPDATE scheduler.cron_runs run
    SET status = 'queued', reason = 'HandedBack', message = 'The runner stopped before the run started.',
        attempts = attempt.number - 1, epoch = :epoch,
        started_at = CASE WHEN attempt.number > 1 THEN run.started_at END
    FROM attempt WHERE run.id = attempt.run_id AND run.status = 'running'
    """
)
# A run that is not as it was when it was decided upon is left alone: its state, its attempt, whether it is to be ended.
_MOVE = text(
    """
    WITH decided AS (
        SELECT * FROM unnest(
            CAST(:run_ids AS uuid[]), CAST(:leaves AS text[]), CAST(:numbers AS integer[]), CAST(:cancels AS boolean[]),
            CAST(:enters AS text[]), CAST(:reasons AS text[]), CAST(:messages AS text[]),
            CAST(:not_before AS timestamptz[]), CAST(:nonces AS uuid[]), CAST(:outcomes AS text[]),
            CAST(:attempt_reasons AS text[]), CAST(:attempt_messages AS text[]), CAST(:results AS jsonb[]),
            CAST(:errors AS jsonb[]), CAST(:outputs AS text[]))
            AS decided (run_id, leaves, number, is_cancel_requested, enters, reason, message, not_before, nonce,
                        outcome, attempt_reason, attempt_message, result, error, output)
    ), moved AS (
        UPDATE scheduler.cron_runs run
        SET status = decided.enters, reason = decided.reason, message = decided.message, result = decided.result,
            error = decided.error, not_before = decided.not_before, epoch = coalesce(:epoch, run.epoch),
            finished_at = CASE WHEN decided.enters IN ('queued', 'waiting') THEN NULL ELSE :now END
        FROM decided LEFT JOIN LATERAL (
            SELECT nonce, outcome FROM scheduler.cron_attempts
            WHERE run_id = decided.run_id AND number = decided.number OFFSET 0
        ) attempt ON true
        WHERE run.id = decided.run_id AND run.status = decided.leaves AND run.attempts = decided.number
          AND (run.cancel_requested_at IS NOT NULL) = decided.is_cancel_requested
          AND (decided.nonce IS NULL OR attempt.nonce = decided.nonce AND attempt.outcome IS NULL)
        RETURNING run.id, run.deadline, decided.*
    ), ended AS (
        UPDATE scheduler.cron_attempts attempt
        SET finished_at = CASE WHEN moved.outcome IS NOT NULL THEN :now END, outcome = moved.outcome,
            reason = moved.attempt_reason, message = moved.attempt_message, error = moved.error,
            output = coalesce(moved.output, attempt.output),
            lease_expires_at = CASE WHEN moved.outcome IS NULL THEN moved.deadline ELSE attempt.lease_expires_at END
        FROM moved
        WHERE attempt.run_id = moved.run_id AND attempt.number = moved.number AND moved.nonce IS NOT NULL
    )
    SELECT id, number FROM moved
    """
).bindparams(bindparam("epoch", type_=BigInteger()), bindparam("now", type_=DateTime(timezone=True)))
_LOCK = "SELECT run.id FROM scheduler.cron_runs run WHERE run.finished_at IS NULL AND {condition} FOR UPDATE {others}"
_LOCK_BY_ID = text(_LOCK.format(condition="run.id = ANY(CAST(:ids AS uuid[]))", others=""))
# The workers of an earlier epoch died with their runner, so whatever they had open ends here.
_LOCK_ORPHANS = text(
    _LOCK.format(
        condition="run.status = 'running' AND EXISTS (SELECT FROM scheduler.cron_attempts attempt"
        " WHERE attempt.run_id = run.id AND attempt.number = run.attempts AND attempt.outcome IS NULL"
        " AND attempt.execution = 'in_process' AND attempt.epoch < :epoch)",
        others="",
    )
)
_LOCK_OVERDUE = text(
    _LOCK.format(
        condition="(run.status IN ('queued', 'waiting')"
        "     AND (run.deadline <= :now OR run.cancel_requested_at IS NOT NULL) "
        "OR run.status = 'running' AND EXISTS (SELECT FROM scheduler.cron_attempts attempt"
        "     WHERE attempt.run_id = run.id AND attempt.number = run.attempts"
        "       AND attempt.lease_expires_at <= :now)) LIMIT :limit",
        others="SKIP LOCKED",
    )
)
# Apart, and after the locks: under them nobody changes an attempt, and what a statement found before it had to wait for
# a run's lock may be over by now.
_OPEN = text(
    """
    SELECT run.id, run.status, run.attempts, run.deadline, run.cancel_requested_at IS NOT NULL AS is_cancel_requested,
           cron.max_attempts, cron.backoff_initial, cron.backoff_maximum, attempt.nonce, attempt.execution,
           attempt.lease_expires_at, attempt.deadline AS attempt_deadline,
           attempt.callback_hash IS NOT NULL AS has_callback, run.organization_id, run.cron_id,
           cron.name AS cron_name, CAST(cron.entrypoint AS text) AS entrypoint, run.scheduled_for, run.started_at
    FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    LEFT JOIN LATERAL (
        SELECT * FROM scheduler.cron_attempts WHERE run_id = run.id AND number = run.attempts OFFSET 0
    ) attempt ON attempt.outcome IS NULL
    WHERE run.finished_at IS NULL AND run.id = ANY(CAST(:ids AS uuid[]))
    """
)
_CANCEL_REQUESTED = text(
    """
    SELECT attempt.nonce FROM scheduler.cron_runs run JOIN scheduler.cron_attempts attempt
           ON attempt.run_id = run.id AND attempt.number = run.attempts AND attempt.outcome IS NULL
    WHERE run.finished_at IS NULL AND run.status = 'running' AND run.cancel_requested_at IS NOT NULL
      AND attempt.epoch = :epoch AND attempt.execution = 'in_process'
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
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name,
              CAST(cron.entrypoint AS text) AS entrypoint, run.scheduled_for, run.status, run.reason,
              run.started_at, run.finished_at
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
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name,
              CAST(cron.entrypoint AS text) AS entrypoint, run.scheduled_for, run.status, run.reason,
              run.started_at, run.finished_at
    """
)
# As a claim would have recorded it: the fire alone, in a range of its own.
_MISS = text(
    """
    UPDATE scheduler.cron_runs run
    SET status = 'missed', reason = :reason, message = :message, missed_until = scheduled_for, missed_count = 1,
        finished_at = :now, epoch = :epoch
    FROM scheduler.cron_jobs cron
    WHERE run.id = :run_id AND run.status = 'queued' AND run.attempts = 0 AND cron.id = run.cron_id
    RETURNING run.id, run.organization_id, run.cron_id, cron.name AS cron_name,
              CAST(cron.entrypoint AS text) AS entrypoint, run.scheduled_for, run.status, run.reason,
              run.started_at, run.finished_at
    """
)
_QUEUED = text(
    """
    SELECT run.id, run.organization_id, cron.entrypoint
    FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE run.finished_at IS NULL AND run.status = 'queued' AND cron.deleted_at IS NULL
      AND CAST(cron.entrypoint AS text) = ANY(:entrypoints)
      AND (run.not_before IS NULL OR run.not_before <= :now)
      AND run.organization_id <> ALL(CAST(:besides AS uuid[]))
    ORDER BY row_number() OVER (PARTITION BY run.organization_id ORDER BY run.created_at), run.created_at
    LIMIT :limit
    """
)


async def lock_crons(connection: AsyncConnection, *, cron_ids: Sequence[UUID]) -> dict[UUID, LockedCron]:
    """Hold these crons still until the transaction ends; one that is being changed right now is left out."""
    ids = {"ids": arrays.uuids(cron_ids)}
    rows = await connection.execute(_LOCK_CRONS, ids)
    active = {row.cron_id: row.id for row in await connection.execute(_ACTIVE, ids)}
    return {
        row.id: LockedCron(
            id=row.id,
            organization_id=row.organization_id,
            entrypoint=row.entrypoint,
            generation=row.generation,
            enabled=row.enabled,
            is_granted=row.is_granted,
            overlap=Overlap(row.overlap),
            catchup_window=row.catchup_window,
            run_timeout=row.run_timeout,
            active_run_id=active.get(row.id),
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
            "deadlines": arrays.instants(run.deadline for run in runs),
            "epoch": epoch,
            "now": now,
        },
    )
    return set(inserted)


async def start(
    connection: AsyncConnection,
    *,
    nonces: Mapping[UUID, UUID],
    epoch: int | None,
    location: str,
    execution: Execution,
    now: datetime,
    lease: timedelta,
    number: int | None = None,
    entrypoints: Sequence[str] | None = None,
    is_observed: bool = False,
) -> list[StartedAttempt]:
    """Let queued runs through the start gate, each at most once, with a new attempt; others are left out.

    `nonces` gives each run's id the nonce of the attempt; with `number` only an attempt of that number is begun, with
    `entrypoints` only runs of these entries.
    `location` says where it runs. An attempt in a worker of the runner, or one that the leader looks at from outside
    (`is_observed`), may be given up when `lease` has passed after its deadline; any other one when `lease` has passed
    without a heartbeat. `epoch` is None for those that do not lead.
    """
    sends_heartbeats = execution is Execution.POD and not is_observed
    asked = {"run_ids": arrays.uuids(nonces), "nonces": arrays.uuids(nonces.values())}
    numbers = arrays.integers(number for _ in nonces)
    entries = None if entrypoints is None else list(entrypoints)
    who = {"epoch": epoch, "location": location, "execution": execution.value, "entrypoints": entries}
    how = {"numbers": numbers, "now": now, "lease": lease, "sends_heartbeats": sends_heartbeats}
    return _started(await connection.execute(_START, {**asked, **who, **how}))


async def keep_callbacks(connection: AsyncConnection, *, hashes: Mapping[tuple[UUID, int], bytes]) -> None:
    """Note the hashes of the tokens by which the ends of attempts, by run and number, may be told by somebody else."""
    parameters = {
        "run_ids": arrays.uuids(run_id for run_id, _ in hashes),
        "numbers": arrays.integers(number for _, number in hashes),
        "hashes": list(hashes.values()),
    }
    await connection.execute(_KEEP_CALLBACKS, parameters)


async def use_callback(connection: AsyncConnection, *, nonce: UUID, run_id: UUID, token_hash: bytes) -> bool:
    """Use the token that was kept for an open attempt up; False if it was used before, or another was kept."""
    used = await connection.scalar(_USE_CALLBACK, {"nonce": nonce, "run_id": run_id, "hash": token_hash})
    return used is not None


async def renew_attempt(connection: AsyncConnection, *, nonce: UUID, run_id: UUID, until: datetime) -> None:
    """Let an open attempt's lease last until `until` (aware), and at most until a moment after its deadline."""
    await connection.execute(_RENEW_ATTEMPT, {"nonce": nonce, "run_id": run_id, "until": until})


async def explain(connection: AsyncConnection, *, run_id: UUID, organization_id: UUID | None, number: int) -> str:
    """Say in a sentence why an attempt of a run cannot be begun, go on or be ended.

    `organization_id` is whose run it has to be; None for any.
    """
    row = (await connection.execute(_EXPLAIN, {"run_id": run_id, "organization_id": organization_id})).one_or_none()
    if row is None:
        return "There is no such run any more"
    state = f"the run is {row.status} ({row.reason})"
    if row.attempts > number:
        return f"Attempt {number} was superseded by attempt {row.attempts}; {state}"
    if row.attempts < number:
        return f"Attempt {number} was not begun and cannot be now; {state}"
    return f"Attempt {number} is over, or another process's, or its token was used; {state}"


async def read_started(connection: AsyncConnection, *, nonces: Mapping[UUID, UUID]) -> list[StartedAttempt]:
    """Give the attempts under way that have these nonces, to a caller that lost the answer of `start`."""
    asked = {"run_ids": arrays.uuids(nonces), "nonces": arrays.uuids(nonces.values())}
    return _started(await connection.execute(_STARTED, asked))


async def move(
    connection: AsyncConnection, *, transitions: Sequence[Transition], epoch: int | None, now: datetime
) -> list[Transition]:
    """Carry out what was decided; gives the transitions that were made.

    A run that has changed since it was read is left alone. `epoch` is None for those that do not lead.
    """
    attempts = [transition.attempt for transition in transitions]
    moved = await connection.execute(
        _MOVE,
        {
            "run_ids": arrays.uuids(transition.run.id for transition in transitions),
            "leaves": arrays.texts(transition.run.status.value for transition in transitions),
            "numbers": arrays.integers(transition.run.attempt for transition in transitions),
            "cancels": arrays.booleans(transition.run.is_cancel_requested for transition in transitions),
            "enters": arrays.texts(transition.decision.status.value for transition in transitions),
            "reasons": arrays.texts(transition.decision.reason for transition in transitions),
            "messages": arrays.texts(transition.decision.message for transition in transitions),
            "not_before": arrays.instants(transition.decision.not_before for transition in transitions),
            "nonces": arrays.uuids_or_none(None if attempt is None else attempt.nonce for attempt in attempts),
            "outcomes": arrays.texts(map(_outcome, transitions)),
            "attempt_reasons": arrays.texts(None if attempt is None else attempt.ended.reason for attempt in attempts),
            "attempt_messages": arrays.texts(
                None if attempt is None else attempt.ended.message for attempt in attempts
            ),
            "results": arrays.texts(None if attempt is None else attempt.result_json for attempt in attempts),
            "errors": arrays.texts(None if attempt is None else attempt.error_json for attempt in attempts),
            "outputs": arrays.texts(None if attempt is None else attempt.output for attempt in attempts),
            "epoch": epoch,
            "now": now,
        },
    )
    made = {(row.id, row.number) for row in moved}
    return [transition for transition in transitions if (transition.run.id, transition.run.attempt) in made]


def _outcome(transition: Transition) -> str | None:
    """Give how an attempt ended; None if there was none, or if it goes on somewhere else."""
    if transition.attempt is None or transition.decision.status is RunStatus.WAITING:
        return None
    end = transition.attempt.ended.end
    return transition.decision.status.value if end is AttemptEnd.ACCEPTED else end.value


def finished_run(of: OpenRun | StartedAttempt, decision: Decision, *, now: datetime) -> FinishedRun | None:
    """Give the record of a run for which `decision` was carried out, None if that is not its end."""
    if decision.status in ACTIVE_STATUSES:
        return None
    return FinishedRun(
        id=of.run.id,
        organization_id=of.organization_id,
        cron_id=of.cron_id,
        cron_name=of.cron_name,
        entrypoint=of.entrypoint,
        scheduled_for=of.scheduled_for,
        status=decision.status,
        reason=decision.reason,
        started_at=of.started_at,
        finished_at=now,
    )


async def lock_open_runs(connection: AsyncConnection, *, run_ids: Sequence[UUID]) -> list[OpenRun]:
    """Read those of these runs that are not over, and keep everybody else from changing them."""
    return await _locked(connection, _LOCK_BY_ID, {"ids": arrays.uuids(run_ids)})


async def lock_orphans(connection: AsyncConnection, *, epoch: int) -> list[OpenRun]:
    """Read the runs whose attempt was under way in a worker of an earlier leader, and lock them."""
    found = await _locked(connection, _LOCK_ORPHANS, {"epoch": epoch})
    return [each for each in found if each.execution is Execution.IN_PROCESS]


async def lock_overdue(connection: AsyncConnection, *, now: datetime, limit: int) -> list[OpenRun]:
    """Read runs that nobody brings on any more, and lock them; those that somebody is changing right now are left out.

    Those are the queued and waiting ones past their deadline, and the running ones whose attempt's lease has ended.
    """
    found = await _locked(connection, _LOCK_OVERDUE, {"now": now, "limit": limit})
    return [each for each in found if each.is_overdue(now)]


async def _locked(connection: AsyncConnection, lock: TextClause, parameters: Mapping[str, object]) -> list[OpenRun]:
    run_ids = list(await connection.scalars(lock, parameters))
    return _open_runs(await connection.execute(_OPEN, {"ids": arrays.uuids(run_ids)})) if run_ids else []


async def cancel_requested(connection: AsyncConnection, *, epoch: int) -> list[UUID]:
    """Give the nonces of this leader's own attempts under way that somebody wants to end."""
    return list(await connection.scalars(_CANCEL_REQUESTED, {"epoch": epoch}))


async def hand_back(connection: AsyncConnection, *, nonces: Mapping[UUID, UUID], epoch: int) -> None:
    """Queue again runs whose attempt, by its nonce, passed the gate and whose body was never entered."""
    unstarted = {"run_ids": arrays.uuids(nonces), "nonces": arrays.uuids(nonces.values())}
    await connection.execute(_HAND_BACK, {**unstarted, "epoch": epoch})


async def cancel_deleted(connection: AsyncConnection, *, epoch: int, now: datetime) -> list[FinishedRun]:
    """End as `cancelled` the queued runs of deleted crons."""
    return _finished(await connection.execute(_CANCEL_DELETED, {"epoch": epoch, "now": now}))


async def skip_not_granted(connection: AsyncConnection, *, epoch: int, now: datetime) -> list[FinishedRun]:
    """End as `skipped` the queued runs whose organization may not use their entry any more."""
    return _finished(await connection.execute(_SKIP_NOT_GRANTED, {"epoch": epoch, "now": now}))


async def miss(
    connection: AsyncConnection, *, run_id: UUID, reason: str, message: str, epoch: int, now: datetime
) -> list[FinishedRun]:
    """End as `missed` a queued run that no attempt was begun of; gives it, or nothing if there is none by now."""
    parameters = {"run_id": run_id, "reason": reason, "message": message, "epoch": epoch, "now": now}
    return _finished(await connection.execute(_MISS, parameters))


async def queued_runs(
    connection: AsyncConnection,
    *,
    entrypoints: Sequence[str],
    now: datetime,
    limit: int,
    besides: Collection[UUID] = (),
) -> list[QueuedRun]:
    """Name up to `limit` queued runs of these entries that may begin by `now`.

    Each organization's oldest come first, then each one's next; the organizations `besides` are left out.
    """
    parameters = {"entrypoints": list(entrypoints), "now": now, "limit": limit, "besides": arrays.uuids(besides)}
    return [QueuedRun(*row) for row in await connection.execute(_QUEUED, parameters)]


# A look-up, since an enum's own takes as long as the rest of a row.
_TRIGGER_KINDS = {kind.value: kind for kind in TriggerKind}


def _started(rows: CursorResult[Any]) -> list[StartedAttempt]:
    return [
        StartedAttempt(
            run=RunState(id=row.run_id, status=RunStatus.RUNNING, attempt=row.number),
            nonce=row.nonce,
            organization_id=row.organization_id,
            cron_id=row.cron_id,
            cron_name=row.cron_name,
            entrypoint=row.entrypoint,
            payload_json=row.payload_json,
            scheduled_for=row.scheduled_for,
            trigger_kind=_TRIGGER_KINDS[row.trigger_kind],
            started_at=row.started_at,
            deadline=row.deadline,
            run_deadline=row.run_deadline,
        )
        for row in rows
    ]


def _open_runs(rows: CursorResult[Any]) -> list[OpenRun]:
    return [
        OpenRun(
            run=ActiveRun(
                id=row.id,
                status=RunStatus(row.status),
                attempt=row.attempts,
                max_attempts=row.max_attempts,
                backoff_initial=row.backoff_initial,
                backoff_maximum=row.backoff_maximum,
                deadline=row.deadline,
                is_cancel_requested=row.is_cancel_requested,
            ),
            nonce=row.nonce,
            execution=None if row.execution is None else Execution(row.execution),
            lease_expires_at=row.lease_expires_at,
            attempt_deadline=row.attempt_deadline,
            has_callback=row.has_callback,
            organization_id=row.organization_id,
            cron_id=row.cron_id,
            cron_name=row.cron_name,
            entrypoint=row.entrypoint,
            scheduled_for=row.scheduled_for,
            started_at=row.started_at,
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
            entrypoint=row.entrypoint,
            scheduled_for=row.scheduled_for,
            status=RunStatus(row.status),
            reason=row.reason,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )
        for row in rows
    ]
