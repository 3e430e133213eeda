"""Crons as people define them: inserted, read, changed and deleted, with the history that fires are computed from.

Every query is filtered by organization, so another's cron is as absent as one that never was. Whoever changes a cron
locks its row first: a claim holds the same row, and `effective_from` is read only once the lock is held, so each fire
belongs either to the version before or to the one after.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Update, Uuid, bindparam, cast, column, func, insert, select, true, tuple_, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import BigInteger, Text

from cronplane_core.database import DatabaseError, violated_constraint
from cronplane_core.organization_repository import QuotaExceededError
from cronplane_core.tables import NOW, Catchup, CronSource, Overlap, cron_job_versions, cron_jobs, organizations


class CronNameTakenError(DatabaseError):
    """The organization has a cron of this name; choose another name, or change that cron."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a cron's fires and runs are treated. Instants are aware and in UTC."""

    timeout: timedelta
    overlap: Overlap = Overlap.SKIP
    catchup: Catchup = Catchup.LATEST
    catchup_window: timedelta | None = None
    max_attempts: int = 1
    backoff_initial: timedelta = timedelta(seconds=10)
    backoff_maximum: timedelta = timedelta(minutes=10)
    jitter: timedelta = timedelta(0)
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    max_runs: int | None = None
    run_timeout: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What a person may change of a cron."""

    name: str
    cron_expr: str
    tz: str
    entrypoint: str
    user_payload: dict[str, Any]
    execution_payload: dict[str, Any]
    policy: Policy
    enabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DefiningResource:
    """The Cron resource that defines a cron, as it was registered last.

    `uid` and `generation` are its `metadata.uid` and `metadata.generation`; `uid` is None once the resource has gone
    with its `scope`, which names the definition and the namespace that it was in.
    """

    namespace: str
    name: str
    uid: str | None
    generation: int
    scope: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """A cron that is not deleted. Instants are aware and in UTC; `generation` grows with each change.

    `resource` is None for a cron of the API.
    """

    id: UUID
    organization_id: UUID
    definition: Definition
    generation: int
    effective_from: datetime
    resource: DefiningResource | None
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str

    @property
    def source(self) -> CronSource:
        """Say where the cron is defined."""
        return CronSource.API if self.resource is None else CronSource.KUBERNETES


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCron:
    """A cron to insert; `resource` is the one that defines it, if one does."""

    id: UUID
    definition: Definition
    created_by: str
    resource: DefiningResource | None = None


_POLICY_FIELDS = tuple(field.name for field in fields(Policy))
_OTHER_FIELDS = tuple(field.name for field in fields(Definition) if field.name != "policy")
_VERSIONED = ("cron_expr", "tz", "enabled", *_POLICY_FIELDS)
# The entrypoint is read as text: the driver knows nothing of our enum.
_COLUMNS = [
    cast(column, Text).label(column.name) if column.name == "entrypoint" else column
    for column in cron_jobs.c
    if column.name not in {"deleted_at", "deleted_by", "changed_by_transaction"}
]
_INSERTED = (
    "id", "name", "cron_expr", "tz", "entrypoint", "user_payload", "execution_payload", "enabled", *_POLICY_FIELDS,
    "source", "source_namespace", "source_name", "source_uid", "source_generation", "source_scope", "created_by",
    "updated_by",
)  # fmt: skip
_given = (
    func.jsonb_to_recordset(bindparam("given", type_=JSONB()))
    .table_valued(*(column(name, cron_jobs.c[name].type) for name in _INSERTED), name="given")
    .render_derived(with_types=True)
)
# Counted and inserted by one statement: whoever comes at the same time waits for the row and judges the new number.
_admitted = (
    update(organizations)
    .values(crons=organizations.c.crons + bindparam("count", type_=BigInteger()))
    .where(
        organizations.c.id == bindparam("organization_id", type_=Uuid()),
        organizations.c.crons + bindparam("count", type_=BigInteger())
        <= func.coalesce(organizations.c.cron_quota, bindparam("quota", type_=BigInteger())),
    )
    .returning(organizations.c.id)
    .cte("admitted")
)
_inserted = (
    insert(cron_jobs)
    .from_select(
        ["organization_id", *_INSERTED],
        select(_admitted.c.id, *(_given.c[name] for name in _INSERTED)).select_from(_given.join(_admitted, true())),
    )
    .returning(*_COLUMNS)
    .cte("inserted")
)
_first_version = (
    insert(cron_job_versions)
    .from_select(
        ["cron_id", "generation", "effective_from", *_VERSIONED],
        select(
            _inserted.c.id,
            _inserted.c.generation,
            _inserted.c.effective_from,
            *(_inserted.c[name] for name in _VERSIONED),
        ),
    )
    .cte("first_version")
)
# Only what PostgreSQL makes itself, or writes in another form; each column that is read takes time.
_MADE = ("id", "user_payload", "execution_payload", "generation", "effective_from", "created_at", "updated_at")
_INSERT = select(*(_inserted.c[name] for name in _MADE)).add_cte(_first_version)
_GET = select(*_COLUMNS).where(
    cron_jobs.c.organization_id == bindparam("organization_id"),
    cron_jobs.c.id == bindparam("cron_id"),
    cron_jobs.c.deleted_at.is_(None),
)
_LOCK = _GET.with_for_update()
_ONE_FEWER = (
    update(organizations)
    .values(crons=func.greatest(organizations.c.crons - 1, 0))
    .where(organizations.c.id == bindparam("organization_id"))
)
UNLIMITED = 2**31 - 1
_KEY = (cron_jobs.c.created_at, cron_jobs.c.id)


async def insert_crons(
    connection: AsyncConnection, *, organization_id: UUID, crons: Sequence[NewCron], cron_quota: int = UNLIMITED
) -> list[Cron]:
    """Add crons of one organization and their first versions, all or none; gives them in the order of `crons`.

    This is one statement, and can stand alone. The organization's own quota goes before `cron_quota`.

    Raises:
        CronNameTakenError: one of the names is in use, or given twice; the transaction must be rolled back.
        QuotaExceededError: the organization may not have so many crons, if its number of them is true; have them
            counted (`count_crons`) and ask once more before anybody is refused.

    """
    parameters = {
        "organization_id": organization_id,
        "count": len(crons),
        "quota": cron_quota,
        "given": [_given_values(cron) for cron in crons],
    }
    try:
        rows = {row.id: row for row in await connection.execute(_INSERT, parameters)}
    except IntegrityError as error:
        if _is_name_taken(error):
            raise _name_taken(*(cron.definition.name for cron in crons)) from error
        raise
    if not rows:
        raise QuotaExceededError("The organization has as many crons as it may have; delete some, or ask for more")
    return [_inserted_cron(organization_id, cron, rows[cron.id]) for cron in crons]


def _given_values(cron: NewCron) -> dict[str, Any]:
    values: dict[str, Any] = {
        **_values(cron.definition),
        "id": cron.id,
        **_source_values(cron.resource),
        "created_by": cron.created_by,
        "updated_by": cron.created_by,
    }
    return {name: _as_json(value) for name, value in values.items()}


def _source_values(resource: DefiningResource | None) -> dict[str, object]:
    if resource is None:
        return {"source": CronSource.API}
    values = {f"source_{name}": getattr(resource, name) for name in resource.__slots__}
    return values | {"source": CronSource.KUBERNETES}


def _as_json(value: object) -> object:
    """Write as JSON what PostgreSQL reads from JSON's texts."""
    if isinstance(value, timedelta):
        return f"{value.days} days {value.seconds}.{value.microseconds:06} seconds"
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value


