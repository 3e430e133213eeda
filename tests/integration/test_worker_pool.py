"""The pool with real processes: what an entry does costs its own worker, and each task has exactly one outcome."""

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from cronplane_entries.entry_settings import EntrySettings
from cronplane_operator import worker_pool
from cronplane_operator.worker_pool import WorkerPool, WorkersUnavailableError
from cronplane_operator.worker_protocol import MAXIMUM_OUTPUT_BYTES, Outcome, SharedOutput, Task, encode_outcome

DISTRIBUTIONS = Path(__file__).parent.parent / "distributions"
ENTRIES = os.pathsep.join([str(DISTRIBUTIONS), str(DISTRIBUTIONS / "workers")])
# Only so that a test that would hang fails instead; nothing is measured by it.
HANG_GUARD = 30.0
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
FOREVER = 86_400.0
# The database's clock runs this much faster than the event loop's, so that timeouts come soon.
SPEED = 1000.0
A_MOMENT = 60.0
MEMORY = 48 * 2**20


def task(entrypoint: str = "no_op", *, timeout: float = FOREVER, **payload: object) -> Task:
    return Task(
        attempt_id=uuid4(),
        entrypoint=entrypoint,
        payload_json=json.dumps(payload),
        cron_id=uuid4(),
        cron_name="a cron",
        organization_id=uuid4(),
        run_id=uuid4(),
        trigger="schedule",
        attempt=1,
        scheduled_for=NOON,
        deadline=NOON,
        timeout=timeout,
    )


class Harness:
    """A pool, what it reported in order, and a way to wait for it."""

    def __init__(
        self,
        *,
        workers: int,
        max_workers: int,
        memory: int = 2**30,
        settings: EntrySettings | None = None,
        **environment: str,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.trouble: list[str] = []
        self._changed = asyncio.Event()
        self.pool = WorkerPool(
            workers=workers,
            max_workers=max_workers,
            memory=memory,
            real_seconds=lambda seconds: seconds / SPEED,
            on_outcomes=self._on_outcomes,
            on_appetite=self._changed.set,
            on_trouble=self._on_trouble,
            environment={"PYTHONPATH": ENTRIES} | environment,
            settings=settings,
        )

    def _on_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes.extend(outcomes)
        self._changed.set()

    def _on_trouble(self, message: str) -> None:
        self.trouble.append(message)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_GUARD):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of(self, asked: Task) -> Outcome:
        [outcome] = [each for each in self.outcomes if each.attempt_id == asked.attempt_id]
        return outcome

    def is_over(self, asked: Task) -> bool:
        return any(each.attempt_id == asked.attempt_id for each in self.outcomes)

    async def run(self, *tasks: Task) -> list[Outcome]:
        """Submit tasks and wait until each has an outcome; gives them in the order of the tasks."""
        self.pool.submit(tasks)
        await self.until(lambda: all(self.is_over(each) for each in tasks))
        return [self.of(each) for each in tasks]


StartPool = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def start_pool() -> AsyncIterator[StartPool]:
    """Start pools; they stop with the test, in which nothing may have failed unnoticed."""
    started: list[Harness] = []
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    async def start(*, workers: int = 1, max_workers: int = 1, **others: Any) -> Harness:
        harness = Harness(workers=workers, max_workers=max_workers, **others)
        started.append(harness)
        async with asyncio.timeout(HANG_GUARD):
            await harness.pool.start()
        return harness

    yield start
    for harness in started:
        await harness.pool.stop()
    assert failures == []


@pytest.fixture
def pipe(tmp_path: Path) -> Callable[[], str]:
    """Make pipes for entries to block on."""

    def make() -> str:
        path = tmp_path / uuid4().hex
        os.mkfifo(path)
        return str(path)

    return make


