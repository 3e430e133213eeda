"""The schema's history: it agrees with the models, keeps rows, and gives the service's role nothing to break."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, create_engine
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import TypeEngine

from cronplane_core.database import connection_string
from cronplane_core.schema_revision import REVISION
from cronplane_core.tables import SCHEMA, EntrypointName, TransactionId, metadata
from cronplane_migrations.migrate import Migration, MigrationError, alembic_config, migrate

SERVICE_ROLE = "cronplane_service"
TABLES = sorted(table.name for table in metadata.tables.values())
READ_ONLY = {"alembic_version", "schema_compatibility"}
ROWS = {
    "0001": """
        INSERT INTO scheduler.organizations (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'acme');
        INSERT INTO scheduler.api_keys (organization_id, name, role, secret_hash, created_by)
        SELECT id, 'a key', 'admin', 'a hash', 'somebody' FROM scheduler.organizations;
        INSERT INTO scheduler.idempotency_keys (scope, key, fingerprint, status, headers, body)
        VALUES ('acme', 'a key', 'a fingerprint', 201, '{"ETag": "1"}', '{"id": 9007199254740993}');
        INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                         execution_payload, timeout, created_by, updated_by)
        SELECT id, 'a cron', '* * * * *', 'UTC', 'an_entry', '{}', '{"n": 1}', '1 h', 'somebody', 'somebody'
        FROM scheduler.organizations;
        INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                         execution_payload, timeout, created_by, updated_by, deleted_at, deleted_by)
        SELECT id, 'a cron', '* * * * *', 'UTC', 'an_entry', '{}', '{}', '1 h', 'somebody', 'somebody',
               scheduler.now(), 'somebody' FROM scheduler.organizations;
        INSERT INTO scheduler.cron_job_versions (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
        SELECT id, 1, effective_from, cron_expr, tz, enabled, timeout FROM scheduler.cron_jobs;
        INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason, message,
                                         generation, finished_at, missed_until, missed_count)
        SELECT organization_id, id, timestamptz '2026-01-01 00:00Z', 'schedule', 'completed', 'Completed', '', 1,
               scheduler.now(), NULL::timestamptz, NULL::bigint FROM scheduler.cron_jobs
        UNION ALL SELECT organization_id, id, '2026-01-01 00:01Z', 'schedule', 'missed', 'NoRunner', '', 1,
               scheduler.now(), '2026-01-01 00:09Z', 9 FROM scheduler.cron_jobs
        UNION ALL SELECT organization_id, id, '2026-01-01 00:01Z', 'manual', 'running', 'Started', '', 1,
               NULL, NULL, NULL FROM scheduler.cron_jobs;
        INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at)
        SELECT id, 1, gen_random_uuid(), 1, 'here', scheduler.now() FROM scheduler.cron_runs WHERE status = 'running';
        INSERT INTO scheduler.apscheduler_jobs (id, next_run_time, generation)
        SELECT id, '2026-01-01 00:10Z', generation FROM scheduler.cron_jobs;
        INSERT INTO scheduler.leases VALUES ('runner', 'somebody', 7, scheduler.now());
    """,
}
ROWS["0002"] = (
    ROWS["0001"]
    + """
    INSERT INTO scheduler.organizations (name, entrypoints, cron_quota, triggers_per_minute, crons)
    VALUES ('limited', '{an_entry}', 10, 0, 3);
