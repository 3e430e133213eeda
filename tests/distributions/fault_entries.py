"""An entry whose every effect can be counted afterwards, and what breaks the process that loads it, when told to.

The environment tells: `CRONPLANE_TEST_FAILPOINT` is `<name> <hit> <action>`. The name is a failpoint's, or `*` for any.
The hit is the number of the time that it is reached (1 is the first), or a probability such as 0.05 by the generator
that `CRONPLANE_TEST_SEED` seeds. The action is `kill`, `kill-runner` (from a worker), `stop`, `exit`, which ends the
process at once where nothing in its own namespace may kill it (pid_namespaces(7)), or `break`, which raises what a
broken connection does. Before it kills, it writes the name and the action to the file `CRONPLANE_TEST_KILLS`. In a pod,
orders for its attempts may follow one another, with semicolons between them; the last one is that of all further ones.

The ledger is a file, or the address of a server that keeps one.
"""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from cronplane_core import failpoints
from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionContext

MID_BODY = "mid-body"


class Work(BaseUserPayload):
    """Where the ledger is, and what the body does: waits for a pipe's other end, takes its time, fails at first.

    The pipe may be an address; then the body waits for the answer.
    """

    ledger: str
    pipe: str = ""
    seconds: float = 0.0
    failing_attempts: int = 0


class LedgerPayload(BaseExecutionPayload):
    ledger: str
    pipe: str = ""
    seconds: float = 0.0
    failing_attempts: int = 0


def accept(work: Work, **_: object) -> LedgerPayload:
    return LedgerPayload(**work.model_dump())


def validate(payload: LedgerPayload, **_: object) -> None:
    return None


def work(payload: LedgerPayload, *, context: ExecutionContext, **_: object) -> None:
    """Have an effect, between the lines that say that the body was entered and that the effect is done."""
    write_line(payload.ledger, f"entered {context.run.id} {context.attempt} {uuid4()}")
    try:
        _wait_at(payload.pipe)
        time.sleep(payload.seconds)
    except asyncio.CancelledError:
        write_line(payload.ledger, f"cancelled {context.run.id} {context.attempt} {uuid4()}")
        raise
    failpoints.reach(MID_BODY)
    write_line(payload.ledger, f"effect {context.run.id} {context.attempt} {uuid4()}")
    if context.attempt <= payload.failing_attempts:
        raise RuntimeError("this attempt was to fail")


def _wait_at(pipe: str) -> None:
    if pipe.startswith("http:"):
        _ask("GET", pipe)
    elif pipe:
        Path(pipe).read_bytes()


def write_line(path: str, line: str) -> None:
    """Append a line at once, so that those of several processes do not mix (write(2), O_APPEND)."""
    if path.startswith("http:"):
        _ask("POST", path, f"{line}\n")
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def _ask(method: str, address: str, body: str | None = None) -> None:
    """Send a request, and wait for its answer for as long as it takes."""
    where = urlsplit(address)
    with closing(HTTPConnection(where.netloc)) as connection:
        connection.request(method, where.path, body)
        connection.getresponse().read()


keep_ledger = CronEntrySpec(
    user_payload_model=Work,
    execution_payload_model=LedgerPayload,
    registration_validator=accept,
    execution_validator=validate,
    executor=work,
)


# The ledger


@dataclass(frozen=True, slots=True)
class LedgerLine:
    what: str
    run_id: UUID
    attempt: int


def read_ledger(path: Path) -> list[LedgerLine]:
    """Read what the entries did, in the order in which they did it."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    words = (line.split() for line in lines)
    return [LedgerLine(what, UUID(run_id), int(attempt)) for what, run_id, attempt, _ in words]


# In SQL: every fire that is due has been claimed, by the schedule as it is now, and no run is open.
SETTLED = """
    SELECT NOT EXISTS (SELECT FROM scheduler.cron_runs WHERE finished_at IS NULL)
       AND NOT EXISTS (
           SELECT FROM scheduler.cron_jobs cron LEFT JOIN scheduler.apscheduler_jobs job ON job.id = cron.id
           WHERE job.generation IS DISTINCT FROM cron.generation OR job.next_run_time <= scheduler.now()
       )
