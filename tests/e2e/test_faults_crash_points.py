"""The table of crash points: a process is killed between two effects, and another one makes good what it left.

Each test kills a real process at a named place, looks at what it left behind, and ends with the checker and the
ledger. Time is the database's, and jumps: a fire comes due, and a lease ends, when a test says so.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.tables import Role

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
# The lease of 15 s that was renewed when the fire came due is over, and the next fire is not due.
LEASE_OVER = datetime(2026, 6, 1, 12, 1, 25, tzinfo=UTC)
ENDED = "SELECT count(*) = %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
RUNS = "SELECT status, attempts FROM scheduler.cron_runs ORDER BY scheduled_for"


def entries_of(ledger: Path, what: str) -> int:
    return sum(1 for line in import_module("fault_entries").read_ledger(ledger) if line.what == what)


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires."""

    async def add(name: str = "work", *, pipe: str = "", **policy: Any) -> Any:
        database.set_clock(BEFORE)
        payload = {"ledger": str(ledger), "pipe": pipe}
        return await add_cron(name, entrypoint="keep_ledger", payload=payload, **policy)

    return add


CRASHES = {
    "before the claim's commit": ("claim-commit 1 kill", [], "completed", 1, 1),
    "between claim and launch": ("claim-committed 1 kill", [("queued", 0)], "completed", 1, 1),
    "before the start gate's commit": ("start-commit 1 kill", [("queued", 0)], "completed", 1, 1),
    "between gate and body": ("start-committed 1 kill", [("running", 1)], "lost", 0, 0),
    "in the worker before the body": ("body 1 kill-runner", [("running", 1)], "lost", 0, 0),
    "mid-body": ("mid-body 1 kill-runner", [("running", 1)], "lost", 1, 0),
    "between effect and result": ("result 1 kill-runner", [("running", 1)], "lost", 1, 1),
    "before the finish's commit": ("finish-commit 1 kill", [("running", 1)], "lost", 1, 1),
    "after the finish's commit": ("finish-committed 1 kill", [("completed", 1)], "completed", 1, 1),
}


@pytest.mark.parametrize("crash", CRASHES)
async def test_a_runner_that_dies_leaves_what_the_table_says_and_its_successor_brings_it_to_its_end(
    *,
    database: Any,
    add_work: Any,
    start_process: Any,
    until: Any,
    ledger: Path,
    assert_nothing_is_lost: Any,
    crash: str,
) -> None:
    failpoint, left_behind, status, entered, effects = CRASHES[crash]
    await add_work()
    first = start_process("runner", failpoint=failpoint)
    first.log.wait_for("became leader")
    start_process("runner")
    database.set_clock(DUE)
    first.wait_killed()
    assert database.execute(RUNS) == left_behind
    database.set_clock(LEASE_OVER)
    await until(ENDED, [1])
    assert [row[0] for row in database.execute(RUNS)] == [status]
    assert (entries_of(ledger, "entered"), entries_of(ledger, "effect")) == (entered, effects)
    await assert_nothing_is_lost()


@pytest.mark.parametrize("crash", [crash for crash, expected in CRASHES.items() if expected[2] == "lost"])
async def test_a_lost_attempt_is_followed_by_a_new_one_of_the_same_run_if_that_is_allowed(
    *, database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any, crash: str
) -> None:
    await add_work(max_attempts=2, backoff_initial=timedelta(seconds=1))
    first = start_process("runner", failpoint=CRASHES[crash][0])
    first.log.wait_for("became leader")
    start_process("runner")
    database.set_clock(DUE)
    first.wait_killed()
    database.set_clock(LEASE_OVER)
    await until(ENDED, [1])
    assert database.execute(RUNS) == [("completed", 2)]
    attempts = "SELECT number, outcome FROM scheduler.cron_attempts ORDER BY number"
    assert database.execute(attempts) == [(1, "lost"), (2, "completed")]
    await assert_nothing_is_lost()


