"""Entries that do what they must not, in a real runner: each costs its own worker, says so, and holds up nobody."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_repository
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.cron_repository import Cron
from cronplane_core.database import transaction
from cronplane_operator.worker_protocol import Outcome, encode_outcome

HANG_GUARD = 30.0
NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
# The database's seconds in one of ours: a minute is short, and a fire that is late by a second still stands out.
SPEED = 10.0
LATE = timedelta(seconds=SPEED)
TIMEOUT = timedelta(seconds=30)
MEMORY = 96 * 2**20
FOREIGN_ANSWER = encode_outcome(
    Outcome(attempt_id=UUID(int=1), status="completed", reason="Completed", message="The entry finished.")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """What becomes of an entry, and what its run says besides."""

    entrypoint: str
    status: str
    reason: str
    says: str


TIMED_OUT = ("timed_out", "AttemptTimeout", "make it end sooner, or give the cron a longer timeout")
CULPRITS = {
    name: Culprit(entrypoint=entrypoint, status=status, reason=reason, says=says)
    for name, entrypoint, (status, reason, says) in [
        ("blocks", "block", TIMED_OUT),
        ("spins", "spin", TIMED_OUT),
        ("spins in C", "spin_in_c", TIMED_OUT),
        ("ignores cancellation", "ignore_cancellation", TIMED_OUT),
        ("prints endlessly", "print_endlessly", TIMED_OUT),
        ("eats memory", "eat_memory", ("error", "OutOfMemory", "more than the 96 MiB that a worker may take")),
        ("asks for too much memory", "ask_for_too_much", ("error", "OutOfMemory", "let it take less at a time")),
        ("exits", "exit_hard", ("error", "WorkerExited", "exit code 3")),
        ("segfaults", "segfault", ("error", "WorkerCrashed", "SIGSEGV")),
        ("kills itself", "kill_itself", ("error", "WorkerKilled", "SIGKILL")),
        ("raises SystemExit", "raise_exit", ("error", "ExecutorExited", "let it return, or raise an error")),
        ("raises KeyboardInterrupt", "raise_interrupt", ("error", "ExecutorInterrupted", "KeyboardInterrupt")),
        ("cancels itself", "cancel_itself", ("error", "ExecutorCancelled", "nobody else did")),
        ("closes everything", "close_everything", ("error", "ChannelClosed", "only what it has opened itself")),
        ("answers for others", "say_to_the_runner", ("error", "WorkerProtocol", "only to what it has opened itself")),
        ("takes others' tasks", "steal_tasks_and_die", ("error", "WorkerExited", "exit code 5")),
        ("leaves a task", "leave_a_stubborn_task", ("completed", "TasksLeft", "wait for what it starts")),
        ("leaves a thread", "leave_a_thread", ("completed", "ThreadsLeft", "wait for what it starts")),
        ("leaves a process", "leave_a_process", ("completed", "ProcessesLeft", "wait for what it starts")),
    ]
}
NEIGHBOURS = 10


def rows(database: Any, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(statement, parameters)
    return found


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    """A pipe for an entry to block on."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return str(path)


@pytest.fixture
def trigger(engine: AsyncEngine) -> Callable[..., Any]:
    """Trigger crons by hand, in one transaction; gives the ids of the runs."""

    async def trigger(*crons: Cron) -> list[UUID]:
        async with transaction(engine) as connection:
            return [
                (
                    await run_repository.insert_manual_run(
                        connection, cron=cron, created_by="test", execution_payload=None
                    )
                ).id
                for cron in crons
            ]

    return trigger