async def entered(path: str) -> Callable[[], None]:
    """Wait until an entry blocks on reading the pipe; what this gives lets it go on."""
    async with asyncio.timeout(HANG_GUARD):
        descriptor = await asyncio.to_thread(os.open, path, os.O_WRONLY)
    return lambda: os.close(descriptor)


async def ended(pid: int) -> None:
    """Wait until a process is dead, whoever its parent is."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, gone.set)
    try:
        async with asyncio.timeout(HANG_GUARD):
            await gone.wait()
    finally:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)


# What an entry returns, prints and raises


@pytest.mark.parametrize("entrypoint", ["no_op", "no_op_async"])
async def test_an_entry_that_returns_nothing_completes(start_pool: StartPool, entrypoint: str) -> None:
    [outcome] = await (await start_pool()).run(asked := task(entrypoint))
    assert outcome == Outcome(
        attempt_id=asked.attempt_id, status="completed", reason="Completed", message="The entry finished."
    )


async def test_a_mapping_that_an_entry_returns_is_the_result(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("my_entry", greeting="hello"))
    assert orjson.loads(outcome.result_json or "") == {"ok": True, "greeting": "hello"}


@pytest.mark.parametrize("kind", ["nan", "list", "large", "nul"])
async def test_a_result_that_cannot_be_kept_is_an_error(start_pool: StartPool, kind: str) -> None:
    [outcome] = await (await start_pool()).run(task("return_value", text=kind))
    assert (outcome.status, outcome.reason, outcome.result_json) == ("error", "ResultInvalid", None)
    assert outcome.error is not None
    assert outcome.error.traceback == ""


async def test_what_is_printed_and_logged_is_the_output_of_that_run_only(start_pool: StartPool) -> None:
    failed, silent = await (await start_pool()).run(task("fail", text="broken"), task())
    assert "about to fail in attempt 1" in failed.output
    assert silent.output == ""


async def test_output_is_bounded_and_says_that_it_was_cut_off(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("print_much"))
    assert outcome.status == "completed"
    assert MAXIMUM_OUTPUT_BYTES < len(outcome.output) < MAXIMUM_OUTPUT_BYTES + 100
    assert "cut off" in outcome.output


async def test_output_is_text_that_can_be_stored_and_misuse_does_not_reach_the_next_run(start_pool: StartPool) -> None:
    harness = await start_pool()
    misused, next_one = await harness.run(task("misuse_output"), task("start_a_program"))
    assert misused.output == "bytes \n" + "nul \ufffd surrogate ?\n"
    assert re.fullmatch(r"\d+\n", next_one.output)


async def test_an_error_has_its_type_message_and_place_and_no_value_of_the_payload(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("fail", text="broken", value="a secret"))
    assert (outcome.status, outcome.reason) == ("error", "ExecutorFailed")
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("builtins.RuntimeError", "broken")
    assert "trial_entries.py" in outcome.error.traceback
    assert "cronplane_operator" not in outcome.error.traceback
    assert "a secret" not in str(outcome)


async def test_a_payload_that_the_entry_no_longer_accepts_is_an_error_without_its_values(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("no_op", path=["a secret"]))
    assert (outcome.status, outcome.reason) == ("error", "PayloadInvalid")
    assert outcome.error is not None
    assert "path" in outcome.error.message
    assert "a secret" not in str(outcome)


async def test_a_payload_as_large_as_can_be_registered_arrives(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("no_op", text='"' * 65_000))
    assert outcome.status == "completed"


async def test_a_payload_that_is_too_large_to_be_sent_is_an_error(start_pool: StartPool) -> None:
    refused, neighbour = await (await start_pool()).run(task("no_op", text="x" * 300_000), task())
    assert (refused.status, refused.reason, neighbour.status) == ("error", "PayloadInvalid", "completed")


async def test_an_entry_that_is_not_there_is_an_error(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("gone"))
    assert (outcome.status, outcome.reason) == ("error", "EntryUnknown")


async def test_a_validator_that_refuses_keeps_the_executor_from_running(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("refuse_to_run"))
    assert (outcome.status, outcome.reason) == ("error", "ValidatorFailed")
    assert outcome.error is not None
    assert outcome.error.message == "not today"


@pytest.mark.parametrize("entrypoint", ["raise_sync", "raise_async"])
@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("exit", "builtins.SystemExit", "4"),
        ("interrupt", "builtins.KeyboardInterrupt", "as if by Ctrl-C"),
        ("unprintable", "worker_entries._raise.<locals>.UnprintableError", "(no message: it raised ValueError)"),
        ("surrogate", "builtins.RuntimeError", "?\ufffd"),
        ("long", "builtins.RuntimeError", "x" * 4096),
    ],
)
async def test_whatever_an_entry_raises_is_an_error_of_that_run_and_its_worker_survives(
    start_pool: StartPool, entrypoint: str, kind: str, name: str, message: str
) -> None:
    harness = await start_pool()
    first, second = await harness.run(task(entrypoint, text=kind), task("no_op_async"))
    reason = {"exit": "ExecutorExited", "interrupt": "ExecutorInterrupted"}.get(kind, "ExecutorFailed")
    assert (first.status, first.reason, second.status) == ("error", reason, "completed")
    assert first.error is not None
    assert (first.error.type, first.error.message) == (name, message)
    assert numbers(harness) == {1}


async def test_an_endless_recursion_is_an_error_of_that_run(start_pool: StartPool) -> None:
    first, second = await (await start_pool()).run(task("recurse"), task())
    assert first.error is not None
    assert first.error.type == "builtins.RecursionError"
    assert second.status == "completed"


async def test_what_an_entry_leaves_running_in_the_event_loop_is_cancelled(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("leave_a_task_behind"))
    assert outcome.output == "left True\ncancelled\n"


def numbers(harness: Harness) -> set[int]:
    """Tell which workers there are; a replaced one has another number."""
    return set(harness.pool._workers)


# What an entry does to its worker


@pytest.mark.parametrize(
    ("entrypoint", "reason", "cause", "output"),
    [
        ("exit_hard", "WorkerExited", "exit code 3", "last words\n"),
        ("segfault", "WorkerCrashed", "SIGSEGV", ""),
        ("kill_itself", "WorkerKilled", "SIGKILL", ""),
        ("close_everything", "ChannelClosed", "closed the channel", "closing\n"),
        ("steal_tasks_and_die", "WorkerExited", "exit code 5", ""),
    ],
)
async def test_a_worker_that_dies_ends_its_run_with_what_it_had_printed_and_is_replaced(
    start_pool: StartPool, entrypoint: str, reason: str, cause: str, output: str
) -> None:
    harness = await start_pool()
    [crashed] = await harness.run(task(entrypoint))
    assert (crashed.status, crashed.reason, crashed.output) == ("error", reason, output)
    assert cause in crashed.message
    [next_one] = await harness.run(task())
    assert next_one.status == "completed"


async def test_an_entry_that_closes_the_channel_and_goes_on_is_not_waited_for(start_pool: StartPool) -> None:
    closed, next_one = await (await start_pool()).run(task("close_everything", text="and stay"), task())
    assert (closed.status, closed.reason, next_one.status) == ("error", "ChannelClosed", "completed")
    assert "let it close only what it has opened" in closed.message


async def test_an_entry_that_answers_early_and_goes_on_holds_up_nobody(start_pool: StartPool) -> None:
    harness = await start_pool()
    first, second = await harness.run(task("answer_early_and_stay")) + await harness.run(task())
    assert (first.message, second.status) == ("So it says.", "completed")
    assert numbers(harness).isdisjoint({1})


async def test_a_zygote_that_an_entry_has_stopped_is_started_again(
    start_pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_ZYGOTE_PATIENCE", 0.2)
    monkeypatch.setattr(worker_pool, "_ZYGOTE_GRACE", 0.2)
    harness = await start_pool()
    stopped, spinning, next_one = await harness.run(task("stop_the_zygote"), task("spin", timeout=A_MOMENT), task())
    assert (stopped.status, next_one.status) == ("completed", "completed")
    assert (spinning.status, spinning.reason) == ("timed_out", "AttemptTimeout")
    assert "does not answer" in harness.trouble[0]


async def test_an_alarm_that_an_entry_has_set_does_not_go_off_in_the_next_run(start_pool: StartPool) -> None:
    harness = await start_pool()
    _, told = await harness.run(task("set_an_alarm"), task("tell_alarm"))
    assert orjson.loads(told.result_json or "") == {"seconds": 0.0}
    assert numbers(harness) == {1}


async def test_what_waited_behind_a_crash_runs_elsewhere(start_pool: StartPool) -> None:
    crashed, *others = await (await start_pool()).run(task("exit_hard"), *(task() for _ in range(5)))
    assert crashed.reason == "WorkerExited"
    assert {outcome.status for outcome in others} == {"completed"}


@pytest.mark.parametrize("entrypoint", ["spin", "sleep", "block"])
async def test_an_entry_that_outlives_its_timeout_is_killed(
    start_pool: StartPool, pipe: Callable[[], str], entrypoint: str
) -> None:
    payload = {"path": pipe()} if entrypoint == "block" else {}
    late, next_one = await (await start_pool()).run(task(entrypoint, timeout=A_MOMENT, **payload), task())
    assert (late.status, late.reason, next_one.status) == ("timed_out", "AttemptTimeout", "completed")
    assert late.output == {"spin": "spinning\n", "sleep": "", "block": "blocking\n"}[entrypoint]


async def test_one_blocker_delays_none_of_those_that_were_sent_with_it(
    start_pool: StartPool, pipe: Callable[[], str]
) -> None:
    harness = await start_pool(workers=2, max_workers=2)
    blocker, quick = task("block", path=(path := pipe())), [task() for _ in range(200)]
    harness.pool.submit([*quick[:20], blocker, *quick[20:]])
    await harness.until(lambda: len(harness.outcomes) == 200)
    assert not harness.is_over(blocker)
    (await entered(path))()
    await harness.until(lambda: harness.is_over(blocker))
    assert {outcome.status for outcome in harness.outcomes} == {"completed"}


async def test_the_pool_grows_while_all_workers_are_blocked_and_shrinks_when_they_are_idle(
    start_pool: StartPool, pipe: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_IDLE_UNTIL_SHRUNK", 0.0)
    harness = await start_pool(workers=1, max_workers=4)
    paths = [pipe() for _ in range(3)]
    harness.pool.submit([task("block", path=path) for path in paths])
    let_go = [await entered(path) for path in paths]
    assert (harness.pool.busy, harness.pool.alive) == (3, 3)
    for each in let_go:
        each()
    await harness.until(lambda: len(harness.outcomes) == 3 and harness.pool.alive == 1)
    [outcome] = await harness.run(task())
    assert outcome.status == "completed"


async def test_a_pool_that_may_not_grow_wants_nothing_while_it_is_blocked(
    start_pool: StartPool, pipe: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_STUCK", 0.0)
    harness = await start_pool(workers=1, max_workers=1)
    assert harness.pool.appetite > 0
    harness.pool.submit([task("block", path=(path := pipe()))])
    let_go = await entered(path)
    assert harness.pool.appetite == 0
    let_go()
    await harness.until(lambda: harness.pool.appetite > 0)
    assert len(harness.outcomes) == 1


async def test_appetite_grows_when_runs_are_short(start_pool: StartPool) -> None:
    harness = await start_pool()
    before = harness.pool.appetite
    for _ in range(5):
        await harness.run(*(task() for _ in range(100)))
    assert harness.pool.appetite > 2 * before


async def test_when_no_worker_can_be_added_those_there_are_do_the_work(
    start_pool: StartPool, pipe: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = await start_pool(workers=1, max_workers=2)

    def allocate() -> int:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(SharedOutput, "allocate", allocate)
        harness.pool.submit([task("block", path=(path := pipe())), waiting := task()])
        await harness.until(lambda: bool(harness.trouble))
    assert "too many open files" in harness.trouble[0]
    await harness.until(lambda: harness.is_over(waiting))
    (await entered(path))()
    await harness.until(lambda: len(harness.outcomes) == 2)


# What an entry takes


@pytest.mark.parametrize(
    ("entrypoint", "value"),
    [pytest.param("eat_memory", None, id="by itself"), pytest.param("eat_memory_in_children", 2**24, id="in children")],
)
async def test_an_entry_that_takes_too_much_memory_loses_its_worker_and_says_so(
    start_pool: StartPool, entrypoint: str, value: int | None
) -> None:
    harness = await start_pool(memory=MEMORY)
    eaten, next_one = await harness.run(task(entrypoint, value=value), task())
    assert (eaten.status, eaten.reason, next_one.status) == ("error", "OutOfMemory", "completed")
    assert "more than the 48 MiB that a worker may take" in eaten.message
    assert numbers(harness).isdisjoint({1})


async def test_an_entry_that_asks_for_more_memory_than_there_is_keeps_its_worker(start_pool: StartPool) -> None:
    harness = await start_pool()
    [outcome] = await harness.run(task("ask_for_too_much"))
    assert (outcome.status, outcome.reason) == ("error", "OutOfMemory")
    assert outcome.error is not None
    assert outcome.error.type == "builtins.MemoryError"
    assert numbers(harness) == {1}


async def test_without_a_limit_an_entry_takes_what_it_wants(start_pool: StartPool) -> None:
    harness = await start_pool(memory=0)
    [outcome] = await harness.run(task("eat_memory", value=4 * MEMORY))
    assert outcome.status == "completed"
    assert numbers(harness) == {1}


async def test_no_run_is_blamed_for_the_memory_of_the_one_before(start_pool: StartPool) -> None:
    harness = await start_pool(memory=MEMORY)
    large = [task("eat_memory", value=2 * MEMORY // 3) for _ in range(3)]
    assert {outcome.status for outcome in await harness.run(*large)} == {"completed"}
    await harness.run(task())
    assert numbers(harness).isdisjoint({1, 2, 3})


# What an entry leaves behind


@pytest.mark.parametrize(
    ("entrypoint", "reason", "what"),
    [
        ("leave_a_stubborn_task", "TasksLeft", "1 task running"),
        ("leave_a_thread", "ThreadsLeft", "1 thread running"),
        ("leave_a_thread_of_the_loop", "ThreadsLeft", "1 thread running"),
        ("leave_a_process", "ProcessesLeft", "1 process running"),
    ],
)
async def test_what_an_entry_leaves_running_ends_with_its_worker_and_the_run_says_so(
    start_pool: StartPool, entrypoint: str, reason: str, what: str
) -> None:
    harness = await start_pool()
    first, *others = await harness.run(task(entrypoint), *(task() for _ in range(5)))
    assert (first.status, first.reason) == ("completed", reason)
    assert what in first.message
    assert {outcome.reason for outcome in others} == {"Completed"}
    assert numbers(harness).isdisjoint({1})


async def test_a_failure_that_leaves_something_running_stays_that_failure(start_pool: StartPool) -> None:
    [outcome] = await (await start_pool()).run(task("leave_a_thread_and_fail"))
    assert (outcome.status, outcome.reason) == ("error", "ExecutorFailed")
    assert outcome.message == "The entry raised an error. It left 1 thread running, which ended with its worker."


async def test_a_program_that_ended_and_that_nobody_waited_for_is_not_said_to_run(start_pool: StartPool) -> None:
    harness = await start_pool()
    [outcome] = await harness.run(task("forget_a_program"))
    assert outcome.reason == "Completed"


@pytest.mark.parametrize(
    ("entrypoint", "text"), [("use_a_thread_of_the_loop", ""), ("leave_a_thread", "daemon"), ("start_and_wait", "")]
)
async def test_threads_that_wait_for_work_and_programs_that_have_ended_cost_no_worker(
    start_pool: StartPool, entrypoint: str, text: str
) -> None:
    harness = await start_pool()
    outcomes = await harness.run(*(task(entrypoint, text=text) for _ in range(3)))
    assert {outcome.reason for outcome in outcomes} == {"Completed"}
    assert numbers(harness) == {1}


async def test_daemon_threads_do_not_pile_up(start_pool: StartPool) -> None:
    harness = await start_pool()
    outcomes = await harness.run(*(task("leave_a_thread", text="daemon") for _ in range(70)))
    assert {outcome.reason for outcome in outcomes} == {"Completed"}
    await harness.run(task())
    assert numbers(harness).isdisjoint({1})


# What an entry must not get at


async def test_a_worker_sees_no_secret_of_the_runner(start_pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONPLANE_DATABASE_URL", "postgresql://user:password@host/db")
    monkeypatch.setenv("PGPASSWORD", "password")
    [outcome] = await (await start_pool(GIVEN="by the runner")).run(task("show_environment"))
    seen = set(orjson.loads(outcome.result_json or "")["environment"])
    assert {"GIVEN", "PATH", "PYTHONPATH"} <= seen
    assert not {"CRONPLANE_DATABASE_URL", "PGPASSWORD"} & seen


async def test_an_entry_is_given_its_own_settings_and_leaves_them_to_nothing_that_it_starts(
    start_pool: StartPool,
) -> None:
    settings = {"tell_settings": {"token": "its own"}, "no_op": {"token": "of another"}}
    [outcome] = await (await start_pool(settings=settings)).run(task("tell_settings"))
    told = orjson.loads(outcome.result_json or "")
    assert told["settings"] == {"token": "its own"}
    assert told["input"] == ""
    assert "its own" not in told["environment"]
    assert "CRONPLANE" not in told["environment"]


async def test_an_entry_cannot_cut_off_the_memory_that_the_runner_reads(start_pool: StartPool) -> None:
    harness = await start_pool()
    [outcome] = await harness.run(task("cut_output_off"))
    assert orjson.loads(outcome.result_json or "") == {"errors": ["PermissionError"]}
    assert outcome.output == "still readable\n"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\xff" * 64, id="a length out of bounds"),
        pytest.param(b"\0\0\0\2{}", id="an object that is no outcome"),
        pytest.param(
            encode_outcome(Outcome(attempt_id=UUID(int=1), status="completed", reason="Completed", message="Mine.")),
            id="the outcome of another's task",
        ),
    ],
)
async def test_a_worker_that_says_what_it_must_not_ends_its_own_task_only(start_pool: StartPool, said: bytes) -> None:
    harness = await start_pool(workers=1, max_workers=2)
    culprit, *others = await harness.run(task("say_to_the_runner", text=said.hex()), *(task() for _ in range(5)))
    assert (culprit.status, culprit.reason, culprit.output) == ("error", "WorkerProtocol", "garbage follows\n")
    assert {outcome.status for outcome in others} == {"completed"}


async def test_tasks_that_an_entry_steals_from_its_worker_run_elsewhere(start_pool: StartPool) -> None:
    harness = await start_pool()
    thief, *others = await harness.run(task("steal_tasks_and_die"), *(task() for _ in range(3)))
    assert thief.reason == "WorkerExited"
    assert {outcome.reason for outcome in others} == {"Completed"}


async def test_tasks_that_an_entry_steals_while_its_worker_drains_are_given_back(
    start_pool: StartPool, pipe: Callable[[], str]
) -> None:
    harness = await start_pool()
    thief, *behind = tasks = [task("steal_tasks_and_die", path=(path := pipe())), task(), task()]
    harness.pool.submit(tasks)
    let_go = await entered(path)
    draining = asyncio.create_task(harness.pool.drain(grace=HANG_GUARD))
    let_go()
    assert await draining == behind
    assert [outcome.attempt_id for outcome in harness.outcomes] == [thief.attempt_id]


async def test_a_worker_that_takes_no_more_tasks_is_replaced(start_pool: StartPool) -> None:
    harness = await start_pool()
    first, second = await harness.run(task("refuse_tasks")) + await harness.run(task())
    assert (first.status, second.status) == ("completed", "completed")
    assert numbers(harness).isdisjoint({1})


async def test_a_fork_of_a_worker_that_returns_is_not_taken_for_the_worker(start_pool: StartPool) -> None:
    harness = await start_pool()
    forked, next_one = await harness.run(task("fork_and_return"), task())
    assert orjson.loads(forked.result_json or "") == {"is": "parent"}
    assert next_one.status == "completed"
    assert numbers(harness) == {1}


@pytest.mark.parametrize("entrypoint", ["start_a_program", "leave_a_process"])
async def test_what_an_entry_has_started_dies_when_its_run_ends_wherever_it_hides(
    start_pool: StartPool, entrypoint: str
) -> None:
    [started] = await (await start_pool()).run(task(entrypoint))
    await ended(int(started.output))


@pytest.mark.parametrize("entrypoint", ["start_a_program", "leave_a_process"])
async def test_what_an_entry_has_started_dies_with_its_worker(
    start_pool: StartPool, pipe: Callable[[], str], entrypoint: str
) -> None:
    harness = await start_pool()
    harness.pool.submit([running := task(entrypoint, path=(path := pipe()), timeout=A_MOMENT)])
    pids = await asyncio.to_thread(Path(path).read_text)
    await harness.until(lambda: harness.is_over(running))
    await ended(int(pids.split()[0]))


@pytest.mark.parametrize("entrypoint", ["start_a_program", "leave_a_process"])
async def test_what_an_entry_has_started_dies_with_the_pool(
    start_pool: StartPool, pipe: Callable[[], str], entrypoint: str
) -> None:
    harness = await start_pool()
    harness.pool.submit([task(entrypoint, path=(path := pipe()))])
    pids = await asyncio.to_thread(Path(path).read_text)
    await harness.pool.stop()
    await ended(int(pids.split()[0]))


async def test_a_termination_signal_to_every_process_leaves_running_entries_to_the_runner(
    start_pool: StartPool,
) -> None:
    harness = await start_pool()
    first, second = await harness.run(task("terminate_everyone"), task())
    assert (first.status, second.status, harness.trouble) == ("completed", "completed", [])


# How it ends, and how it begins again


async def test_draining_lets_running_entries_end_and_gives_back_what_was_not_begun(
    start_pool: StartPool, pipe: Callable[[], str]
) -> None:
    harness = await start_pool()
    blocker, *behind = tasks = [task("block", path=(path := pipe())), task(), task(), task()]
    harness.pool.submit(tasks)
    let_go = await entered(path)
    draining = asyncio.create_task(harness.pool.drain(grace=HANG_GUARD))
    await asyncio.sleep(0)
    assert harness.pool.appetite == 0
    let_go()
    assert await draining == behind
    assert [(outcome.attempt_id, outcome.status) for outcome in harness.outcomes] == [(blocker.attempt_id, "completed")]


async def test_what_outlives_the_grace_of_draining_is_killed_and_lost(
    start_pool: StartPool, pipe: Callable[[], str]
) -> None:
    harness = await start_pool()
    harness.pool.submit([task("block", path=(path := pipe())), task()])
    let_go = await entered(path)
    assert len(await harness.pool.drain(grace=0.0)) == 1
    let_go()
    [outcome] = harness.outcomes
    assert (outcome.status, outcome.reason, outcome.output) == ("lost", "Shutdown", "blocking\n")


async def test_when_the_zygote_dies_what_ran_is_lost_and_work_goes_on(
    start_pool: StartPool, pipe: Callable[[], str]
) -> None:
    harness = await start_pool()
    harness.pool.submit([running := task("block", path=(path := pipe())), waiting := task()])
    let_go = await entered(path)
    [worker] = harness.pool._workers.values()
    assert worker.pid is not None
    assert harness.pool._zygote is not None
    harness.pool._zygote.kill()
    await ended(worker.pid)
    await harness.until(lambda: harness.is_over(running) and harness.is_over(waiting))
    let_go()
    assert (harness.of(running).status, harness.of(running).reason) == ("lost", "WorkersLost")
    assert harness.of(waiting).status == "completed"
    assert len(harness.trouble) == 1


@asynccontextmanager
async def runner_process(path: str, entrypoint: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[int]]]:
    """Another process with a pool; with it the pids of its zygote, its worker, and what the worker started."""
    script = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_worker_pool import Harness, task
async def main():
    harness = Harness(workers=1, max_workers=1)
    await harness.pool.start()
    print(harness.pool._zygote.pid, *(worker.pid for worker in harness.pool._workers.values()), flush=True)
    harness.pool.submit([task({entrypoint!r}, path={path!r})])
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(HANG_GUARD):
        pids = (await process.stdout.readline()).decode() + await asyncio.to_thread(Path(path).read_text)
    yield process, [int(pid) for pid in pids.split()]
    await process.wait()


@pytest.mark.parametrize("entrypoint", ["start_a_program", "leave_a_process"])
async def test_nothing_survives_a_runner_that_is_killed(pipe: Callable[[], str], entrypoint: str) -> None:
    async with runner_process(pipe(), entrypoint) as (process, pids):
        assert len(set(pids)) == 3
        process.kill()
        for pid in pids:
            await ended(pid)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("module", "message"),
    [("import nothing_of_the_kind", "broken-entries offers the entry broken"), ("import os; os._exit(7)", "could not")],
)
async def test_entries_that_cannot_be_loaded_are_an_error_at_the_start(
    start_pool: StartPool, tmp_path: Path, module: str, message: str
) -> None:
    information = tmp_path / "broken_entries-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-entries\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[cronplane.entries]\nbroken = broken_entries:spec\n")
    (tmp_path / "broken_entries.py").write_text(module)
    with pytest.raises(WorkersUnavailableError, match=message):
        await start_pool(PYTHONPATH=str(tmp_path))


EXPECTED = {
    "no_op": "Completed",
    "no_op_async": "Completed",
    "print_much": "Completed",
    "fail": "ExecutorFailed",
    "gone": "EntryUnknown",
    "exit_hard": "WorkerExited",
    "segfault": "WorkerCrashed",
    "spin": "AttemptTimeout",
}


@pytest.mark.parametrize("seed", range(3))
async def test_of_any_mixture_each_task_has_exactly_one_outcome_and_the_right_one(
    start_pool: StartPool, seed: int
) -> None:
    chance = random.Random(seed)
    harness = await start_pool(workers=2, max_workers=4)
    names = chance.choices(list(EXPECTED), weights=[40, 20, 1, 5, 5, 3, 1, 1], k=300)
    tasks = [task(name, timeout=A_MOMENT if name == "spin" else FOREVER) for name in names]
    while tasks_left := [each for each in tasks if not harness.is_over(each)]:
        batch = tasks_left[: chance.randint(1, 40)]
        await harness.run(*batch)
    assert Counter(outcome.attempt_id for outcome in harness.outcomes) == Counter(each.attempt_id for each in tasks)
    assert [harness.of(each).reason for each in tasks] == [EXPECTED[name] for name in names]
