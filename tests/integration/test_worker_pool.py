"""The worker pool with real processes: whatever an entry does, each task has one outcome, and its neighbours run."""

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from cronplane_operator.worker_pool import WorkerPool, WorkersUnavailableError
from cronplane_operator.worker_protocol import MAXIMUM_OUTPUT_BYTES, MAXIMUM_TASK_BYTES, Outcome, Task

HANG_GUARD = 30.0
NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def task(entrypoint: str, *, timeout: float = 3600.0, **payload: Any) -> Task:
    return Task(
        attempt_id=uuid4(),
        entrypoint=entrypoint,
        payload_json=orjson.dumps(payload).decode(),
        cron_id=uuid4(),
        cron_name="a cron",
        organization_id=uuid4(),
        run_id=uuid4(),
        trigger="schedule",
        attempt=1,
        scheduled_for=NOW,
        deadline=NOW,
        timeout=timeout,
    )


class Bench:
    """A pool, and what it has reported."""

    def __init__(self, **settings: Any) -> None:
        self.outcomes: list[Outcome] = []
        self._changed = asyncio.Event()
        self.pool = WorkerPool(
            real_seconds=lambda seconds: seconds,
            on_outcomes=self._report,
            on_appetite=lambda: None,
            **({"workers": 2, "max_workers": 8} | settings),
        )

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes.extend(outcomes)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_GUARD):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def run(self, *tasks: Task) -> list[Outcome]:
        """Submit tasks and give their outcomes in the order of the tasks."""
        self.pool.submit(tasks)
        wanted = [each.attempt_id for each in tasks]
        await self.until(lambda: {outcome.attempt_id for outcome in self.outcomes} >= set(wanted))
        return sorted(
            (outcome for outcome in self.outcomes if outcome.attempt_id in wanted),
            key=lambda outcome: wanted.index(outcome.attempt_id),
        )


StartPool = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def start_pool(entries: Any) -> AsyncIterator[StartPool]:
    del entries  # it puts the trial entries where workers find them
    started: list[Bench] = []

    async def start(**settings: Any) -> Bench:
        bench = Bench(**settings)
        started.append(bench)
        await bench.pool.start()
        return bench

    yield start
    for bench in started:
        await bench.pool.stop()


@pytest.mark.parametrize(
    ("entrypoint", "payload", "status", "reason", "told"),
    [
        ("no_op", {}, "completed", "Completed", "finished"),
        ("no_op_async", {}, "completed", "Completed", "finished"),
        ("fail", {"text": "x"}, "error", "ExecutorFailed", "raised"),
        ("refuse_to_run", {}, "error", "ValidatorFailed", "refused"),
        ("no_op", {"unknown": 1}, "error", "PayloadInvalid", "payload"),
        ("absent_entry", {}, "error", "EntryUnknown", "no such entry"),
        ("return_value", {"text": "nan"}, "error", "ResultInvalid", "result"),
        ("return_value", {"text": "list"}, "error", "ResultInvalid", "result"),
        ("return_value", {"text": "large"}, "error", "ResultInvalid", "result"),
        ("return_value", {"text": "nul"}, "error", "ResultInvalid", "result"),
        ("exit_hard", {}, "error", "WorkerExited", "exit code 3"),
        ("segfault", {}, "error", "WorkerKilled", "SIGSEGV"),
    ],
)
async def test_each_way_to_end_has_its_word(
    *, start_pool: StartPool, entrypoint: str, payload: dict[str, Any], status: str, reason: str, told: str
) -> None:
    bench = await start_pool()
    [outcome] = await bench.run(task(entrypoint, **payload))
    assert (outcome.status, outcome.reason) == (status, reason)
    assert told in outcome.message
    [next_outcome] = await bench.run(task("no_op"))
    assert next_outcome.status == "completed"


async def test_what_an_entry_prints_and_logs_is_its_output(start_pool: StartPool) -> None:
    bench = await start_pool()
    failed, exited = await bench.run(task("fail", text="x"), task("exit_hard"))
    assert "WARNING about to fail in attempt 1" in failed.output
    assert exited.output == "last words\n"


async def test_output_is_bounded_and_says_that_it_was_cut(start_pool: StartPool) -> None:
    bench = await start_pool()
    [outcome] = await bench.run(task("print_much"))
    assert outcome.output.startswith("a line of output\n")
    assert outcome.output.endswith("cut off)\n")
    assert len(outcome.output) < MAXIMUM_OUTPUT_BYTES + 100


async def test_an_entry_that_ignores_everything_is_killed_at_its_timeout(start_pool: StartPool) -> None:
    bench = await start_pool()
    [outcome] = await bench.run(task("spin", timeout=0.2))
    assert (outcome.status, outcome.reason, outcome.output) == ("timed_out", "AttemptTimeout", "spinning\n")


