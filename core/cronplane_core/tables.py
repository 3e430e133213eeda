"""The tables of the schema `scheduler`, as SQLAlchemy Core sees them.

This is the model that migrations must agree with; it holds no behaviour and no query.
Every instant is a `timestamptz`; every default instant is the database's `scheduler.now()`.
"""

import enum
from collections.abc import Callable
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.types import UserDefinedType

SCHEMA = "scheduler"
NOW = text("scheduler.now()")


class RunStatus(enum.StrEnum):
    """What has become of a run; everything but the first three is terminal."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    MISSED = "missed"
    LOST = "lost"


ACTIVE_STATUSES = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING)


class Execution(enum.StrEnum):
    """Where the body of an attempt runs: in a worker of the runner, or elsewhere, such as in a pod."""

    IN_PROCESS = "in_process"
    POD = "pod"


class TriggerKind(enum.StrEnum):
    """Why a run exists."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    BACKFILL = "backfill"


class Role(enum.StrEnum):
    """What a key may do in its organization; each role may do all that the ones before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    EDITOR = "editor"
    ADMIN = "admin"


class Overlap(enum.StrEnum):
    """What happens to a fire while an earlier run of the cron is not over."""

    SKIP = "skip"
    ALLOW = "allow"
    QUEUE_ONE = "queue_one"
    QUEUE_ALL = "queue_all"
    CANCEL_RUNNING = "cancel_running"


class Catchup(enum.StrEnum):
    """What happens to fires that came due while no runner was there."""

    LATEST = "latest"
    SKIP = "skip"
    ALL = "all"


class CronSource(enum.StrEnum):
    """Where a cron is defined."""

    API = "api"
    KUBERNETES = "kubernetes"


class OrganizationState(enum.StrEnum):
    """Whether an organization's keys are honoured and its crons fire."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class TransactionId(UserDefinedType[int]):
    """PostgreSQL's `xid8`: a 64-bit transaction id that never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name the type in DDL."""
        return "xid8"

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], int | None]:
        """Read the driver's text as a number."""
        del dialect, coltype
        return lambda value: None if value is None else int(value)


class EntrypointName(UserDefinedType[str]):
    """The enum `scheduler.entrypoint`, whose labels are the names of the registered entries."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Name the type in DDL."""
        return f"{SCHEMA}.entrypoint"

    def bind_expression(self, bindvalue: BindParameter[str]) -> ColumnElement[str]:
        """Cast, because the driver sends a string as text."""
        return cast(bindvalue, self)


def _one_of(column: str, values: type[enum.StrEnum]) -> CheckConstraint:
    labels = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({labels})", name=f"{column}_known")


def _instant(name: str, *, nullable: bool = False, default: bool = False) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=NOW if default else None)


def _identifier() -> Column[UUID]:
    return Column("id", Uuid, primary_key=True, server_default=text("gen_random_uuid()"))


def _policy_columns() -> list[Column[Any]]:
    return [
        Column("overlap", Text, nullable=False, server_default=Overlap.SKIP.value),
        Column("catchup", Text, nullable=False, server_default=Catchup.LATEST.value),
        Column("catchup_window", Interval),
        Column("timeout", Interval, nullable=False),
        Column("max_attempts", Integer, nullable=False, server_default=text("1")),
        Column("backoff_initial", Interval, nullable=False, server_default=text("'10 seconds'::interval")),
        Column("backoff_maximum", Interval, nullable=False, server_default=text("'10 minutes'::interval")),
        Column("jitter", Interval, nullable=False, server_default=text("'0 seconds'::interval")),
        _instant("starts_at", nullable=True),
        _instant("ends_at", nullable=True),
        Column("max_runs", BigInteger),
        Column("run_timeout", Interval),
    ]


def _policy_checks() -> list[CheckConstraint]:
    return [
        _one_of("overlap", Overlap),
        _one_of("catchup", Catchup),
        # Also what keeps one cron, changed by hand, from overflowing the instant that ends everybody's attempts.
        CheckConstraint("timeout > interval '0' AND timeout <= interval '1 year'", name="timeout_bounded"),
        CheckConstraint("max_attempts >= 1", name="max_attempts_positive"),
        CheckConstraint("run_timeout > interval '0' AND run_timeout <= interval '1 year'", name="run_timeout_bounded"),
    ]


metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
    },
)

organizations = Table(
    "organizations",
    metadata,
    _identifier(),
    Column("name", Text, nullable=False),
    Column("state", Text, nullable=False, server_default=OrganizationState.ACTIVE.value),
    _instant("created_at", default=True),
    Column("entrypoints", ARRAY(Text), comment="the entries it may use; null for every one"),
    Column("cron_quota", Integer, comment="null for the installation's default"),
    Column("triggers_per_minute", Integer, comment="null for the installation's default"),
    Column(
        "crons",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="how many crons it has; counted again before a quota refuses one",
    ),
    UniqueConstraint("name"),
    _one_of("state", OrganizationState),
    CheckConstraint("cron_quota >= 0", name="cron_quota_not_negative"),
    CheckConstraint("triggers_per_minute >= 0", name="triggers_per_minute_not_negative"),
)

