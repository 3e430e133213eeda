"""Runs as people see them: listed, read, and triggered by hand.

Every query is filtered by organization and by cron, and leaves deleted crons out. How runs change state otherwise is in
`run_transitions`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Interval,
    Row,
    Select,
    Uuid,
    and_,
    bindparam,
    exists,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.cron_repository import Cron
from cronplane_core.tables import NOW, RunStatus, TriggerKind, cron_attempts, cron_jobs, cron_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of `cron_runs`, without the payload. Instants are aware and in UTC."""

    id: UUID
    organization_id: UUID
    cron_id: UUID
    scheduled_for: datetime
    trigger_kind: TriggerKind
    status: RunStatus
    reason: str
    message: str
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempts: int
    generation: int
    created_at: datetime
    created_by: str | None
    started_at: datetime | None
    finished_at: datetime | None
    missed_until: datetime | None
    missed_count: int | None
    not_before: datetime | None
    deadline: datetime | None
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    rerun_of: UUID | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One row of `cron_attempts`. Instants are aware and in UTC; `outcome` is None while it runs."""

    number: int
    location: str
    started_at: datetime
    finished_at: datetime | None
    outcome: RunStatus | None
    reason: str | None
    message: str | None
    error: dict[str, Any] | None
    output: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list; None leaves a question open. The bounds are aware instants, both inclusive."""

    statuses: Sequence[RunStatus] | None = None
    trigger_kind: TriggerKind | None = None
    scheduled_from: datetime | None = None
    scheduled_until: datetime | None = None


_KEY = (cron_runs.c.scheduled_for, cron_runs.c.id)
_RUN_COLUMNS = [column for column in cron_runs.c if column.name not in {"execution_payload", "epoch"}]
_KEPT_BACK = {"nonce", "epoch", "lease_expires_at", "callback_hash"}
_ATTEMPTS = (
    select(*(column for column in cron_attempts.c if column.name not in _KEPT_BACK))
    .where(cron_attempts.c.run_id == bindparam("run_id"))
    .order_by(cron_attempts.c.number)
)
# `active` is empty or the run that is in the way; one statement, so that both agree.
_INSERT_MANUAL = text(
    """
    WITH active AS (
        SELECT id FROM scheduler.cron_runs
        WHERE cron_id = :cron_id AND finished_at IS NULL LIMIT 1
    ), instant AS (
        SELECT scheduler.now() AS now
    )
    INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason, message,
                                     execution_payload, generation, created_at, created_by, finished_at, deadline,
                                     rerun_of)
    SELECT :organization_id, :cron_id, instant.now, 'manual',
           CASE WHEN active.id IS NULL THEN 'queued' ELSE 'skipped' END,
           CASE WHEN active.id IS NULL THEN 'Triggered' ELSE 'OverlapSkip' END,
           CASE WHEN active.id IS NULL THEN 'The run was triggered and waits for a worker.'
                ELSE 'Run ' || active.id || ' of this cron was not over, and overlap is skip.' END,
           :execution_payload, :generation, instant.now, :created_by,
           CASE WHEN active.id IS NULL THEN NULL ELSE instant.now END,
           CASE WHEN active.id IS NULL THEN instant.now + :run_timeout END, :rerun_of
    FROM instant LEFT JOIN active ON true
    RETURNING id, organization_id, cron_id, scheduled_for, trigger_kind, status, reason, message, result, error,
              attempts, generation, created_at, created_by, started_at, finished_at, missed_until, missed_count,
              not_before, deadline, cancel_requested_at, cancel_requested_by, rerun_of
    """
).bindparams(
    bindparam("execution_payload", type_=JSONB(none_as_null=True)),
    bindparam("run_timeout", type_=Interval()),
    bindparam("rerun_of", type_=Uuid()),
)
_PAYLOAD = select(cron_runs.c.execution_payload).where(cron_runs.c.id == bindparam("run_id"))
_REQUEST_CANCEL = (
    update(cron_runs)
    .where(cron_runs.c.id == bindparam("run_id"), cron_runs.c.cancel_requested_at.is_(None))
    .values(cancel_requested_at=NOW, cancel_requested_by=bindparam("requested_by"))
)


async def list_runs(
    connection: AsyncConnection,
    *,
    organization_id: UUID,
    cron_id: UUID,
    run_filter: RunFilter,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Run]:
    """List a cron's runs, newest first, from behind the key `after` (scheduled_for, id)."""
    query = (
        _of_cron(organization_id=organization_id, cron_id=cron_id)
        .where(*_conditions(run_filter))
        .order_by(*(column.desc() for column in _KEY))
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(*_KEY) < after)
    return [_run(row) for row in await connection.execute(query)]


