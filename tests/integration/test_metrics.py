"""What the API and runners tell Prometheus, on a real PostgreSQL, and the leader's own check of the record."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_api.application import create_application
from cronplane_cli.runner_role import status_pages
from cronplane_core import lease as leases
from cronplane_core.account import ViolationKind
from cronplane_core.database import autocommit, connection_string, create_engine, parse_url, transaction
from cronplane_core.leadership import Leadership
from cronplane_core.metrics import ProcessMetrics
from cronplane_core.settings import RunnerSettings
from cronplane_operator.account_scan import ScanError, scan
from cronplane_operator.status_server import status_server

NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
LEASE = timedelta(seconds=15)
# Only so that a test that would hang fails instead.
HANG_GUARD = 30.0
NOWHERE = parse_url("postgresql://nobody@/nothing?host=/nonexistent")


def values(text: str) -> dict[str, float]:
    """Every series without labels, and its value."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


@pytest.fixture
async def scrape(api_settings: Any, entries: Any) -> Any:
    """Ask an API's /metrics; its clock goes on a minute before each time, so that it looks anew."""
    seconds = [0.0]

    async def scrape(url: Any = None) -> dict[str, float]:
        settings = api_settings() if url is None else api_settings(url)
        metrics = ProcessMetrics(leadership=Leadership(monotonic=lambda: seconds[0]))
        application = create_application(settings, registry=entries, metrics=metrics)
        async with (
            application.router.lifespan_context(application),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(application), base_url="http://api") as client,
        ):
            answer = await client.get("/metrics")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return values(answer.text)

    return scrape