async def test_quick_tasks_pass_blocked_ones_however_many_there_are(start_pool: StartPool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    bench = await start_pool(workers=2, max_workers=8)
    blocked = [task("block", path=str(pipe)) for _ in range(6)]
    quick = [task("no_op") for _ in range(200)]
    bench.pool.submit([*blocked, *quick])
    await bench.until(lambda: len(bench.outcomes) == len(quick))
    assert {outcome.attempt_id for outcome in bench.outcomes} == {each.attempt_id for each in quick}
    assert bench.pool.busy == len(blocked)
    pipe.write_bytes(b"")
    await bench.until(lambda: len(bench.outcomes) == len(quick) + len(blocked))


async def test_a_worker_knows_no_secret_of_ours(start_pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONPLANE_DATABASE_URL", "postgresql://somewhere")
    monkeypatch.setenv("CRONPLANE_INSTALLATION_KEY", "a secret")
    bench = await start_pool()
    [outcome] = await bench.run(task("show_environment"))
    assert outcome.result_json is not None
    names = orjson.loads(outcome.result_json)["environment"]
    assert "PATH" in names
    assert not [name for name in names if name.startswith("CRONPLANE_")]


async def test_a_task_that_is_too_large_for_a_message_is_refused_alone(start_pool: StartPool) -> None:
    bench = await start_pool()
    large, small = await bench.run(task("no_op", text="x" * MAXIMUM_TASK_BYTES), task("no_op"))
    assert (large.status, large.reason) == ("error", "PayloadInvalid")
    assert small.status == "completed"


async def test_draining_gives_back_what_has_not_begun_and_loses_what_does_not_end(
    start_pool: StartPool, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    bench = await start_pool(workers=1, max_workers=1)
    blocked, waiting = task("block", path=str(pipe)), task("no_op")
    bench.pool.submit([blocked, waiting])
    # This returns when the entry has opened its end.
    ours = await asyncio.to_thread(os.open, pipe, os.O_WRONLY)
    unstarted = await bench.pool.drain(grace=0.2)
    os.close(ours)
    assert unstarted == [waiting]
    assert [(outcome.attempt_id, outcome.status, outcome.reason) for outcome in bench.outcomes] == [
        (blocked.attempt_id, "lost", "Shutdown")
    ]
    assert bench.pool.appetite == 0


async def test_a_zygote_that_dies_is_replaced(start_pool: StartPool) -> None:
    bench = await start_pool()
    zygote = bench.pool._zygote
    assert zygote is not None
    zygote.send_signal(signal.SIGKILL)
    [outcome] = await bench.run(task("no_op"))
    assert outcome.status in {"completed", "error"}
    [next_outcome] = await bench.run(task("no_op"))
    assert next_outcome.status == "completed"


async def test_entries_that_cannot_be_loaded_are_named_at_the_start(tmp_path: Path) -> None:
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[cronplane.entries]\nbroken = no_such_module:spec\n")
    bench = Bench(environment={"PYTHONPATH": str(tmp_path)})
    with pytest.raises(WorkersUnavailableError, match="broken offers the entry broken"):
        await bench.pool.start()
    await bench.pool.stop()


async def test_each_task_has_exactly_one_outcome_whatever_its_neighbours_do(start_pool: StartPool) -> None:
    seed = random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    kinds = ["no_op"] * 20 + ["no_op_async"] * 10 + ["exit_hard", "segfault", "fail"]
    tasks = [task(chance.choice(kinds), text="x") for _ in range(600)] + [task("spin", timeout=0.1) for _ in range(3)]
    chance.shuffle(tasks)
    bench = await start_pool()
    bench.pool.submit(tasks)
    await bench.until(lambda: len(bench.outcomes) >= len(tasks))
    by_attempt = {outcome.attempt_id: outcome for outcome in bench.outcomes}
    assert len(bench.outcomes) == len(by_attempt) == len(tasks), f"seed {seed}"
    expected = {"no_op": "Completed", "no_op_async": "Completed", "exit_hard": "WorkerExited",
                "segfault": "WorkerKilled", "fail": "ExecutorFailed", "spin": "AttemptTimeout"}  # fmt: skip
    wrong = [each for each in tasks if by_attempt[each.attempt_id].reason != expected[each.entrypoint]]
    assert not wrong, f"seed {seed}"


_PARENT = """
import asyncio
from cronplane_operator.worker_pool import WorkerPool

async def main():
    pool = WorkerPool(workers=2, max_workers=2, real_seconds=float, on_outcomes=print, on_appetite=lambda: None)
    await pool.start()
    print(pool._zygote.pid, *(worker.pid for worker in pool._workers.values()), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_nothing_survives_a_runner_that_is_killed(entries: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handles = [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(handles) == 3
    for handle in handles:
        ready, _, _ = select.select([handle], [], [], HANG_GUARD)
        assert ready, "a process outlived the runner"
        os.close(handle)
