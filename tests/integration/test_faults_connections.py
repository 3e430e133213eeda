"""The table of faults: connections to PostgreSQL that break, above all while a COMMIT is under way, and lost hints.

Runner and API reach the database through a relay that cuts connections. Each test ends with the checker and the ledger.
"""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_repository
from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import Role

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
HANG_GUARD = 30.0
RUNS = "SELECT status, attempts FROM scheduler.cron_runs"


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires."""

    async def add(name: str = "work") -> Any:
        payload = {"ledger": str(ledger)}
        return await add_cron(name, entrypoint="keep_ledger", payload=payload)

    database.set_clock(BEFORE)
    return add


@pytest.fixture
def relayed(relay: Any) -> SecretStr:
    return SecretStr(relay.url.render_as_string(hide_password=False))


@pytest.mark.parametrize("fault", ["cut_before_commit", "cut_after_commit"])
@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO scheduler.cron_runs", "INSERT INTO scheduler.cron_attempts", "UPDATE scheduler.cron_attempts"],
    ids=["claim", "start", "finish"],
)
async def test_connection_drop_during_commit_the_outcome_is_read_again_and_the_body_is_entered_once(
    *,
    database: Any,
    add_work: Any,
    relay: Any,
    relayed: SecretStr,
    start_runner: Any,
    assert_nothing_is_lost: Any,
    statement: str,
    fault: str,
) -> None:
    cron = await add_work()
    running = await start_runner(database_url=relayed)
    relay.order(**{fault: 1.0}, only=statement, limit=1)
    database.set_clock(DUE)
    await asyncio.to_thread(relay.told.wait_for, fault)
    # What was written although the answer was lost is told by nobody, so that the rows are the place to look.
    await assert_nothing_is_lost()
    assert database.execute(RUNS) == [("completed", 1)]
    assert [claim.cron_id for claim in running.journal.claims] in ([], [cron.id])


async def test_a_claim_whose_answer_is_lost_until_its_cron_is_due_again_keeps_no_later_fire_back(
    *,
    database: Any,
    add_work: Any,
    relay: Any,
    relayed: SecretStr,
    start_runner: Any,
    until: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_work()
    database.set_clock(BEFORE, speed=60)
    await start_runner(database_url=relayed)
    relay.order(cut_after_commit=1.0, only="INSERT INTO scheduler.cron_runs", limit=1)
    await asyncio.to_thread(relay.told.wait_for, "cut_after_commit")
    # A try each half a second, which is half a minute of this clock: meanwhile the cron comes due again.
    relay.order(cut_before_commit=1.0, only="INSERT INTO scheduler.cron_runs", limit=4)
    await asyncio.to_thread(relay.told.wait_for, "cut_before_commit", times=4)
    await until("SELECT count(*) >= 4 FROM scheduler.cron_runs WHERE status = 'completed'")
    await assert_nothing_is_lost()


async def test_a_lease_whose_renewal_is_cut_is_kept(
    *, database: Any, add_work: Any, relay: Any, relayed: SecretStr, start_runner: Any, assert_nothing_is_lost: Any
) -> None:
    await add_work()
    running = await start_runner(database_url=relayed, lease_duration=timedelta(seconds=3))
    for fault in ("cut_before_commit", "cut_after_commit"):
        relay.order(**{fault: 1.0}, only="UPDATE scheduler.leases", limit=1)
        await asyncio.to_thread(relay.told.wait_for, fault)
    database.set_clock(DUE)
    await assert_nothing_is_lost()
    assert database.execute(RUNS) == [("completed", 1)]
    assert running.journal.epochs == [1]


async def register(client: Any, organization: Organization, key: str, name: str, ledger: Path) -> None:
    """Register a cron as a careful client does: the same request again until there is an answer that settles it."""
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid4())}
    body = {
        "name": name,
        "cron_expr": "* * * * *",
        "tz": "UTC",
        "entrypoint": "keep_ledger",
        "payload": {"ledger": str(ledger)},
    }
    while True:
        answer = await client.post(f"/crons/{organization.id}", json=body, headers=headers)
        if answer.status_code != 503:
            assert answer.status_code == 201, answer.text
            return
        assert int(answer.headers["Retry-After"]) > 0


async def test_with_a_flaky_connection_nothing_is_lost_doubled_or_answered_with_500(
    *,
    database: Any,
    engine: AsyncEngine,
    organization: Organization,
    relay: Any,
    relayed: SecretStr,
    start_runner: Any,
    start_api: Any,
    api_settings: Any,
    ledger: Path,
    until: Any,
    assert_nothing_is_lost: Any,
) -> None:
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="test", role=Role.EDITOR, created_by="test"
        )
    database.set_clock(BEFORE, speed=60)
    relay.order(refuse=0.2, cut_before_commit=0.1, cut_after_commit=0.1, stall=0.1, stall_seconds=0.05)
    await start_runner(database_url=relayed)
    _, client = await start_api(api_settings(relay.url))
    names = [f"work {number}" for number in range(15)]
    async with asyncio.timeout(HANG_GUARD):
        await asyncio.gather(*(register(client, organization, key, name, ledger) for name in names))
    await until("SELECT count(*) >= 60 FROM scheduler.cron_runs WHERE status = 'completed'")
    relay.order()
    assert sorted(row[0] for row in database.execute("SELECT name FROM scheduler.cron_jobs")) == sorted(names)
    await assert_nothing_is_lost()


async def test_a_runner_that_is_told_to_stop_while_postgresql_is_away_ends_and_leaves_the_rest_to_its_successor(
    *,
    database: Any,
    add_work: Any,
    relay: Any,
    relayed: SecretStr,
    start_runner: Any,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    assert_nothing_is_lost: Any,
) -> None:
    monkeypatch.setattr("cronplane_operator.runner._RECORD_TIMEOUT", 0.1)
    await add_work()
    running = await start_runner(database_url=relayed)
    relay.order(cut_before_commit=1.0, only="UPDATE scheduler.cron_attempts")
    database.set_clock(DUE)
    await asyncio.to_thread(relay.told.wait_for, "cut_before_commit")
    await running.stop()
    assert running.journal.failures == []
    assert database.execute(RUNS) == [("running", 1)]
    await start_runner()
    await assert_nothing_is_lost()
    assert database.execute(RUNS) == [("lost", 1)]


async def test_a_stop_while_the_start_gates_commit_is_under_way_costs_no_attempt(
    *, database: Any, add_work: Any, relay: Any, relayed: SecretStr, start_runner: Any, assert_nothing_is_lost: Any
) -> None:
    await add_work()
    running = await start_runner(database_url=relayed)
    relay.order(stall=1.0, stall_seconds=0.3, only="INSERT INTO scheduler.cron_attempts", limit=1)
    database.set_clock(DUE)
    await asyncio.to_thread(relay.told.wait_for, "stall")
    await running.stop()
    await start_runner()
    await assert_nothing_is_lost()
    assert database.execute(RUNS) == [("completed", 1)]


async def test_notify_lost_costs_at_most_2_s(
    *, database: Any, add_work: Any, engine: AsyncEngine, start_runner: Any, until: Any, assert_nothing_is_lost: Any
) -> None:
    cron = await add_work()
    await start_runner()
    async with transaction(engine) as connection:
        await run_repository.insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
    await until("SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'completed'")
    delay = database.execute("SELECT started_at - created_at <= interval '2 seconds' FROM scheduler.cron_runs")
    assert delay == [(True,)]
    await assert_nothing_is_lost()
