"""The table of faults: what happens to runners as processes, and to what they were doing.

Time is the database's, and jumps or runs fast. Each test ends with the checker and the ledger.
"""

import os
import random
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cronplane_migrations.migrate import migrate

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LEASE = timedelta(seconds=15)
ENDED = "SELECT count(*) >= %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
RUNS = "SELECT status, attempts FROM scheduler.cron_runs ORDER BY scheduled_for"
HANG_GUARD_MILLISECONDS = 30_000


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires."""

    async def add(name: str = "work", *, pipe: str = "", **policy: Any) -> Any:
        payload = {"ledger": str(ledger), "pipe": pipe}
        return await add_cron(name, entrypoint="keep_ledger", payload=payload, **policy)

    database.set_clock(BEFORE)
    return add


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """What a body waits for; written to, it ends."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def let_go(pipe: Path) -> None:
    """Let one body that waits go on."""
    pipe.write_bytes(b"")


def descendants(pid: int) -> Iterator[int]:
    """Name every process that `pid` has started, and theirs (proc(5))."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        yield int(child)
        yield from descendants(int(child))


def wait_until_gone(handles: list[int]) -> None:
    """Return when every process has ended (pidfd_open(2))."""
    for handle in handles:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(HANG_GUARD_MILLISECONDS), "a process outlives the runner"


async def test_kill_9_of_the_runner_mid_run_takes_its_workers_along_and_the_run_is_lost_within_30_s(
    *, database: Any, add_work: Any, start_process: Any, until: Any, pipe: Path, assert_nothing_is_lost: Any
) -> None:
    await add_work(pipe=str(pipe))
    first = start_process("runner")
    first.log.wait_for("became leader")
    start_process("runner")
    database.set_clock(DUE)
    await until("SELECT count(*) = 1 FROM scheduler.cron_attempts")
    with ExitStack() as stack:
        handles = [os.pidfd_open(pid) for pid in descendants(first.process.pid)]
        for handle in handles:
            stack.callback(os.close, handle)
        assert len(handles) >= 3, "a zygote and two workers"
        first.kill()
        wait_until_gone(handles)
    # 15 s after the last renewal at the latest another leads, and by then it has had as long again to look around.
    database.set_clock(DUE + timedelta(seconds=20))
    await until(ENDED, [1])
    found = "SELECT status, attempts, finished_at FROM scheduler.cron_runs"
    [(status, attempts, finished_at)] = database.execute(found)
    assert (status, attempts) == ("lost", 1)
    assert finished_at <= DUE + timedelta(seconds=30)
    await assert_nothing_is_lost()


async def test_kill_between_claim_and_launch_is_launched_within_10_s_by_the_successor(
    database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any
) -> None:
    await add_work()
    first = start_process("runner", failpoint="claim-committed 1 kill")
    first.log.wait_for("became leader")
    second = start_process("runner")
    database.set_clock(DUE)
    first.wait_killed()
    database.set_clock(DUE + timedelta(seconds=20))
    second.log.wait_for("became leader")
    [(led_at,)] = database.execute("SELECT scheduler.now()")
    await until(ENDED, [1])
    [(status, started_at)] = database.execute("SELECT status, started_at FROM scheduler.cron_runs")
    assert status == "completed"
    assert started_at <= led_at + timedelta(seconds=10)
    await assert_nothing_is_lost()


async def test_two_leaders_the_one_that_was_stopped_changes_nothing_when_it_wakes_and_steps_down(
    *,
    database: Any,
    add_work: Any,
    start_process: Any,
    until: Any,
    pipe: Path,
    ledger: Path,
    assert_nothing_is_lost: Any,
) -> None:
    await add_work("held", pipe=str(pipe))
    await add_work("neighbour")
    first = start_process("runner")
    first.log.wait_for("became leader")
    second = start_process("runner")
    database.set_clock(DUE)
    await until("SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'completed'")
    first.send(signal.SIGSTOP)
    database.set_clock(DUE + MINUTE)
    second.log.wait_for("became leader")
    await until("SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'lost'")
    await until("SELECT count(*) = 2 FROM scheduler.cron_runs WHERE status = 'completed'")
    # The body that the stopped leader began ends, and so does the one that its successor began.
    for _ in range(2):
        let_go(pipe)
    await until(ENDED, [4])
    rows = "SELECT id, xmin, status, epoch FROM scheduler.cron_runs ORDER BY id"
    attempts = "SELECT run_id, number, xmin, outcome, epoch FROM scheduler.cron_attempts ORDER BY run_id"
    jobs = "SELECT id, xmin, next_run_time FROM scheduler.apscheduler_jobs ORDER BY id"
    before = [database.execute(query) for query in (rows, attempts, jobs)]
    first.send(signal.SIGCONT)
    assert "epoch 1 ended" in first.log.wait_for("stepped down")
    assert [database.execute(query) for query in (rows, attempts, jobs)] == before
    assert second.log.count("stepped down") == 0
    await assert_nothing_is_lost()


@pytest.mark.parametrize("place", ["claim-commit", "start-commit", "finish-commit", "lease-renewal"])
async def test_two_leaders_one_that_was_stopped_inside_a_transaction_does_not_hold_its_successor_up(
    *, database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any, place: str
) -> None:
    await add_work()
    first = start_process("runner", failpoint=f"{place} 1 stop", lease_duration=3)
    first.log.wait_for("became leader")
    second = start_process("runner", lease_duration=3)
    database.set_clock(DUE)
    second.log.wait_for("became leader")
    await until(ENDED, [1])
    first.send(signal.SIGCONT)
    first.log.wait_for("stepped down")
    assert first.log.count("the leader failed") == 0
    assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(1,)]
    await assert_nothing_is_lost()


async def test_zero_leaders_a_standby_takes_over_when_15_s_have_passed_since_the_last_renewal(
    database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any
) -> None:
    await add_work()
    first = start_process("runner")
    first.log.wait_for("became leader")
    second = start_process("runner")
    first.kill()
    [(renewed_at,)] = database.execute("SELECT renewed_at FROM scheduler.leases")
    database.set_clock(renewed_at + LEASE)
    second.log.wait_for("became leader")
    database.set_clock(DUE)
    await until(ENDED, [1])
    assert database.execute(RUNS) == [("completed", 1)]
    await assert_nothing_is_lost()


@pytest.mark.parametrize("offset", [3600, -3600])
async def test_a_runners_clock_that_is_off_by_an_hour_has_no_effect(
    *, database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any, offset: int
) -> None:
    await add_work("now")
    await add_work("in an hour", cron_expr="0 13 * * *")
    runner = start_process("runner", test_clock_offset=offset)
    runner.log.wait_for("became leader")
    database.set_clock(DUE)
    await until(ENDED, [1])
    [(name, status, delay)] = database.execute(
        """SELECT cron.name, run.status, run.started_at - run.scheduled_for
           FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id"""
    )
    assert (name, status) == ("now", "completed")
    assert timedelta(0) <= delay < MINUTE
    await assert_nothing_is_lost()


def leader_of(database: Any, runners: list[Any]) -> tuple[Any, int]:
    """Find the process that leads, and its epoch: a holder is named after its machine, its process and a chance."""
    [(holder, epoch)] = database.execute("SELECT holder, epoch FROM scheduler.leases")
    [leader] = [runner for runner in runners if holder.split("-")[-2] == str(runner.process.pid)]
    return leader, epoch


async def until_more_ended(database: Any, until: Any, count: int) -> None:
    [(ended,)] = database.execute("SELECT count(*) FROM scheduler.cron_runs WHERE finished_at IS NOT NULL")
    await until(ENDED, [ended + count])


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_several_runners_on_one_database_whose_leaders_are_killed_one_after_the_other(
    *, database: Any, add_work: Any, start_process: Any, until: Any, assert_nothing_is_lost: Any, count: int, seed: str
) -> None:
    chance = random.Random(seed)
    for number in range(20):
        await add_work(f"work {number}", cron_expr=chance.choice(["* * * * *", "*/2 * * * *", "1-59/2 * * * *"]))
    runners = [start_process("runner") for _ in range(count)]
    await until("SELECT count(*) = 1 FROM scheduler.leases")
    database.set_clock(DUE, speed=30)
    for _ in range(1, count):
        await until_more_ended(database, until, chance.randint(1, 20))
        victim, epoch = leader_of(database, runners)
        victim.kill()
        runners.remove(victim)
        await until("SELECT epoch > %s FROM scheduler.leases", [epoch])
    await until_more_ended(database, until, 20)
    await assert_nothing_is_lost()


async def test_rolling_upgrade_the_old_version_leaves_an_entry_that_it_does_not_know_to_the_new_one(
    *,
    database: Any,
    add_work: Any,
    start_process: Any,
    until: Any,
    assert_nothing_is_lost: Any,
    add_cron: Any,
    organization: Any,
) -> None:
    await add_work()
    payload = {"message": "hello", "error_rate": 0.0, "user_id": "test", "organization_id": str(organization.id)}
    await add_cron("known to both", entrypoint="dummy_print", payload=payload)
    old = start_process("runner", distributions="")
    old.log.wait_for("became leader")
    database.set_clock(DUE)
    await until("SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'completed'")
    new = start_process("runner")
    old.stop()
    assert database.execute("SELECT expires_at <= scheduler.now() FROM scheduler.leases") == [(True,)]
    new.log.wait_for("became leader")
    await until(ENDED, [2])
    assert database.execute(RUNS) == [("completed", 1)] * 2
    await assert_nothing_is_lost()


async def test_a_migration_during_runs_holds_up_nobody_for_long_and_loses_nothing(
    *,
    database: Any,
    add_work: Any,
    start_process: Any,
    until: Any,
    ledger: Path,
    assert_nothing_is_lost: Any,
    entries: Any,
) -> None:
    for number in range(20):
        await add_work(f"work {number}")
    start_process("runner").log.wait_for("became leader")
    database.set_clock(DUE, speed=60)
    await until(ENDED, [20])
    for version in range(3):
        known = [str(entry) for entry in entries]
        migrate(database.owner_url, entries=[*known, f"of_version_{version}"], service_role="cronplane_service")
    written = len(import_module("fault_entries").read_ledger(ledger))
    await until(ENDED, [60])
    assert len(import_module("fault_entries").read_ledger(ledger)) > written
    await assert_nothing_is_lost()