async def get_run(
    connection: AsyncConnection, *, organization_id: UUID, cron_id: UUID, run_id: UUID
) -> tuple[Run, list[Attempt]] | None:
    """Find a run of this cron of this organization, with its attempts; None if there is none."""
    query = _of_cron(organization_id=organization_id, cron_id=cron_id).where(cron_runs.c.id == run_id)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        return None
    attempts = await connection.execute(_ATTEMPTS, {"run_id": run_id})
    return _run(row), [_attempt(attempt) for attempt in attempts]


async def latest_runs(
    connection: AsyncConnection, *, organization_id: UUID, cron_ids: Sequence[UUID]
) -> dict[UUID, Run]:
    """Find the newest run of each of these crons that has any."""
    newest = (
        select(*_RUN_COLUMNS)
        .where(cron_runs.c.cron_id == cron_jobs.c.id)
        .order_by(*(column.desc() for column in _KEY))
        .limit(1)
        .lateral()
    )
    query = (
        select(newest)
        .select_from(cron_jobs.join(newest, true()))
        .where(cron_jobs.c.organization_id == organization_id, cron_jobs.c.id.in_(cron_ids))
    )
    return {row.cron_id: _run(row) for row in await connection.execute(query)}


async def insert_manual_run(
    connection: AsyncConnection,
    *,
    cron: Cron,
    created_by: str,
    execution_payload: dict[str, Any] | None,
    rerun_of: UUID | None = None,
) -> Run:
    """Queue a run of a locked cron now; while another run of it is not over, record it as skipped instead."""
    result = await connection.execute(
        _INSERT_MANUAL,
        {
            "organization_id": cron.organization_id,
            "cron_id": cron.id,
            "generation": cron.generation,
            "created_by": created_by,
            "execution_payload": execution_payload,
            "run_timeout": cron.definition.policy.run_timeout,
            "rerun_of": rerun_of,
        },
    )
    return _run(result.one())


async def read_payload(connection: AsyncConnection, *, run: Run) -> dict[str, Any] | None:
    """Give the execution payload that a run had of its own, or None if it took the cron's."""
    payload: dict[str, Any] | None = await connection.scalar(_PAYLOAD, {"run_id": run.id})
    return payload


async def request_cancel(connection: AsyncConnection, *, run_id: UUID, requested_by: str) -> None:
    """Note that a locked run is not wanted any more, and by whom; who did so first stays."""
    await connection.execute(_REQUEST_CANCEL, {"run_id": run_id, "requested_by": requested_by})


def _of_cron(*, organization_id: UUID, cron_id: UUID) -> Select[Any]:
    cron_is_there = exists().where(
        cron_jobs.c.id == cron_runs.c.cron_id,
        cron_jobs.c.organization_id == organization_id,
        cron_jobs.c.deleted_at.is_(None),
    )
    return select(*_RUN_COLUMNS).where(
        and_(cron_runs.c.organization_id == organization_id, cron_runs.c.cron_id == cron_id, cron_is_there)
    )


def _conditions(run_filter: RunFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if run_filter.statuses:
        conditions.append(cron_runs.c.status.in_([status.value for status in run_filter.statuses]))
    if run_filter.trigger_kind is not None:
        conditions.append(cron_runs.c.trigger_kind == run_filter.trigger_kind.value)
    if run_filter.scheduled_from is not None:
        conditions.append(cron_runs.c.scheduled_for >= run_filter.scheduled_from)
    if run_filter.scheduled_until is not None:
        conditions.append(cron_runs.c.scheduled_for <= run_filter.scheduled_until)
    return conditions


def _run(row: Row[Any]) -> Run:
    return Run(
        id=row.id,
        organization_id=row.organization_id,
        cron_id=row.cron_id,
        scheduled_for=row.scheduled_for,
        trigger_kind=TriggerKind(row.trigger_kind),
        status=RunStatus(row.status),
        reason=row.reason,
        message=row.message,
        result=row.result,
        error=row.error,
        attempts=row.attempts,
        generation=row.generation,
        created_at=row.created_at,
        created_by=row.created_by,
        started_at=row.started_at,
        finished_at=row.finished_at,
        missed_until=row.missed_until,
        missed_count=row.missed_count,
        not_before=row.not_before,
        deadline=row.deadline,
        cancel_requested_at=row.cancel_requested_at,
        cancel_requested_by=row.cancel_requested_by,
        rerun_of=row.rerun_of,
    )


def _attempt(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        location=row.location,
        started_at=row.started_at,
        finished_at=row.finished_at,
        outcome=None if row.outcome is None else RunStatus(row.outcome),
        reason=row.reason,
        message=row.message,
        error=row.error,
        output=row.output,
    )
