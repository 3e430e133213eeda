"""The PostgreSQL that benchmarks run on: embedded, with every default of durability, `fsync` included."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import URL

from cronplane_core.database import connection_string, parse_url
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_entries.registry import CRON_REGISTRY
from cronplane_migrations.migrate import migrate

SERVICE_ROLE = "cronplane_service"


@contextmanager
def running_server() -> Iterator[EmbeddedPostgresql]:
    """Run a fresh server for as long as the block lasts."""
    directory = Path(tempfile.mkdtemp(prefix="cronplane-bench-"))
    directory.chmod(0o755)
    try:
        with EmbeddedPostgresql(directory / "data") as server:
            yield server
    finally:
        shutil.rmtree(directory)


def fresh_database(server: EmbeddedPostgresql, name: str) -> URL:
    """Make a migrated database; returns its address for the owner."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
    url = parse_url(server.url(database=name))
    migrate(url, entries=[str(entry) for entry in CRON_REGISTRY], service_role=SERVICE_ROLE)
    return url


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """Open a plain connection as the owner."""
    return psycopg.connect(connection_string(url), autocommit=True)


def add_crons(
    connection: psycopg.Connection[tuple[object, ...]], *, count: int, cron_expr: str, organization: str = "bench"
) -> None:
    """Write crons of the no-op entry, with their first versions, as registrations of an organization would have."""
    connection.execute(
        """
        WITH organization AS (
            INSERT INTO scheduler.organizations (name) VALUES (%s) RETURNING id
        ), cron AS (
            INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                             execution_payload, timeout, created_by, updated_by)
            SELECT id, 'cron ' || n, %s, 'UTC', 'bench_no_op', '{}', '{}', '1 hour', 'bench', 'bench'
            FROM organization, generate_series(1, %s) AS n
            RETURNING *
        )
        INSERT INTO scheduler.cron_job_versions (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
        SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM cron
        """,
        (organization, cron_expr, count),
    )
    connection.execute("ANALYZE scheduler.cron_jobs")