api_keys = Table(
    "api_keys",
    metadata,
    _identifier(),
    Column("organization_id", Uuid, ForeignKey(organizations.c.id), nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("secret_hash", LargeBinary, nullable=False, comment="SHA-256 of the key's 256-bit random secret"),
    _instant("created_at", default=True),
    Column("created_by", Text, nullable=False),
    _instant("revoked_at", nullable=True),
    _one_of("role", Role),
    Index("api_keys_by_organization", "organization_id", "created_at", "id"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("scope", Text, primary_key=True, comment="whose key it is: an organization's id, or 'installation'"),
    Column("key", Text, primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    Column("status", Integer),
    # As text would be, so that an answer given again has its members in the same order.
    Column("headers", JSON(none_as_null=True)),
    Column("body", JSON(none_as_null=True)),
    _instant("created_at", default=True),
    Index("idempotency_keys_by_age", "created_at"),
)

cron_jobs = Table(
    "cron_jobs",
    metadata,
    _identifier(),
    Column("organization_id", Uuid, ForeignKey(organizations.c.id), nullable=False),
    Column("name", Text, nullable=False),
    Column("cron_expr", Text, nullable=False),
    Column("tz", Text, nullable=False),
    Column("entrypoint", EntrypointName(), nullable=False),
    Column("user_payload", JSONB, nullable=False),
    Column("execution_payload", JSONB, nullable=False),
    *_policy_columns(),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("generation", BigInteger, nullable=False, server_default=text("1")),
    _instant("effective_from", default=True),
    Column("source", Text, nullable=False, server_default=CronSource.API.value),
    Column("source_uid", Text, comment="UID of the resource that defines the cron"),
    Column("source_generation", BigInteger, comment="metadata.generation of that resource, as registered"),
    Column("source_namespace", Text, comment="namespace of that resource"),
    Column("source_name", Text, comment="name of that resource"),
    Column("source_scope", Text, comment="with what that resource goes without anybody having deleted it"),
    Column(
        "deletion_held",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="its resource went together with too many others, and nobody has confirmed that it is to be deleted",
    ),
    _instant("created_at", default=True),
    Column("created_by", Text, nullable=False),
    _instant("updated_at", default=True),
    Column("updated_by", Text, nullable=False),
    _instant("deleted_at", nullable=True),
    Column("deleted_by", Text),
    Column(
        "changed_by_transaction",
        TransactionId(),
        nullable=False,
        server_default=text("pg_current_xact_id()"),
        comment="kept by a trigger; the runner reads what changed since its last snapshot",
    ),
    *_policy_checks(),
    _one_of("source", CronSource),
    UniqueConstraint("id", "organization_id", name="cron_jobs_id_organization_id_key"),
    Index("cron_jobs_name_key", "organization_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("cron_jobs_by_organization", "organization_id", "created_at", "id"),
    Index("cron_jobs_by_change", "changed_by_transaction"),
    Index(
        "cron_jobs_one_per_resource",
        "source_namespace",
        "source_name",
        unique=True,
        postgresql_where=text("deleted_at IS NULL AND source = 'kubernetes'"),
    ),
)

cron_job_versions = Table(
    "cron_job_versions",
    metadata,
    Column("cron_id", Uuid, ForeignKey(cron_jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    _instant("effective_from"),
    Column("cron_expr", Text, nullable=False),
    Column("tz", Text, nullable=False),
    Column("enabled", Boolean, nullable=False, comment="false from a pause to its resume, and from a deletion on"),
    *_policy_columns(),
)

cron_runs = Table(
    "cron_runs",
    metadata,
    _identifier(),
    Column("organization_id", Uuid, nullable=False),
    Column("cron_id", Uuid, nullable=False),
    _instant("scheduled_for"),
    Column("trigger_kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("reason", Text, nullable=False, comment="a stable word in CamelCase"),
    Column("message", Text, nullable=False, comment="a sentence for people"),
    Column("execution_payload", JSONB(none_as_null=True), comment="in place of the cron's, for this run only"),
    Column("result", JSONB(none_as_null=True)),
    Column("error", JSONB(none_as_null=True)),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("generation", BigInteger, nullable=False),
    Column("epoch", BigInteger, comment="of the leader that changed the run last"),
    _instant("created_at", default=True),
    Column("created_by", Text, comment="who triggered it; empty for the schedule"),
    _instant("started_at", nullable=True),
    _instant("finished_at", nullable=True),
    _instant("missed_until", nullable=True),
    Column("missed_count", BigInteger),
    Column("not_before", DateTime(timezone=True), comment="when a retry may begin"),
    Column("deadline", DateTime(timezone=True), comment="no attempt begins or goes on after it"),
    _instant("cancel_requested_at", nullable=True),
    Column("cancel_requested_by", Text),
    Column("rerun_of", Uuid, comment="the run that was run again by this one"),
    ForeignKeyConstraint(
        ["cron_id", "organization_id"],
        [cron_jobs.c.id, cron_jobs.c.organization_id],
        name="cron_runs_cron_id_fkey",
        ondelete="CASCADE",
    ),
    _one_of("status", RunStatus),
    _one_of("trigger_kind", TriggerKind),
    CheckConstraint(
        "(finished_at IS NULL) = (status IN ('queued', 'running', 'waiting'))", name="terminal_is_finished"
    ),
    CheckConstraint(
        "(status = 'missed') = (missed_until IS NOT NULL AND missed_count IS NOT NULL)", name="missed_has_range"
    ),
    Index(
        "cron_runs_one_per_fire",
        "cron_id",
        "scheduled_for",
        unique=True,
        postgresql_where=text("trigger_kind = 'schedule'"),
    ),
    Index("cron_runs_by_cron", "cron_id", "scheduled_for", "id"),
    Index("cron_runs_triggered", "organization_id", "created_at", postgresql_where=text("trigger_kind = 'manual'")),
    # Not over `status`: an update of it could then not stay on its page (heap-only tuples), and every index would grow.
    Index("cron_runs_active", "cron_id", postgresql_where=text("finished_at IS NULL")),
    postgresql_with={"fillfactor": 70},
)

cron_attempts = Table(
    "cron_attempts",
    metadata,
    Column("run_id", Uuid, ForeignKey(cron_runs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("nonce", Uuid, nullable=False, comment="proves that a finish belongs to this very attempt"),
    Column("epoch", BigInteger, nullable=False),
    Column("location", Text, nullable=False, comment="where it runs, such as the runner's name"),
    _instant("lease_expires_at"),
    _instant("started_at", default=True),
    _instant("finished_at", nullable=True),
    Column("outcome", Text),
    Column("reason", Text),
    Column("message", Text),
    Column("error", JSONB(none_as_null=True)),
    Column("output", Text, comment="what the entry printed, bounded"),
    Column(
        "execution",
        Text,
        nullable=False,
        server_default=Execution.IN_PROCESS.value,
        comment="who keeps its lease: the runner, or heartbeats of its own",
    ),
    _instant("deadline", nullable=True),
    Column(
        "callback_hash",
        LargeBinary,
        comment="SHA-256 of the token by which somebody else may tell its end; null once it was used",
    ),
    _one_of("execution", Execution),
    CheckConstraint("outcome IN ('completed', 'error', 'timed_out', 'cancelled', 'lost')", name="outcome_known"),
    CheckConstraint("(outcome IS NULL) = (finished_at IS NULL)", name="finished_has_outcome"),
    postgresql_with={"fillfactor": 70},
)

apscheduler_jobs = Table(
    "apscheduler_jobs",
    metadata,
    Column("id", Uuid, ForeignKey(cron_jobs.c.id, ondelete="CASCADE"), primary_key=True),
    _instant("next_run_time", nullable=True),
    Column("generation", BigInteger, nullable=False),
)

cron_mirrors = Table(
    "cron_mirrors",
    metadata,
    Column("cron_id", Uuid, ForeignKey(cron_jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uid", Text, comment="of the resource that was made there"),
    UniqueConstraint("namespace", "name", name="cron_mirrors_namespace_name_key"),
)

attempt_jobs = Table(
    "attempt_jobs",
    metadata,
    Column("run_id", Uuid, ForeignKey(cron_runs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("uid", Text, nullable=False, comment="of the Job; a pod that it does not control is not the attempt"),
    Column("service_account", Text, nullable=False),
    _instant("created_at", default=True),
    Column("settled_at", DateTime(timezone=True), comment="when nothing was left to do for it"),
    Column("log", Text, comment="the end of what its pod wrote, bounded"),
    Index("attempt_jobs_unsettled", "run_id", postgresql_where=text("settled_at IS NULL")),
)

schema_compatibility = Table(
    "schema_compatibility",
    metadata,
    Column("only_row", Boolean, primary_key=True, server_default=text("true")),
    Column(
        "oldest_code_revision",
        Text,
        nullable=False,
        comment="code whose newest revision is older than this one must not serve",
    ),
    CheckConstraint("only_row", name="only_row"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    _instant("expires_at"),
    Column("renewed_at", DateTime(timezone=True), comment="when the holder took or renewed it last"),
)
