"""The check on a real database: after real runs it finds nothing, and after damage by hand it finds the damage."""

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.cron_repository import Cron, delete_cron, lock_cron, update_cron
from cronplane_core.database import connection_string, transaction

NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
FAST = 120.0
FIRES = 6
Find = Callable[[], Awaitable[list[tuple[str, datetime]]]]


@pytest.fixture
def find(engine: AsyncEngine) -> Find:
    async def find() -> list[tuple[str, datetime]]:
        # The clock of these tests runs fast, so that a moment of theirs is many minutes of the database's.
        grace = Grace(unclaimed=timedelta(days=1), overdue=timedelta(days=1))
        return [(found.kind.value, found.at) async for found in find_violations(engine, grace=grace)]

    return find


@pytest.fixture
async def record(database: Any, add_cron: Any, start_runner: Any, engine: AsyncEngine) -> list[datetime]:
    """Let crons fire for real, through an edit, a pause and a deletion, and give the fires of the first."""
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron("every minute")
    edited, deleted = await add_cron("edited", cron_expr="*/2 * * * *"), await add_cron("deleted")
    await add_cron("paused", enabled=False)
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(edited.id)) >= 1)
    await change(engine, edited, cron_expr="1-59/2 * * * *")
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=deleted.organization_id, cron_id=deleted.id)
        assert locked is not None
        await delete_cron(connection, cron=locked, deleted_by="test")
    await running.journal.until(lambda: len(running.journal.of(cron.id)) >= FIRES)
    await running.stop()
    fires = database.execute(
        "SELECT scheduled_for FROM scheduler.cron_runs WHERE cron_id = %s AND missed_until IS NULL ORDER BY 1",
        [cron.id],
    )
    return [row[0] for row in fires]


async def change(engine: AsyncEngine, cron: Cron, *, cron_expr: str) -> None:
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        definition = replace(locked.definition, cron_expr=cron_expr)
        await update_cron(connection, cron=locked, definition=definition, updated_by="test")


async def test_after_real_runs_edits_and_deletions_nothing_is_found(record: list[datetime], find: Find) -> None:
    assert len(record) >= FIRES
    assert await find() == []


SOMEWHERE = "(SELECT id FROM scheduler.cron_runs WHERE status = 'completed' ORDER BY cron_id, scheduled_for LIMIT 1)"
DAMAGE = {
    "gap": f"DELETE FROM scheduler.cron_runs WHERE id = {SOMEWHERE}",
    "not_owed": f"UPDATE scheduler.cron_runs SET scheduled_for = scheduled_for + interval '1 s' WHERE id = {SOMEWHERE}",
    "early_start": f"UPDATE scheduler.cron_runs SET started_at = scheduled_for - interval '1s' WHERE id = {SOMEWHERE}",
    "reentered": f"UPDATE scheduler.cron_runs SET attempts = 2 WHERE id = {SOMEWHERE}",
    "miscounted": """
        UPDATE scheduler.cron_runs SET status = 'missed', missed_until = scheduled_for, missed_count = 2, attempts = 0
        WHERE status = 'skipped' OR status = 'completed'
    """,
    "duplicate": """
        UPDATE scheduler.cron_runs SET status = 'missed', missed_until = scheduled_for + interval '1d', missed_count = 9
        WHERE id IN (SELECT DISTINCT ON (cron_id) id FROM scheduler.cron_runs ORDER BY cron_id, scheduled_for)
    """,
    "overdue": f"""
        WITH run AS (
            UPDATE scheduler.cron_runs SET status = 'running', finished_at = NULL WHERE id = {SOMEWHERE} RETURNING id
        )
        UPDATE scheduler.cron_attempts attempt
        SET outcome = NULL, finished_at = NULL, lease_expires_at = '2026-05-01 00:00Z' FROM run WHERE run_id = run.id
    """,
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_damage_by_hand_is_found(record: list[datetime], find: Find, database: Any, kind: str) -> None:
    database.execute(DAMAGE[kind])
    assert kind in {found for found, _ in await find()}


@pytest.mark.parametrize("status", ["queued", "waiting"])
async def test_a_run_that_nobody_ends_at_its_deadline_is_found(
    add_cron: Any, database: Any, engine: AsyncEngine, status: str
) -> None:
    database.set_clock(NOON, speed=0)
    await add_cron(enabled=False)
    database.execute(
        f"""INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                             message, generation, deadline)
            SELECT organization_id, id, scheduler.now(), 'manual', '{status}', 'ByHand', '', 1,
                   scheduler.now() + interval '1 minute'
            FROM scheduler.cron_jobs"""
    )
    if status == "waiting":
        database.execute("UPDATE scheduler.cron_runs SET attempts = 1")
        database.execute(
            """INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at)
               SELECT id, 1, gen_random_uuid(), 1, 'test', deadline FROM scheduler.cron_runs"""
        )
    for seconds, kinds in {90: [], 91: ["overdue"]}.items():
        database.set_clock(NOON + timedelta(seconds=seconds), speed=0)
        assert [found.kind.value async for found in find_violations(engine, grace=Grace())] == kinds


async def test_a_fire_that_nobody_claims_is_found_once_it_is_late(
    add_cron: Any, database: Any, engine: AsyncEngine
) -> None:
    database.set_clock(NOON, speed=0)
    await add_cron()
    grace = Grace(unclaimed=timedelta(minutes=1))
    assert [found async for found in find_violations(engine, grace=grace)] == []
    database.set_clock(NOON + timedelta(minutes=2), speed=0)
    [violation] = [found async for found in find_violations(engine, grace=grace)]
    assert (violation.kind.value, violation.at) == ("unclaimed", NOON + timedelta(seconds=30))


def check(database: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cronplane_cli.main", "check", *arguments],
        env={"CRONPLANE_DATABASE_URL": connection_string(database.url)},
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )


async def test_the_command_is_silent_when_all_is_well_and_fails_with_a_line_for_each_violation(
    add_cron: Any, database: Any
) -> None:
    cron = await add_cron()
    assert (check(database).returncode, check(database).stdout) == (0, "")
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at)
           SELECT organization_id, id, '2026-01-01 00:00Z', 'schedule', 'skipped', 'ByHand', '', 1, scheduler.now()
           FROM scheduler.cron_jobs"""
    )
    told = check(database)
    assert told.returncode == 1
    assert told.stdout.startswith(f"not_owed    cron {cron.id} run ")
    [line] = check(database, "--json").stdout.splitlines()
    assert json.loads(line).keys() == {"kind", "cron_id", "run_id", "at", "message"}


def test_a_check_that_cannot_be_made_says_why(database: Any) -> None:
    absent = replace(database, url=database.url.set(database="absent"))
    told = check(absent)
    assert told.returncode == 2
    assert "PostgreSQL" in told.stderr
