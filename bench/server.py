"""The PostgreSQL that benchmarks run on: embedded, with every default of durability, `fsync` included."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
from sqlalchemy import URL

from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import connection_string, create_engine, parse_url, transaction
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_core.organization_repository import create_organization, list_organizations
from cronplane_core.tables import Role
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


def make_key(url: URL, *, organization: str = "bench") -> tuple[UUID, str]:
    """Give an organization's id, which is made if it is not there, and the text of an editor's key for it."""
    return asyncio.run(_make_key(url, organization))


async def _make_key(url: URL, organization: str) -> tuple[UUID, str]:
    engine = create_engine(url, pool_size=1, application_name="bench")
    async with transaction(engine) as connection:
        known = await list_organizations(connection, after=None, limit=1)
        owner = known[0] if known else await create_organization(connection, name=organization)
        _, key = await create_api_key(
            connection, organization_id=owner.id, name="bench", role=Role.EDITOR, created_by="bench"
        )
    await engine.dispose()
    return owner.id, key


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """Open a plain connection as the owner."""
    return psycopg.connect(connection_string(url), autocommit=True)


def add_crons(
    connection: psycopg.Connection[tuple[object, ...]],
    *,
    count: int,
    cron_expr: str,
    organization: str = "bench",
    entrypoint: str = "bench_no_op",
) -> None:
    """Write crons of an entry without payload, with their first versions, as registrations of an organization would."""
    connection.execute(
        """
        WITH organization AS (
            INSERT INTO scheduler.organizations (name) VALUES (%s) RETURNING id
        ), cron AS (
            INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                             execution_payload, timeout, created_by, updated_by)
            SELECT id, 'cron ' || n, %s, 'UTC', %s, '{}', '{}', '1 hour', 'bench', 'bench'
            FROM organization, generate_series(1, %s) AS n
            RETURNING *
        )
        INSERT INTO scheduler.cron_job_versions (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
        SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM cron
        """,
        (organization, cron_expr, entrypoint, count),
    )
    connection.execute("ANALYZE scheduler.cron_jobs")