"""
)
ROWS["0003"] = ROWS["0002"] + "UPDATE scheduler.leases SET renewed_at = '2026-01-01 00:00Z';"
ROWS["0004"] = (
    ROWS["0003"]
    + "UPDATE scheduler.cron_jobs SET run_timeout = '1 hour'; "
    + "UPDATE scheduler.cron_runs SET deadline = now(), rerun_of = gen_random_uuid(); "
    + "UPDATE scheduler.cron_attempts SET deadline = now(), callback_hash = 'hash';"
)
ROWS["0005"] = (
    ROWS["0004"] + "INSERT INTO scheduler.cron_mirrors SELECT id, 'acme', id::text, 'a uid' FROM scheduler.cron_jobs;"
)
ROWS["0006"] = (
    ROWS["0005"]
    + "INSERT INTO scheduler.attempt_jobs SELECT id, 1, 'runs', 'a-job', 'a uid', 'run', now(), now(), 'a log' "
    + "FROM scheduler.cron_runs;"
)
ROWS["0007"] = ROWS["0006"] + (
    "UPDATE scheduler.cron_jobs SET source = 'kubernetes', source_uid = 'a uid', source_generation = 1,"
    " source_namespace = 'acme', source_name = id::text, source_scope = 'a scope';"
)
ROWS["0008"] = ROWS["0007"]
ROWS["0009"] = ROWS["0008"] + "UPDATE scheduler.cron_jobs SET deletion_held = true;"


FORBIDDEN = [
    *(
        statement.format(f"{SCHEMA}.{table}")
        for table in TABLES
        for statement in (
            "ALTER TABLE {} ADD COLUMN c integer",
            "ALTER TABLE {} DISABLE TRIGGER ALL",
            "ALTER TABLE {} OWNER TO CURRENT_USER",
            "TRUNCATE {} CASCADE",
            "DROP TABLE {} CASCADE",
            "CREATE INDEX ON {} ((1))",
        )
    ),
    f"CREATE TABLE {SCHEMA}.mine ()",
    f"CREATE FUNCTION {SCHEMA}.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    f"CREATE OR REPLACE FUNCTION {SCHEMA}.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT clock_timestamp()'",
    f"ALTER FUNCTION {SCHEMA}.now() STABLE",
    f"DROP FUNCTION {SCHEMA}.now() CASCADE",
    f"DROP FUNCTION {SCHEMA}.stamp_changed_by_transaction() CASCADE",
    f"ALTER TYPE {SCHEMA}.entrypoint ADD VALUE 'mine'",
    f"DROP TYPE {SCHEMA}.entrypoint CASCADE",
    f"ALTER SCHEMA {SCHEMA} RENAME TO mine",
    f"DROP SCHEMA {SCHEMA} CASCADE",
    f"INSERT INTO {SCHEMA}.alembic_version VALUES ('mine')",
    f"UPDATE {SCHEMA}.alembic_version SET version_num = 'mine'",
    f"DELETE FROM {SCHEMA}.alembic_version",
    f"UPDATE {SCHEMA}.schema_compatibility SET oldest_code_revision = '0001'",
    "CREATE SCHEMA mine",
    "CREATE TABLE public.mine ()",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
]


@pytest.fixture
def empty(create_database: Callable[[str], Any]) -> Any:
    return create_database("template0")


def upgrade(database: Any, *, entries: tuple[str, ...] = ("an_entry",), service_role: str = SERVICE_ROLE) -> Migration:
    return migrate(database.owner_url, entries=entries, service_role=service_role)


def connect(database: Any) -> Iterator[Connection]:
    engine = create_engine(database.owner_url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def connection(database: Any) -> Iterator[Connection]:
    yield from connect(database)


def revisions() -> list[str]:
    """Every revision, oldest first."""
    with create_engine("sqlite://").connect() as anything:
        scripts = ScriptDirectory.from_config(alembic_config(anything))
    return [script.revision for script in scripts.walk_revisions()][::-1]


def relations(database: Any) -> list[str]:
    found = database.execute(
        f"SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('{SCHEMA}') AND relkind IN ('r', 'v', 'S')"
    )
    return sorted(row[0] for row in found)


def contents(database: Any) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table but Alembic's."""
    return {
        table: [row[0] for row in database.execute(f"SELECT to_jsonb(t) FROM {SCHEMA}.{table} t ORDER BY t::text")]
        for table in relations(database)
        if table != "alembic_version"
    }


def catalog(database: Any) -> dict[str, list[tuple[Any, ...]]]:
    """What PostgreSQL knows of the tables, in its own words."""
    within = f"'{SCHEMA}'::regnamespace AND c.relname <> 'alembic_version'"
    return {
        "columns": database.execute(
            f"""SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
                       pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated, col_description(c.oid, a.attnum)
                FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
                WHERE c.relkind = 'r' AND c.relnamespace = {within} ORDER BY 1, 2"""
        ),
        "constraints": database.execute(
            f"""SELECT c.relname, k.conname, pg_get_constraintdef(k.oid) FROM pg_constraint k
                JOIN pg_class c ON c.oid = k.conrelid WHERE c.relnamespace = {within} ORDER BY 1, 2"""
        ),
        "indexes": database.execute(
            f"""SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i
                JOIN pg_class c ON c.oid = i.indrelid WHERE c.relnamespace = {within} ORDER BY 1, 2"""
        ),
    }


