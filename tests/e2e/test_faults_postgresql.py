"""The table of faults: PostgreSQL goes away under load, or has no room left, and comes back.

The server is the test's own. Each test ends with the checker and the ledger.
"""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from psycopg.errors import DiskFull

from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.tables import Role

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
ENDED = "SELECT count(*) >= %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
COUNT_ENDED = "SELECT count(*) FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
HANG_GUARD = 30.0


@pytest.fixture
def database(own_server: Any, migrate_on: Any) -> Any:
    return migrate_on(own_server)


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires."""

    async def add(name: str = "work") -> Any:
        payload = {"ledger": str(ledger)}
        return await add_cron(name, entrypoint="keep_ledger", payload=payload)

    database.set_clock(BEFORE)
    return add


@pytest.fixture
async def call(engine: Any, organization: Any, start_process: Any) -> Any:
    """Call the API of a process of its own, as an editor."""
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="test", role=Role.EDITOR, created_by="test"
        )
    await engine.dispose()
    crons = f"{start_process('api').address}/crons/{organization.id}"
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}) as client:
        yield lambda method, path: client.request(method, crons + path)


async def until_answered(call: Any, status: int, method: str, path: str) -> httpx2.Response:
    """Ask until the answer has a status; each answer is waited for, and nothing else is."""
    async with asyncio.timeout(HANG_GUARD):
        while True:
            answer: httpx2.Response = await call(method, path)
            assert answer.status_code in {status, 200, 202, 503}, answer.text
            if answer.status_code == status:
                return answer


@pytest.mark.parametrize("shutdown", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
async def test_postgresql_restart_the_api_says_when_to_come_back_and_the_runner_resumes(
    *,
    own_server: Any,
    database: Any,
    add_work: Any,
    start_process: Any,
    call: Any,
    until: Any,
    assert_nothing_is_lost: Any,
    shutdown: signal.Signals,
) -> None:
    for number in range(20):
        await add_work(f"work {number}")
    runner = start_process("runner")
    runner.log.wait_for("became leader")
    database.set_clock(DUE, speed=60)
    for restart in range(1, 4):
        [(ended,)] = database.execute(COUNT_ENDED)
        await until(ENDED, [ended + 30])
        os.kill(own_server.pid, shutdown)
        own_server.stop()
        refused = await until_answered(call, 503, "GET", "")
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.headers["Content-Type"] == "application/problem+json"
        runner.log.wait_for("database away", times=restart)
        own_server.start()
        await until_answered(call, 200, "GET", "")
    [(ended,)] = database.execute(COUNT_ENDED)
    await until(ENDED, [ended + 30])
    await assert_nothing_is_lost()


@contextmanager
def full_file_system(database: Any, data_directory: Path) -> Iterator[None]:
    """Leave no room for another page of `cron_runs`, on a file system of its own."""
    folder = data_directory.with_name("small")
    folder.mkdir()
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        shutil.chown(folder, data_directory.owner())
        database.execute(f"CREATE TABLESPACE small LOCATION '{folder}'")
        database.execute("ALTER TABLE scheduler.cron_runs SET TABLESPACE small")
        database.execute("CREATE TABLE public.filler (filler text) TABLESPACE small")
        with pytest.raises(DiskFull):
            database.execute("INSERT INTO public.filler SELECT repeat('x', 1000) FROM generate_series(1, 10_000)")
        # What a statement took that failed is free only after VACUUM; the page that was missing is missing still.
        yield
        database.execute("DROP TABLE public.filler")
        database.execute("ALTER TABLE scheduler.cron_runs SET TABLESPACE pg_default")
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", folder], check=True)


@contextmanager
def refused_as_by_a_full_disk(database: Any, data_directory: Path) -> Iterator[None]:
    """Have PostgreSQL refuse each new run as it does when there is no room, where nobody may mount a file system."""
    database.execute(
        """
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON scheduler.cron_runs EXECUTE FUNCTION public.refuse();
        """
    )
    yield
    database.execute("DROP TRIGGER refuse ON scheduler.cron_runs")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@pytest.mark.parametrize(
    "fill", [pytest.param(full_file_system, marks=needs_root), refused_as_by_a_full_disk], ids=["mounted", "refused"]
)
async def test_disk_full_no_row_and_no_launch_503_and_caught_up_later(
    *,
    own_server: Any,
    database: Any,
    add_work: Any,
    start_process: Any,
    call: Any,
    until: Any,
    assert_nothing_is_lost: Any,
    fill: Any,
) -> None:
    cron = await add_work()
    runner = start_process("runner")
    runner.log.wait_for("became leader")
    await until("SELECT count(*) = 1 FROM scheduler.apscheduler_jobs")
    with fill(database, own_server.data_directory):
        database.set_clock(DUE)
        runner.log.wait_for("claim postponed", times=2)
        answer = await call("POST", f"/{cron.id}/trigger")
        assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (503, True)
        assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(0,)]
        assert database.execute("SELECT count(*) FROM scheduler.cron_attempts") == [(0,)]
    await until(ENDED, [1])
    assert database.execute("SELECT status, scheduled_for FROM scheduler.cron_runs") == [("completed", DUE)]
    await assert_nothing_is_lost()