"""
ATTEMPTS = """
    SELECT attempt.run_id, attempt.number, attempt.outcome
    FROM scheduler.cron_attempts attempt JOIN scheduler.cron_runs run ON run.id = attempt.run_id
    JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE CAST(cron.entrypoint AS text) = 'keep_ledger'
"""
Outcomes = Mapping[tuple[UUID, int], str | None]


def discrepancies(lines: Iterable[LedgerLine], outcomes: Outcomes) -> Iterator[str]:
    """Hold the ledger against the outcome of every recorded attempt (None: open) of the entry."""
    entered, effects = Counter[tuple[UUID, int]](), Counter[tuple[UUID, int]]()
    for line in lines:
        if line.what != "cancelled":
            (entered if line.what == "entered" else effects)[line.run_id, line.attempt] += 1
    for attempt, count in entered.items():
        if attempt not in outcomes:
            yield f"the body of an attempt that is not recorded was entered: {attempt}"
        if count > 1:
            yield f"the body was entered {count} times: {attempt}"
    for attempt, count in effects.items():
        if count > entered[attempt]:
            yield f"{count} effects, and the body was entered {entered[attempt]} times: {attempt}"
    for attempt, outcome in outcomes.items():
        if outcome == "completed" and effects[attempt] != 1:
            yield f"it is recorded as completed, and has {effects[attempt]} effects: {attempt}"


# Faults

Action = Callable[[str], None]


def _kill(name: str) -> None:
    _note(f"{name} kill")
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_runner(name: str) -> None:
    """Kill the runner from one of its workers, whose parent's parent it is (proc(5))."""
    zygote = Path(f"/proc/{os.getppid()}/stat").read_text(encoding="ascii")
    runner = int(zygote.rpartition(")")[2].split()[1])
    if runner <= 1:
        # The runner was killed a moment ago, and its zygote is somebody else's child already.
        return
    _note(f"{name} kill-runner")
    os.kill(runner, signal.SIGKILL)
    # Nobody but the kernel ends a worker whose runner is gone.
    signal.pause()


def _exit(name: str) -> None:
    _note(f"{name} exit")
    os._exit(128 + signal.SIGKILL)


def _stop(name: str) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _break(name: str) -> None:
    raise ConnectionResetError(f"broken on purpose at {name}")


def _note(line: str) -> None:
    if path := os.environ.get("CRONPLANE_TEST_KILLS"):
        write_line(path, line)


_ACTIONS: dict[str, Action] = {
    "kill": _kill,
    "kill-runner": _kill_runner,
    "exit": _exit,
    "stop": _stop,
    "break": _break,
}


def armed(order: str, *, seed: str) -> Action:
    """Give the handler for an order, as the module's docstring describes it."""
    wanted, hit, action = order.split()
    generator, reached = random.Random(seed), 0

    def is_hit() -> bool:
        nonlocal reached
        reached += 1
        return generator.random() < float(hit) if "." in hit else reached == int(hit)

    def handle(name: str) -> None:
        if wanted in {name, "*"} and is_hit():
            _ACTIONS[action](name)

    return handle


def order_of(orders: str, *, attempt: int) -> str:
    """Give the order that is an attempt's (from 1)."""
    each = orders.split(";")
    return each[min(attempt, len(each)) - 1].strip()


if ORDER := order_of(
    os.environ.get("CRONPLANE_TEST_FAILPOINT", ""), attempt=int(os.environ.get("CRONPLANE_ATTEMPT", "1"))
):
    failpoints.install(armed(ORDER, seed=os.environ.get("CRONPLANE_TEST_SEED", "0")))