def test_alembic_finds_no_difference_between_migrations_and_models(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLAlchemy cannot reflect this type by itself.
    monkeypatch.setitem(PGDialect.ischema_names, "xid8", TransactionId)

    def is_type_different(_: object, __: object, ___: object, found: TypeEngine[Any], wanted: TypeEngine[Any]) -> Any:
        if isinstance(wanted, EntrypointName):
            return (getattr(found, "schema", None), getattr(found, "name", None)) != (SCHEMA, "entrypoint")
        return None

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
            "version_table_schema": SCHEMA,
            "compare_type": is_type_different,
            "compare_server_default": True,
        },
    )
    assert compare_metadata(context, metadata) == []


def test_postgresql_finds_no_difference_between_migrations_and_models(database: Any, empty: Any) -> None:
    empty.execute(f"CREATE SCHEMA {SCHEMA}")
    empty.execute(
        f"CREATE FUNCTION {SCHEMA}.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()'"
    )
    empty.execute(f"CREATE TYPE {SCHEMA}.entrypoint AS ENUM ()")
    for connection in connect(empty):
        metadata.create_all(connection)
    migrated = catalog(database)
    assert sorted({row[0] for row in migrated["columns"]}) == TABLES
    assert migrated == catalog(empty)


def test_there_are_rows_to_try_every_revision_with() -> None:
    assert sorted(ROWS) == revisions()


@pytest.mark.parametrize("revision", revisions())
def test_an_upgrade_keeps_the_rows_that_were_there(empty: Any, revision: str) -> None:
    empty.execute(f"CREATE SCHEMA {SCHEMA}")
    for connection in connect(empty):
        command.upgrade(alembic_config(connection), revision)
    empty.execute("ALTER TYPE scheduler.entrypoint ADD VALUE 'an_entry'")
    empty.execute(ROWS[revision])
    before = contents(empty)
    assert [table for table, rows in before.items() if not rows] == []
    assert upgrade(empty).revision_before == revision
    after = contents(empty)
    for table, rows in before.items():
        assert len(after[table]) == len(rows)
        assert all(any(row.items() <= kept.items() for kept in after[table]) for row in rows)


def test_an_upgrade_counts_the_crons_that_were_there(empty: Any) -> None:
    empty.execute(f"CREATE SCHEMA {SCHEMA}")
    for connection in connect(empty):
        command.upgrade(alembic_config(connection), "0001")
    empty.execute("ALTER TYPE scheduler.entrypoint ADD VALUE 'an_entry'")
    empty.execute(ROWS["0001"])
    upgrade(empty)
    assert empty.execute("SELECT name, crons FROM scheduler.organizations") == [("acme", 1)]


def test_a_second_migration_changes_nothing(empty: Any) -> None:
    first = upgrade(empty)
    before = catalog(empty)
    assert (first.revision_before, first.revision, first.added_entries) == (None, revisions()[-1], ("an_entry",))
    assert upgrade(empty) == Migration(revision_before=first.revision, revision=first.revision, added_entries=())
    assert catalog(empty) == before


def test_a_migration_adds_entries_and_never_removes_one(empty: Any) -> None:
    upgrade(empty, entries=("old", "kept"))
    assert upgrade(empty, entries=("new", "kept", "newer")).added_entries == ("new", "newer")
    labels = empty.execute("SELECT unnest(enum_range(NULL::scheduler.entrypoint))::text")
    assert {row[0] for row in labels} == {"old", "kept", "new", "newer"}


def test_migrations_at_once_run_one_after_the_other(empty: Any) -> None:
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda n: upgrade(empty, entries=("an_entry", f"entry_{n}")), range(4)))
    assert [migration.revision_before for migration in done].count(None) == 1
    assert sorted(name for migration in done for name in migration.added_entries) == [
        "an_entry",
        *(f"entry_{n}" for n in range(4)),
    ]