@pytest.mark.parametrize(("failpoint", "outcome"), [("body 1 kill", 0), ("mid-body 1 kill", 0), ("result 1 kill", 1)])
async def test_a_worker_that_is_killed_costs_its_own_attempt_and_no_other(
    *,
    database: Any,
    add_work: Any,
    start_process: Any,
    until: Any,
    ledger: Path,
    assert_nothing_is_lost: Any,
    failpoint: str,
    outcome: int,
) -> None:
    # Each worker counts for itself, so that every body that is entered is the first of its worker.
    await add_work("victim")
    runner = start_process("runner", failpoint=failpoint)
    runner.log.wait_for("became leader")
    database.set_clock(DUE)
    await until(ENDED, [1])
    reasons = database.execute("SELECT status, reason FROM scheduler.cron_runs")
    assert reasons == [("error", "WorkerKilled")]
    assert entries_of(ledger, "effect") == outcome
    await assert_nothing_is_lost()


@pytest.mark.parametrize("place", ["lease-renewal", "lease-release"])
async def test_a_leader_that_dies_over_its_lease_is_followed_when_the_lease_has_ended(
    *, database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any, place: str
) -> None:
    await add_work()
    first = start_process("runner", failpoint=f"{place} 1 kill", lease_duration=3)
    first.log.wait_for("became leader")
    second = start_process("runner")
    if place == "lease-release":
        first.send(signal.SIGTERM)
    first.wait_killed()
    database.set_clock(DUE)
    second.log.wait_for("became leader")
    await until(ENDED, [1])
    assert database.execute(RUNS) == [("completed", 1)]
    await assert_nothing_is_lost()


async def test_a_runner_that_dies_while_it_hands_runs_back_leaves_none_of_them_open(
    *,
    database: Any, add_work: Any, start_process: Any, until: Any, ledger: Path, tmp_path: Path,
    assert_nothing_is_lost: Any,
) -> None:  # fmt: skip
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for number in range(4):
        await add_work(f"work {number}", pipe=str(pipe))
    first = start_process("runner", failpoint="hand-back-commit 1 kill", workers=1, max_workers=1, drain_grace=0)
    first.log.wait_for("became leader")
    start_process("runner")
    database.set_clock(DUE)
    # It opens when the first body does, and then the workers have the others, too.
    held = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
    first.send(signal.SIGTERM)
    first.wait_killed()
    os.close(held)
    assert [row[0] for row in database.execute(RUNS)].count("running") >= 3
    database.set_clock(LEASE_OVER)
    await until(ENDED, [4])
    assert entries_of(ledger, "entered") == 1
    await assert_nothing_is_lost()


# The API


@pytest.fixture
async def key(engine: Any, organization: Any) -> str:
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="test", role=Role.EDITOR, created_by="test"
        )
    return key


def registration(ledger: Path) -> dict[str, Any]:
    return {
        "name": "work",
        "cron_expr": "* * * * *",
        "tz": "UTC",
        "entrypoint": "keep_ledger",
        "payload": {"ledger": str(ledger)},
    }


async def test_a_request_whose_answer_was_lost_is_answered_again_by_its_idempotency_key(
    *, database: Any, start_process: Any, organization: Any, key: str, ledger: Path, assert_nothing_is_lost: Any
) -> None:
    database.set_clock(BEFORE)
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid4())}
    first = start_process("api", failpoint="api-committed 1 kill")
    with pytest.raises(httpx2.TransportError):
        httpx2.post(f"{first.address}/crons/{organization.id}", json=registration(ledger), headers=headers)
    first.wait_killed()
    second = start_process("api")
    answer = httpx2.post(f"{second.address}/crons/{organization.id}", json=registration(ledger), headers=headers)
    assert (answer.status_code, answer.headers["Idempotency-Replayed"]) == (201, "true")
    assert database.execute("SELECT id FROM scheduler.cron_jobs") == [(UUID(answer.json()["id"]),)]
    start_process("runner")
    await assert_nothing_is_lost()


async def test_a_change_of_which_nobody_was_told_is_found_by_the_resync(
    *,
    database: Any,
    start_process: Any,
    organization: Any,
    key: str,
    ledger: Path,
    until: Any,
    assert_nothing_is_lost: Any,
) -> None:
    database.set_clock(BEFORE)
    runner = start_process("runner")
    api = start_process("api", failpoint="notify 1 kill")
    runner.log.wait_for("became leader")
    answer = httpx2.post(
        f"{api.address}/crons/{organization.id}",
        json=registration(ledger),
        headers={"Authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 201
    api.wait_killed()
    await until("SELECT count(*) = 1 FROM scheduler.apscheduler_jobs")
    database.set_clock(DUE)
    await until(ENDED, [1])
    assert database.execute(RUNS) == [("completed", 1)]
    await assert_nothing_is_lost()