def _inserted_cron(organization_id: UUID, cron: NewCron, row: Row[Any]) -> Cron:
    payloads = {"user_payload": row.user_payload, "execution_payload": row.execution_payload}
    return Cron(
        id=cron.id,
        organization_id=organization_id,
        definition=replace(cron.definition, **payloads),
        generation=row.generation,
        effective_from=row.effective_from,
        resource=cron.resource,
        created_at=row.created_at,
        created_by=cron.created_by,
        updated_at=row.updated_at,
        updated_by=cron.created_by,
    )


async def get_cron(connection: AsyncConnection, *, organization_id: UUID, cron_id: UUID) -> Cron | None:
    """Find a cron of this organization, or None."""
    identity = {"organization_id": organization_id, "cron_id": cron_id}
    row = (await connection.execute(_GET, identity)).one_or_none()
    return None if row is None else _cron(row)


async def lock_cron(connection: AsyncConnection, *, organization_id: UUID, cron_id: UUID) -> Cron | None:
    """Find a cron of this organization and keep everybody else from changing or claiming it; None if it is absent."""
    identity = {"organization_id": organization_id, "cron_id": cron_id}
    row = (await connection.execute(_LOCK, identity)).one_or_none()
    return None if row is None else _cron(row)


async def list_crons(
    connection: AsyncConnection,
    *,
    organization_id: UUID,
    entrypoint: str | None = None,
    enabled: bool | None = None,
    name: str | None = None,
    after: tuple[datetime, UUID] | None,
    limit: int,
) -> list[Cron]:
    """List an organization's crons in the order in which they were made, from behind the key `after`."""
    query = (
        select(*_COLUMNS)
        .where(cron_jobs.c.organization_id == organization_id, cron_jobs.c.deleted_at.is_(None))
        .order_by(*_KEY)
        .limit(limit)
    )
    if entrypoint is not None:
        query = query.where(cast(cron_jobs.c.entrypoint, Text) == entrypoint)
    if enabled is not None:
        query = query.where(cron_jobs.c.enabled.is_(enabled))
    if name is not None:
        query = query.where(cron_jobs.c.name == name)
    if after is not None:
        query = query.where(tuple_(*_KEY) > after)
    return [_cron(row) for row in await connection.execute(query)]