@pytest.mark.parametrize(
    ("obstacle", "entries"),
    [
        (f"CREATE SCHEMA {SCHEMA} CREATE TABLE leases ()", ("an_entry",)),
        (f"CREATE SCHEMA {SCHEMA} CREATE TABLE leases_elsewhere ()", ("an_entry", "e" * 64)),
    ],
)
def test_a_migration_that_fails_leaves_nothing(empty: Any, obstacle: str, entries: tuple[str, ...]) -> None:
    empty.execute(obstacle)
    before = relations(empty)
    with pytest.raises(MigrationError, match="refused by PostgreSQL"):
        upgrade(empty, entries=entries, service_role="a_role_that_is_never_made")
    assert relations(empty) == before
    assert (
        empty.execute(f"SELECT 1 FROM pg_type WHERE typname = 'entrypoint' AND typnamespace = '{SCHEMA}'::regnamespace")
        == []
    )
    assert empty.execute("SELECT 1 FROM pg_roles WHERE rolname = 'a_role_that_is_never_made'") == []


def test_this_version_knows_which_revision_it_brings() -> None:
    assert revisions()[-1] == REVISION


def test_a_newer_schema_that_this_version_may_serve_with_is_left_as_it_is(empty: Any) -> None:
    upgrade(empty)
    empty.execute("UPDATE scheduler.alembic_version SET version_num = '9999'")
    before = catalog(empty)
    left = upgrade(empty, entries=("another_entry",))
    assert (left.revision_before, left.revision, left.added_entries) == ("9999", "9999", ("another_entry",))
    assert left.notice is not None
    assert "compatible" in left.notice
    assert catalog(empty) == before


def test_a_newer_schema_that_this_version_may_not_serve_with_is_refused(empty: Any) -> None:
    upgrade(empty)
    empty.execute("UPDATE scheduler.alembic_version SET version_num = '9999'")
    empty.execute("UPDATE scheduler.schema_compatibility SET oldest_code_revision = '9998'")
    with pytest.raises(MigrationError, match=r"9999.*9998.*install a newer"):
        upgrade(empty, entries=("another_entry",))
    assert empty.execute("SELECT unnest(enum_range(NULL::scheduler.entrypoint))::text") == [("an_entry",)]


def test_an_absent_role_is_made_and_may_log_in_and_nothing_else(empty: Any) -> None:
    upgrade(empty, service_role="another_service")
    role = empty.execute(
        """SELECT rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolpassword IS NULL
           FROM pg_authid WHERE rolname = 'another_service'"""
    )
    assert role == [(True, False, False, False, False, False, True)]


def test_the_services_role_owns_nothing_and_belongs_to_no_owner(database: Any) -> None:
    owned = database.execute(
        """SELECT 'relation', relname FROM pg_class WHERE relowner = %(role)s::regrole
           UNION ALL SELECT 'type', typname FROM pg_type WHERE typowner = %(role)s::regrole
           UNION ALL SELECT 'function', proname FROM pg_proc WHERE proowner = %(role)s::regrole
           UNION ALL SELECT 'schema', nspname FROM pg_namespace WHERE nspowner = %(role)s::regrole
           UNION ALL SELECT 'member of', roleid::regrole::text FROM pg_auth_members WHERE member = %(role)s::regrole""",
        {"role": SERVICE_ROLE},
    )
    assert owned == []


def test_the_services_role_may_change_nothing_but_rows(database: Any) -> None:
    def is_refused(statement: str) -> bool:
        try:
            service.execute(statement.encode())
        except InsufficientPrivilege:
            return True
        return False

    with psycopg.connect(connection_string(database.url), autocommit=True) as service:
        assert [statement for statement in FORBIDDEN if not is_refused(statement)] == []


def test_the_services_role_reads_and_writes_rows(database: Any) -> None:
    with psycopg.connect(connection_string(database.url)) as connection:
        granted = connection.execute(
            """SELECT table_name, count(*), max(is_grantable) FROM information_schema.role_table_grants
               WHERE grantee = %s AND table_schema = %s AND table_name <> ALL (%s)
                 AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE') GROUP BY 1 ORDER BY 1""",
            (SERVICE_ROLE, SCHEMA, list(READ_ONLY)),
        ).fetchall()
    assert granted == [(table, 4, "NO") for table in TABLES if table not in READ_ONLY]
