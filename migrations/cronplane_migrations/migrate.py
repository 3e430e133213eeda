"""Brings a database up to this version's schema, run by the role that owns it.

It adds every registered entry to the enum and never removes one, and it lets the service's role in without giving it
any table. It never downgrades: older code leaves a newer schema as it is, if it may serve with it, and a mistake is
mended by a newer revision.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from cronplane_core.errors import CronplaneError
from cronplane_core.schema_revision import REVISION, SchemaState, judge
from cronplane_core.tables import SCHEMA

# Any number will do, as long as it is the same for every version of Cronplane.
_LOCK = 0x43524F4E
# Rows of a backup may bear ids of transactions that the server they were restored to has not come to. A runner would
# take them for changed at each look; the trigger on any update stamps them anew.
_STAMP_RESTORED = text(
    """
    UPDATE scheduler.cron_jobs SET id = id
    WHERE changed_by_transaction >= pg_snapshot_xmax(pg_current_snapshot())
    """
)


class MigrationError(CronplaneError):
    """The schema could not be brought up to date; nothing of it was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """What a migration did: the revisions before (None for a new database) and after, and the entries it added.

    `notice` is what is to be told of a schema that is newer than this version, and that was left as it is.
    """

    revision_before: str | None
    revision: str
    added_entries: tuple[str, ...]
    notice: str | None = None


def alembic_config(connection: Connection) -> Config:
    """Point Alembic at this package's revisions and at an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def current_revision(connection: Connection) -> str | None:
    """Read the revision that the database is at, or None for a database without our schema."""
    return MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA}).get_current_revision()


def migrate(url: URL, *, entries: Iterable[str], service_role: str) -> Migration:
    """Upgrade to the newest revision in one transaction; two migrations at once run one after the other.

    A schema that is newer is left as it is.

    Raises:
        MigrationError: PostgreSQL refused, or this version may not serve with a newer schema; nothing was changed.

    """
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            return _migrate(connection, entries=entries, service_role=service_role)
    except DBAPIError as error:
        raise MigrationError(f"The migration was refused by PostgreSQL: {str(error.orig).strip()}") from error
    finally:
        engine.dispose()


def _migrate(connection: Connection, *, entries: Iterable[str], service_role: str) -> Migration:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    # A table that is in use makes the migration fail after this, rather than block everybody behind it.
    connection.execute(text("SET LOCAL lock_timeout = '10s'"))
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    before = current_revision(connection)
    if before is not None and before not in _known_revisions(connection):
        return _leave_newer_schema(connection, revision=before, entries=entries)
    command.upgrade(alembic_config(connection), "head")
    connection.execute(_STAMP_RESTORED)
    added = _add_entries(connection, entries)
    _admit_service_role(connection, service_role)
    return Migration(revision_before=before, revision=REVISION, added_entries=added)


def _known_revisions(connection: Connection) -> set[str]:
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    return {script.revision for script in scripts.walk_revisions()}


def _leave_newer_schema(connection: Connection, *, revision: str, entries: Iterable[str]) -> Migration:
    """Add what this version has to find there, and nothing else: the version that migrated has let the service in."""
    oldest = connection.scalar(text("SELECT oldest_code_revision FROM scheduler.schema_compatibility"))
    readiness = judge(SchemaState(revision=revision, oldest_code=oldest))
    if readiness.obstacle is not None:
        raise MigrationError(readiness.obstacle)
    added = _add_entries(connection, entries)
    return Migration(revision_before=revision, revision=revision, added_entries=added, notice=readiness.notice)


def _add_entries(connection: Connection, entries: Iterable[str]) -> tuple[str, ...]:
    labels = connection.execute(
        text("SELECT enumlabel FROM pg_enum WHERE enumtypid = CAST(:type AS regtype)"), {"type": f"{SCHEMA}.entrypoint"}
    )
    known = set(labels.scalars())
    added = tuple(sorted(set(entries) - known))
    for name in added:
        _execute(connection, sql.SQL("ALTER TYPE scheduler.entrypoint ADD VALUE {}").format(sql.Literal(name)))
    return added


def _admit_service_role(connection: Connection, role: str) -> None:
    exists = connection.scalar(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role})
    if not exists:
        _execute(connection, sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    for statement in (
        "GRANT USAGE ON SCHEMA scheduler TO {}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA scheduler TO {}",
        "REVOKE INSERT, UPDATE, DELETE ON scheduler.alembic_version, scheduler.schema_compatibility FROM {}",
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA scheduler TO {}",
    ):
        _execute(connection, sql.SQL(statement).format(sql.Identifier(role)))


def _execute(connection: Connection, statement: sql.Composed) -> None:
    connection.exec_driver_sql(statement.as_string())