async def update_cron(connection: AsyncConnection, *, cron: Cron, definition: Definition, updated_by: str) -> Cron:
    """Give a locked cron another definition; the same definition again changes nothing.

    A change of expression, zone, enabled state or policy comes into force now and adds a version.

    Raises:
        CronNameTakenError: the name is in use; the transaction must be rolled back.

    """
    before, after = _values(cron.definition), _values(definition)
    changed = {name: value for name, value in after.items() if _differs(value, before[name])}
    if not changed:
        return cron
    assignments: dict[str, Any] = {**changed, "generation": cron.generation + 1}
    assignments |= {"updated_at": NOW, "updated_by": updated_by}
    comes_into_force = not changed.keys().isdisjoint(_VERSIONED)
    if comes_into_force:
        assignments["effective_from"] = NOW
    statement = _update(cron).values(assignments).returning(*_COLUMNS)
    try:
        updated = _cron((await connection.execute(statement)).one())
    except IntegrityError as error:
        if _is_name_taken(error):
            raise _name_taken(definition.name) from error
        raise
    if comes_into_force:
        await _add_version(connection, updated, enabled=updated.definition.enabled)
    return updated


async def keep_resource(connection: AsyncConnection, *, cron: Cron, resource: DefiningResource) -> None:
    """Note which resource defines a locked cron, as it is registered now."""
    await connection.execute(_update(cron).values(_source_values(resource)))


async def delete_cron(connection: AsyncConnection, *, cron: Cron, deleted_by: str) -> None:
    """Delete a locked cron: it is absent from now on, its name is free, and its runs are kept.

    Its organization is locked before it, as by everybody who locks both.
    """
    statement = (
        _update(cron)
        .values(
            generation=cron.generation + 1,
            effective_from=NOW,
            deleted_at=NOW,
            deleted_by=deleted_by,
            updated_at=NOW,
            updated_by=deleted_by,
        )
        .returning(*_COLUMNS)
    )
    deleted = _cron((await connection.execute(statement)).one())
    await connection.execute(_ONE_FEWER, {"organization_id": cron.organization_id})
    await _add_version(connection, deleted, enabled=False)


def _update(cron: Cron) -> Update:
    return update(cron_jobs).where(cron_jobs.c.organization_id == cron.organization_id, cron_jobs.c.id == cron.id)


def _differs(value: object, before: object) -> bool:
    """Compare as JSON where it is JSON: to Python `true` equals 1, and to the entry it does not."""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True) != json.dumps(before, sort_keys=True)
    return value != before


async def _add_version(connection: AsyncConnection, cron: Cron, *, enabled: bool) -> None:
    values = {name: value for name, value in _values(cron.definition).items() if name in _VERSIONED}
    await connection.execute(
        insert(cron_job_versions).values(
            {
                **values,
                "enabled": enabled,
                "cron_id": cron.id,
                "generation": cron.generation,
                "effective_from": cron.effective_from,
            }
        )
    )


def _is_name_taken(error: IntegrityError) -> bool:
    return violated_constraint(error) == "cron_jobs_name_key"


def _name_taken(*names: str) -> CronNameTakenError:
    one_of = "" if len(names) == 1 else "one of "
    return CronNameTakenError(f"A cron named {one_of}{', '.join(map(repr, names))} exists already in this organization")


def _values(definition: Definition) -> dict[str, Any]:
    values = {name: getattr(definition, name) for name in _OTHER_FIELDS}
    policy = {name: getattr(definition.policy, name) for name in _POLICY_FIELDS}
    return values | policy | {"overlap": definition.policy.overlap.value, "catchup": definition.policy.catchup.value}


def _cron(row: Row[Any]) -> Cron:
    return Cron(
        id=row.id,
        organization_id=row.organization_id,
        definition=_definition(row),
        generation=row.generation,
        effective_from=row.effective_from,
        resource=_resource(row),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )


def _resource(row: Row[Any]) -> DefiningResource | None:
    if row.source_name is None:
        return None
    return DefiningResource(
        namespace=row.source_namespace,
        name=row.source_name,
        uid=row.source_uid,
        generation=row.source_generation,
        scope=row.source_scope,
    )


def _definition(row: Row[Any]) -> Definition:
    return Definition(
        name=row.name,
        cron_expr=row.cron_expr,
        tz=row.tz,
        entrypoint=row.entrypoint,
        user_payload=row.user_payload,
        execution_payload=row.execution_payload,
        policy=_policy(row),
        enabled=row.enabled,
    )


def _policy(row: Row[Any]) -> Policy:
    return Policy(
        timeout=row.timeout,
        overlap=Overlap(row.overlap),
        catchup=Catchup(row.catchup),
        catchup_window=row.catchup_window,
        max_attempts=row.max_attempts,
        backoff_initial=row.backoff_initial,
        backoff_maximum=row.backoff_maximum,
        jitter=row.jitter,
        starts_at=row.starts_at,
        ends_at=row.ends_at,
        max_runs=row.max_runs,
        run_timeout=row.run_timeout,
    )