async def lead(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        assert await leases.acquire(connection, holder="somebody", duration=LEASE)


async def test_where_nobody_ever_led_the_leaders_age_is_infinite(scrape: Any, engine: AsyncEngine) -> None:
    told = await scrape()
    assert (told["cronplane_leader_age_seconds"], told["cronplane_database_up"]) == (inf, 1)


async def test_the_age_is_told_by_the_databases_clock_since_the_last_renewal(
    scrape: Any, engine: AsyncEngine, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="somebody", duration=LEASE)
    assert lease is not None
    database.set_clock(NOON + timedelta(seconds=10), speed=0)
    assert (await scrape())["cronplane_leader_age_seconds"] == 10
    async with transaction(engine) as connection:
        await leases.renew(connection, lease=lease, duration=LEASE)
    assert (await scrape())["cronplane_leader_age_seconds"] == 0
    database.set_clock(NOON + timedelta(seconds=41), speed=0)
    told = await scrape()
    assert (told["cronplane_leader_age_seconds"], told["cronplane_leader_epoch"]) == (31, lease.epoch)


async def test_a_leader_that_gave_the_lease_back_is_as_old_as_its_last_renewal(
    engine: AsyncEngine, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="somebody", duration=LEASE)
        assert lease is not None
        await leases.release(connection, lease=lease)
    database.set_clock(NOON + timedelta(minutes=1), speed=0)
    async with autocommit(engine) as connection:
        state = await leases.read(connection)
    assert state == leases.LeaseState(holder="somebody", epoch=1, renewed_at=NOON, age=timedelta(minutes=1))


async def test_a_leader_of_a_version_that_does_not_say_when_it_renewed_counts_from_the_end_of_its_lease(
    engine: AsyncEngine, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    await lead(engine)
    database.execute("UPDATE scheduler.leases SET renewed_at = NULL")
    ages = []
    for seconds in (10, 20):
        database.set_clock(NOON + timedelta(seconds=seconds), speed=0)
        async with autocommit(engine) as connection:
            state = await leases.read(connection)
        assert state is not None
        ages.append(state.age.total_seconds())
    assert ages == [0, 5]


async def test_without_a_database_the_api_still_answers_and_nobody_is_known_to_lead(scrape: Any) -> None:
    told = await scrape(NOWHERE)
    assert (told["cronplane_leader_age_seconds"], told["cronplane_database_up"]) == (inf, 0)


async def test_an_api_on_a_database_that_was_not_migrated_still_answers(
    scrape: Any, create_database: Callable[[str], Any]
) -> None:
    told = await scrape(create_database("template0").owner_url)
    assert (told["cronplane_leader_age_seconds"], told["cronplane_database_up"]) == (inf, 0)


async def test_while_the_database_is_away_the_age_grows_and_scrapes_close_together_ask_once(
    engine: AsyncEngine, statements: list[Any]
) -> None:
    await lead(engine)
    statements.clear()
    seconds = [0.0]
    leadership = Leadership(monotonic=lambda: seconds[0])
    for _ in range(3):
        await leadership.look(engine)
    assert len(statements) == 1
    before = leadership.age
    seconds[0] += 40
    await leadership.look(create_engine(NOWHERE, pool_size=1, application_name="test"))
    assert leadership.age == before + 40
    assert not leadership.is_fresh(within=LEASE.total_seconds())


async def test_requests_are_counted_by_route_method_and_status_and_by_nothing_that_a_client_makes_up(api: Any) -> None:
    cron = await api.register()
    await api.call("GET", cron["id"])
    await api.call("GET", str(uuid4()))
    for number in range(5):
        await api.call(f"MADEUP{number}", f"/made/up/{number}")
    text = (await api.call("GET", "/metrics", key=None)).text
    counts = {
        (labels["method"], labels["route"], labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "cronplane_http_request_duration_seconds_count" and (labels := sample.labels)
    }
    assert counts == {
        ("POST", "/crons/{organization_id}", "201"): 1,
        ("GET", "/crons/{organization_id}/{cron_id}", "200"): 1,
        ("GET", "/crons/{organization_id}/{cron_id}", "404"): 1,
        ("(other)", "(none)", "404"): 5,
    }
    assert "made" not in text.lower()
    assert str(api.organization_id) not in text


@pytest.fixture
def ask(database: Any) -> Callable[..., str]:
    """Ask a page of a runner's own server, as the command serves it."""

    def ask(running: Any, path: str = "/metrics") -> str:
        settings = RunnerSettings(database_url=database.url.render_as_string(hide_password=False))
        pages = status_pages(settings, runner=running.runner, process=running.journal.process)
        with status_server(host="127.0.0.1", port=0, pages=pages) as address:
            return httpx2.get(f"{address}{path}").text

    return ask


async def test_a_leader_and_a_standby_tell_what_they_are_and_both_know_the_leaders_age(
    start_runner: Any, ask: Callable[..., str], add_cron: Any
) -> None:
    await add_cron()
    leader = await start_runner()
    await leader.journal.until(lambda: any(load.scheduled for load in leader.journal.loads))
    standby = await start_runner(wait=False)
    await standby.journal.until(lambda: standby.journal.sights > 0)
    told = values(await asyncio.to_thread(ask, leader)), values(await asyncio.to_thread(ask, standby))
    assert [runner["cronplane_leader"] for runner in told] == [1, 0]
    assert [runner["cronplane_crons_scheduled"] for runner in told] == [1, 0]
    assert [runner["cronplane_leader_epoch"] for runner in told] == [1, 1]
    assert max(runner["cronplane_leader_age_seconds"] for runner in told) < LEASE.total_seconds()
    for running in (leader, standby):
        assert await asyncio.to_thread(ask, running, "/livez") == "ok\n"
        assert await asyncio.to_thread(ask, running, "/readyz") == "ok\n"
    await leader.stop()
    assert values(await asyncio.to_thread(ask, leader))["cronplane_leader"] == 0


async def test_a_runner_that_waits_for_a_migration_lives_and_is_not_ready(
    start_runner: Any, ask: Callable[..., str], database: Any
) -> None:
    database.execute("DROP SCHEMA scheduler CASCADE")
    running = await start_runner(wait=False)
    await running.journal.until(lambda: bool(running.journal.obstacles))
    assert await asyncio.to_thread(ask, running, "/livez") == "ok\n"
    assert "migrated" in await asyncio.to_thread(ask, running, "/readyz")


async def test_runs_that_happen_are_counted(
    start_runner: Any, ask: Callable[..., str], add_cron: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=120)
    cron = await add_cron()
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(cron.id)) >= 2)
    text = await asyncio.to_thread(ask, running)
    told = values(text)
    assert told["cronplane_attempts_started_total"] >= 2
    assert told["cronplane_start_lag_seconds_count"] >= 2
    ended = r'cronplane_runs_finished_total{entrypoint="no_op",reason="Completed",status="completed"} (\d+)'
    assert int(re.findall(ended, text)[0]) >= 2
    assert 'cronplane_fires_total{outcome="queued",reason="Claimed"}' in text
    assert 'cronplane_attempts_ended_total{outcome="completed"}' in text


async def test_the_leaders_scan_finds_a_damaged_row_and_the_metric_says_so_until_it_is_mended(
    start_runner: Any, ask: Callable[..., str], add_cron: Any, database: Any
) -> None:
    cron = await add_cron(cron_expr="@yearly")
    running = await start_runner(scan_interval=timedelta(seconds=0.1))
    await running.journal.until(lambda: len(running.journal.scans) >= 1)
    assert running.journal.scans[0].counts == {}
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at)
           SELECT organization_id, id, '2026-01-01 00:30Z', 'schedule', 'skipped', 'ByHand', '', 1, scheduler.now()
           FROM scheduler.cron_jobs"""
    )
    await running.journal.until(lambda: running.journal.scans[-1].counts == {ViolationKind.NOT_OWED: 1})
    [example] = running.journal.scans[-1].examples[ViolationKind.NOT_OWED]
    assert str(cron.id) in example
    text = await asyncio.to_thread(ask, running)
    assert 'cronplane_violations{kind="not_owed"} 1.0' in text
    assert 'cronplane_violations{kind="gap"} 0.0' in text
    assert values(text)["cronplane_scan_timestamp_seconds"] > 0
    database.execute("DELETE FROM scheduler.cron_runs")
    await running.journal.until(lambda: running.journal.scans[-1].counts == {})
    assert 'cronplane_violations{kind="not_owed"} 0.0' in await asyncio.to_thread(ask, running)


async def test_a_scan_without_a_database_says_so() -> None:
    with pytest.raises(ScanError, match="PostgreSQL does not answer"):
        await scan(NOWHERE)


def scanners() -> list[int]:
    """The processes that this one has made to scan."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"cronplane_operator.account_scan" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@pytest.fixture
