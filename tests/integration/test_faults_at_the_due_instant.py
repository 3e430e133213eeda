"""The table of faults: what comes together with a fire, such as an edit, a bad neighbour, or ten thousand others.

Time runs fast, so that instants come due while a test acts. Each test ends with the checker and the ledger.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.cron_repository import Cron, delete_cron, lock_cron, update_cron
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
# A minute is half a second.
FAST = 120.0
CRONS = 60
MINUTES = 10
MANY = 4000
EDITORS = 4
SCHEDULES = ["* * * * *", "*/2 * * * *", "1-59/2 * * * *", "*/3 * * * *"]


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted."""

    async def add(name: str, **others: Any) -> Any:
        payload = {"ledger": str(ledger)}
        return await add_cron(name, **{"entrypoint": "keep_ledger", "payload": payload, **others})

    return add


async def disturb(engine: AsyncEngine, crons: list[Cron], chance: random.Random, is_over: Callable[[], bool]) -> None:
    """Edit, pause, resume and delete crons, one after the other without a pause, so that some come due just then."""
    while not is_over():
        known = chance.choice(crons)
        async with transaction(engine) as connection:
            cron = await lock_cron(connection, organization_id=known.organization_id, cron_id=known.id)
            if cron is None:
                continue
            if chance.random() < 0.002:
                await delete_cron(connection, cron=cron, deleted_by="test")
                continue
            definition = chance.choice(
                [
                    replace(cron.definition, cron_expr=chance.choice(SCHEDULES)),
                    replace(cron.definition, enabled=not cron.definition.enabled),
                ]
            )
            await update_cron(connection, cron=cron, definition=definition, updated_by="test")


async def test_edit_pause_and_delete_at_the_due_instant_old_or_new_generation_fires_and_never_both(
    *, database: Any, add_work: Any, engine: AsyncEngine, start_runner: Any, assert_nothing_is_lost: Any, seed: str
) -> None:
    database.set_clock(BEFORE, speed=FAST)
    chance = random.Random(seed)
    crons = [await add_work(f"work {number}", cron_expr=chance.choice(SCHEDULES)) for number in range(CRONS)]
    running = await start_runner()
    minutes: set[datetime] = set()

    def is_over() -> bool:
        minutes.update(claim.scheduled_for for claim in running.journal.claims)
        return len(minutes) >= MINUTES

    async with asyncio.TaskGroup() as editors:
        for _ in range(EDITORS):
            editors.create_task(disturb(engine, crons, random.Random(chance.random()), is_over))
    await assert_nothing_is_lost()
    doubled = database.execute(
        """SELECT FROM scheduler.cron_runs WHERE trigger_kind = 'schedule'
           GROUP BY cron_id, scheduled_for HAVING count(*) > 1"""
    )
    assert doubled == []


async def test_a_cron_that_came_due_and_was_deleted_before_any_runner_saw_it_is_accounted_for(
    database: Any, add_work: Any, engine: AsyncEngine, start_runner: Any, assert_nothing_is_lost: Any
) -> None:
    database.set_clock(BEFORE)
    cron = await add_work("short-lived")
    database.set_clock(DUE + timedelta(seconds=10))
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        await delete_cron(connection, cron=locked, deleted_by="test")
    await start_runner()
    await assert_nothing_is_lost()
    assert database.execute("SELECT status, reason, scheduled_for FROM scheduler.cron_runs") == [
        ("skipped", "NotEnabled", DUE)
    ]


async def test_a_thousand_due_at_once_are_all_claimed_and_none_is_missed_in_either_organization(
    *,
    database: Any,
    add_many: Any,
    start_runner: Any,
    organization: Organization,
    other_organization: Organization,
    assert_nothing_is_lost: Any,
) -> None:
    database.set_clock(BEFORE)
    for owner in (organization, other_organization):
        await add_many(500, organization_id=owner.id)
    running = await start_runner()
    database.set_clock(DUE)
    await running.journal.until(lambda: len(running.journal.runs) >= 1000)
    found = database.execute("SELECT status, organization_id, count(*) FROM scheduler.cron_runs GROUP BY 1, 2")
    expected = {("completed", organization.id, 500), ("completed", other_organization.id, 500)}
    assert set(found) == expected
    await assert_nothing_is_lost()


async def test_of_thousands_due_at_once_launches_are_fair_and_who_has_few_waits_for_none_of_those_who_have_many(
    *, database: Any, add_many: Any, start_runner: Any, other_organization: Organization, assert_nothing_is_lost: Any
) -> None:
    database.set_clock(BEFORE)
    await add_many(MANY, cron_expr="1 12 * * *")
    few = await add_many(3, cron_expr="2 12 * * *", organization_id=other_organization.id)
    running = await start_runner()
    # An outage has made all of them due, and the few are the last.
    database.set_clock(DUE + timedelta(minutes=1))
    await running.journal.until(lambda: len(running.journal.started_runs) >= MANY + 3)
    claimed = {run.id: run.cron_id for run in running.journal.claims}
    order = [claimed[run_id] for run_id in running.journal.started_runs]
    assert max(order.index(cron_id) for cron_id in few) < MANY / 2
    await assert_nothing_is_lost()


@pytest.mark.parametrize("payload", [{}, {"ledger": 1}, {"ledger": "/"}])
async def test_poison_payload_that_run_is_an_error_and_its_neighbours_are_on_time(
    database: Any, add_work: Any, start_runner: Any, assert_nothing_is_lost: Any, payload: dict[str, Any]
) -> None:
    database.set_clock(BEFORE, speed=FAST)
    for number in range(4):
        await add_work(f"poison {number}", payload=payload)
    neighbour = await add_work("neighbour")
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(neighbour.id)) >= 3)
    await assert_nothing_is_lost()
    poisoned = database.execute(
        """SELECT DISTINCT status FROM scheduler.cron_runs
           WHERE cron_id <> %s AND status NOT IN ('missed', 'skipped')""",
        [neighbour.id],
    )
    assert poisoned == [("error",)]
    [(late,)] = database.execute(
        "SELECT max(started_at - scheduled_for) FROM scheduler.cron_runs WHERE cron_id = %s", [neighbour.id]
    )
    assert late < timedelta(seconds=FAST)


async def test_a_failing_attempt_has_had_its_effect_and_is_recorded_as_an_error(
    database: Any, add_work: Any, start_runner: Any, ledger: Path, assert_nothing_is_lost: Any
) -> None:
    database.set_clock(BEFORE)
    cron = await add_work("failing", payload={"ledger": str(ledger), "failing_attempts": 1})
    running = await start_runner()
    database.set_clock(DUE)
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    assert [run.status for run in running.journal.runs] == ["error"]
    effects = [line for line in import_module("fault_entries").read_ledger(ledger) if line.what == "effect"]
    assert len(effects) == 1
    await assert_nothing_is_lost()
