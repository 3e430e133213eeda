"""Reads what `account` audits, from one snapshot of the whole database, and finds what one query can find by itself.

It serves every organization, changes nothing, and repeats no name and no payload.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import array_literals as arrays
from cronplane_core.account import (
    CronAccount,
    RecordedFires,
    Violation,
    ViolationKind,
    audit,
    first_unsettled,
)
from cronplane_core.database import transaction
from cronplane_core.job_state_repository import StoredVersion, read_versions
from cronplane_core.schedule import Schedule
from cronplane_core.timeline import ScheduleVersion

_BATCH = 1000
_INSTANT = timedelta(microseconds=1)
_SNAPSHOT = text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
_NOW = text("SELECT scheduler.now()")
_CRONS = text(
    """
    SELECT cron.id, cron.generation, job.generation AS job_generation, job.next_run_time
    FROM scheduler.cron_jobs cron LEFT JOIN scheduler.apscheduler_jobs job ON job.id = cron.id
    WHERE cron.id > :after ORDER BY cron.id LIMIT :limit
    """
)
_RECORDED = text(
    """
    SELECT cron_id, id AS run_id, scheduled_for AS first, coalesce(missed_until, scheduled_for) AS last,
           coalesce(missed_count, 1) AS fires, started_at
    FROM scheduler.cron_runs WHERE cron_id = ANY(CAST(:ids AS uuid[])) AND trigger_kind = 'schedule'
    ORDER BY cron_id, scheduled_for, missed_until NULLS FIRST
    """
)
_OVERDUE = text(
    """
    SELECT attempt.run_id, run.cron_id, attempt.lease_expires_at AS at
    FROM scheduler.cron_attempts attempt JOIN scheduler.cron_runs run ON run.id = attempt.run_id
    WHERE run.finished_at IS NULL AND attempt.outcome IS NULL AND attempt.lease_expires_at < :before
    UNION ALL
    SELECT run.id, run.cron_id, run.deadline
    FROM scheduler.cron_runs run
    WHERE run.finished_at IS NULL AND run.status IN ('queued', 'waiting') AND run.deadline < :before
      AND NOT EXISTS (SELECT FROM scheduler.cron_attempts attempt
                      WHERE attempt.run_id = run.id AND attempt.outcome IS NULL AND attempt.lease_expires_at < :before)
    """
)
_REENTERED = text(
    """
    SELECT run.id AS run_id, run.cron_id, run.scheduled_for AS at, run.attempts, count(attempt.number) AS entered,
           count(attempt.number) FILTER (WHERE attempt.outcome IS NULL) AS open
    FROM scheduler.cron_runs run LEFT JOIN scheduler.cron_attempts attempt ON attempt.run_id = run.id
    GROUP BY run.id
    HAVING count(attempt.number) <> run.attempts OR coalesce(max(attempt.number), 0) <> run.attempts
        OR count(attempt.number) FILTER (WHERE attempt.outcome IS NULL)
           <> CAST(run.status IN ('running', 'waiting') AS integer)
    """
)
_FOREIGN = text(
    """
    SELECT run.id AS run_id, run.cron_id, run.scheduled_for AS at
    FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE run.organization_id <> cron.organization_id
    """
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grace:
    """How long something may be under way before it counts as forgotten: a fire unclaimed, a run past its deadline."""

    unclaimed: timedelta = timedelta(seconds=60)
    overdue: timedelta = timedelta(seconds=30)


async def find_violations(engine: AsyncEngine, *, grace: Grace) -> AsyncIterator[Violation]:
    """Audit every cron that there is or was, on one snapshot; yields what is wrong, in no particular order.

    Raises:
        DatabaseUnavailableError: PostgreSQL was not there.

    """
    async with transaction(engine) as connection:
        await connection.execute(_SNAPSHOT)
        now = await connection.scalar(_NOW)
        assert now is not None  # noqa: S101 - told to mypy; a SELECT without FROM gives one row
        async for account in _accounts(connection, now=now):
            for violation in _violations(account, now=now, grace=grace):
                yield violation
        for violation in await _stored_violations(connection, now=now, grace=grace):
            yield violation


def _violations(account: CronAccount, *, now: datetime, grace: Grace) -> Iterable[Violation]:
    yield from audit(account)
    fire = first_unsettled(account)
    if fire is not None and fire < now - grace.unclaimed:
        message = "nobody has claimed the fire; is a runner there?"
        yield Violation(kind=ViolationKind.UNCLAIMED, cron_id=account.cron_id, at=fire, run_id=None, message=message)


async def _accounts(connection: AsyncConnection, *, now: datetime) -> AsyncIterator[CronAccount]:
    after = UUID(int=0)
    while crons := (await connection.execute(_CRONS, {"after": after, "limit": _BATCH})).all():
        ids = [cron.id for cron in crons]
        versions = await read_versions(connection, cron_ids=ids)
        async with aclosing(_recorded(connection, ids)) as records:
            for cron in crons:
                yield _account(cron, versions[cron.id], await anext(records), now=now)
        after = ids[-1]


async def _recorded(connection: AsyncConnection, cron_ids: Sequence[UUID]) -> AsyncGenerator[list[RecordedFires], None]:
    """Yield what is recorded of each cron, in their order, and keep no more than one at a time: it may be long."""
    remaining = iter(cron_ids)
    current, found = next(remaining), list[RecordedFires]()
    async with connection.stream(_RECORDED, {"ids": arrays.uuids(cron_ids)}) as result:
        async for rows in result.partitions(_BATCH):
            for row in rows:
                while row.cron_id != current:
                    yield found
                    current, found = next(remaining), []
                found.append(_recorded_fires(row))
    yield found
    for _ in remaining:
        yield []


def _recorded_fires(row: Row[Any]) -> RecordedFires:
    return RecordedFires(run_id=row.run_id, first=row.first, last=row.last, count=row.fires, started_at=row.started_at)


def _account(
    cron: Row[Any], versions: Sequence[StoredVersion], recorded: Sequence[RecordedFires], *, now: datetime
) -> CronAccount:
    return CronAccount(
        cron_id=cron.id,
        versions=tuple(
            ScheduleVersion(
                effective_from=version.effective_from,
                schedule=Schedule.parse(version.cron_expr, version.tz) if version.enabled else None,
            )
            for version in versions
        ),
        settled_before=_settled_before(cron, versions, now=now),
        recorded=tuple(recorded),
    )


def _settled_before(cron: Row[Any], versions: Sequence[StoredVersion], *, now: datetime) -> datetime:
    """Give the instant before which the runner has claimed all that was owed, as far as the runner's own record goes.

    That is the next fire that it stored, unless an edit has come before that fire: then it knows only up to the edit.
    """
    if cron.job_generation is None:
        return (versions[0].effective_from if versions else now) + _INSTANT
    bounds: list[datetime] = [
        version.effective_from + _INSTANT for version in versions if version.generation > cron.job_generation
    ][:1]
    if cron.next_run_time is not None:
        bounds.append(cron.next_run_time)
    return min(bounds, default=now)


async def _stored_violations(connection: AsyncConnection, *, now: datetime, grace: Grace) -> list[Violation]:
    overdue = await connection.execute(_OVERDUE, {"before": now - grace.overdue})
    reentered = await connection.execute(_REENTERED)
    foreign = await connection.execute(_FOREIGN)
    return [
        *(_of_run(row, ViolationKind.OVERDUE, "its time is over, and nobody has ended it") for row in overdue),
        *(
            _of_run(
                row,
                ViolationKind.REENTERED,
                f"{row.attempts} attempts were counted, {row.entered} are recorded, {row.open} are open",
            )
            for row in reentered
        ),
        *(_of_run(row, ViolationKind.FOREIGN, "it belongs to another organization than its cron") for row in foreign),
    ]


def _of_run(row: Row[Any], kind: ViolationKind, message: str) -> Violation:
    return Violation(kind=kind, cron_id=row.cron_id, at=row.at, run_id=row.run_id, message=message)