async def test_whatever_entries_do_each_loses_its_own_worker_and_says_so_and_no_other_cron_is_late(
    database: Any, add_cron: Any, start_runner: Any, engine: AsyncEngine, pipe: str
) -> None:
    database.set_clock(NOON, speed=SPEED)
    payload = {"text": FOREIGN_ANSWER.hex()}
    culprits = {
        name: await add_cron(
            name,
            entrypoint=culprit.entrypoint,
            payload=payload | ({"path": pipe} if culprit.entrypoint == "block" else {}),
            timeout=TIMEOUT,
        )
        for name, culprit in CULPRITS.items()
    }
    neighbours = [await add_cron(f"neighbour {number}") for number in range(NEIGHBOURS)]
    running = await start_runner(worker_memory=MEMORY, max_workers=32)
    journal = running.journal
    await journal.until(
        lambda: (
            all(journal.of(cron.id) for cron in culprits.values())
            and all(len(journal.of(cron.id)) >= 2 for cron in neighbours)
        )
    )
    await journal.until(lambda: journal.loads[-1].workers >= 2)
    await running.stop()
    for name, cron in culprits.items():
        [(status, reason, message)] = rows(
            database,
            "SELECT status, reason, message FROM scheduler.cron_runs WHERE cron_id = %s ORDER BY scheduled_for LIMIT 1",
            cron.id,
        )
        expected = CULPRITS[name]
        assert (name, status, reason) == (name, expected.status, expected.reason)
        assert expected.says in message
    late = rows(
        database,
        """SELECT status, reason, finished_at - scheduled_for FROM scheduler.cron_runs
           WHERE cron_id = ANY(%s) AND (status <> 'completed' OR finished_at - scheduled_for > %s)""",
        [cron.id for cron in neighbours],
        LATE,
    )
    assert late == []
    assert [violation async for violation in find_violations(engine, grace=Grace())] == []


async def test_kill_9_of_the_runner_mid_run_leaves_no_process(
    add_cron: Any, trigger: Any, start_process: Any, pipe: str
) -> None:
    """Not even one in a session of its own, with another parent, that ignores SIGTERM."""
    cron = await add_cron(entrypoint="leave_a_process", payload={"path": pipe}, enabled=False)
    runner = start_process("runner", workers=1)
    await trigger(cron)
    pids = [int(pid) for pid in (await asyncio.to_thread(Path(pipe).read_text)).split()]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    assert len(set(pids)) == 3
    runner.kill()
    for descriptor in descriptors:
        await died(descriptor)


async def died(descriptor: int) -> None:
    """Wait for the end of the process of a pidfd."""
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, gone.set)
    async with asyncio.timeout(HANG_GUARD):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


async def test_sigterm_drains_a_runner_and_a_successor_takes_over_within_a_second(
    database: Any, add_cron: Any, trigger: Any, start_process: Any, pipe: str
) -> None:
    crons = [await add_cron(f"cron {n}", entrypoint="block", payload={"path": pipe}, enabled=False) for n in range(4)]
    # No renewal of so long a lease comes in between, so that the row tells when it was acquired.
    settings = {"workers": 1, "max_workers": 1, "lease_duration": 300, "drain_grace": 1}
    first = start_process("runner", **settings)
    first.log.wait_for("became leader")
    second = start_process("runner", **settings)
    second.log.wait_for("metrics and probes are served")
    await trigger(*crons)
    writing = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
    await asyncio.to_thread(first.stop)
    first.log.wait_for("runs were queued again")
    os.close(writing)
    # From now on nothing blocks.
    await asyncio.to_thread(Path(pipe).unlink)
    await asyncio.to_thread(Path(pipe).touch)
    await asyncio.to_thread(second.log.wait_for, "run completed", times=3)
    await asyncio.to_thread(second.stop)
    ended = rows(
        database,
        """SELECT run.status, run.reason, run.attempts, attempt.number, attempt.epoch FROM scheduler.cron_runs run
           LEFT JOIN scheduler.cron_attempts attempt ON attempt.run_id = run.id ORDER BY run.status""",
    )
    assert ended == [*(3 * [("completed", "Completed", 1, 1, 2)]), ("lost", "Shutdown", 1, 1, 1)]
    [(gap,)] = rows(
        database,
        """SELECT lease.renewed_at - run.finished_at FROM scheduler.leases lease, scheduler.cron_runs run
           WHERE run.reason = 'Shutdown'""",
    )
    assert timedelta(0) < gap < timedelta(seconds=1)


async def test_a_drain_begins_nothing_and_records_a_body_that_ends_within_the_grace_as_it_ended(
    database: Any, add_cron: Any, trigger: Any, start_runner: Any, pipe: str
) -> None:
    running = await start_runner(drain_grace=timedelta(seconds=HANG_GUARD))
    await trigger(await add_cron(entrypoint="block", payload={"path": pipe}, enabled=False))
    writing = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
    running.runner.stop()
    await trigger(await add_cron("too late", enabled=False))
    os.close(writing)
    await running.stop()
    assert rows(
        database,
        """SELECT cron.name, run.status FROM scheduler.cron_runs run
           JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id ORDER BY cron.name""",
    ) == [("a cron", "completed"), ("too late", "queued")]
    assert rows(database, "SELECT expires_at <= scheduler.now() FROM scheduler.leases") == [(True,)]