async def held_up_scan(database: Any) -> AsyncIterator[asyncio.Task[Any]]:
    """A scan that waits for a lock on what it reads."""
    with psycopg.connect(connection_string(database.owner_url)) as connection:
        connection.execute("LOCK TABLE scheduler.cron_jobs IN ACCESS EXCLUSIVE MODE")
        scanning = asyncio.create_task(scan(database.url))
        waiting = (
            "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = %s)"
        )
        async with asyncio.timeout(HANG_GUARD):
            while not await asyncio.to_thread(database.execute, waiting, [database.name]):
                pass
        yield scanning
        await asyncio.gather(scanning, return_exceptions=True)


async def test_a_scan_whose_process_is_killed_says_so(held_up_scan: asyncio.Task[Any]) -> None:
    [scanner] = scanners()
    os.kill(scanner, signal.SIGKILL)
    with pytest.raises(ScanError, match="before it was done"):
        await held_up_scan


async def test_a_scan_that_is_given_up_leaves_no_process_behind(held_up_scan: asyncio.Task[Any]) -> None:
    held_up_scan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held_up_scan
    assert scanners() == []


async def test_a_scanning_process_ends_with_the_one_that_asked_for_it(database: Any) -> None:
    with psycopg.connect(connection_string(database.owner_url)) as connection:
        connection.execute("LOCK TABLE scheduler.cron_jobs IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cronplane_operator.account_scan", stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        process.stdin.write(connection_string(database.url).encode() + b"\n")
        process.stdin.close()
        async with asyncio.timeout(HANG_GUARD):
            assert await process.wait() == 1
