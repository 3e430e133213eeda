"""The pool of worker processes in which in-process entries run.

An entry that blocks, spins or crashes costs its own worker and nothing else. Tasks wait in a worker's socket only while
runs are short: what waits behind a long one is taken back by reading that socket ourselves, so the kernel decides who
has a task, and it is never run twice. The pool grows while all workers are busy and tasks wait, and shrinks when idle.
It decides nothing about runs: it reports each task's outcome, exactly once.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from cronplane_operator.errors import RunnerError
from cronplane_operator.worker_protocol import (
    MAXIMUM_TASK_BYTES,
    Outcome,
    OutcomeReader,
    SharedOutput,
    Task,
    WorkerProtocolError,
    encode_task,
)

# The look-ahead fills this much of a worker's time; a run that takes longer has nothing waiting behind it.
_LOOK_AHEAD_SECONDS = 0.02
_DEEPEST_LOOK_AHEAD = 500
_TYPICAL_SECONDS_AT_START = 0.005
_SMOOTHING = 0.05
# How often running tasks are looked at: for those that block others, that wait too long, or that are out of time.
_TICK = 0.025
_STUCK = 0.05
_IDLE_UNTIL_SHRUNK = 10.0
_RESTART_PAUSES = (0.1, 0.5, 2.0, 5.0)
_READ_BYTES = 256 * 1024
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONPATH", "VIRTUAL_ENV")


class WorkersUnavailableError(RunnerError):
    """No worker can be started; the message says which entry, or what else, is to be mended."""


@dataclass(slots=True, eq=False)
class _Worker:
    """The runner's side of one worker: its sockets, and its tasks in the order in which it gets them."""

    number: int
    tasks: socket.socket
    # The worker's own end, which lets us take back what it has not read.
    unread: socket.socket
    outcomes: socket.socket
    output: SharedOutput
    reader: OutcomeReader = field(default_factory=OutcomeReader)
    assigned: deque[Task] = field(default_factory=deque)
    current_since: float = 0.0
    pid: int | None = None
    # What to report of the current task once the worker, which we have killed, is gone.
    verdict: Callable[[Task], Outcome] | None = None
    is_leaving: bool = False

    def close(self) -> None:
        for end in (self.tasks, self.unread, self.outcomes):
            end.close()
        self.output.close()


class _Waiting(NamedTuple):
    """A task that no worker has, the same as a message, and since when it waits (seconds of the event loop)."""

    since: float
    task: Task
    message: bytes


class WorkerPool:
    """Workers, and the tasks that wait for them. All of it happens in one event loop."""

    def __init__(
        self,
        *,
        workers: int,
        max_workers: int,
        real_seconds: Callable[[float], float],
        on_outcomes: Callable[[Sequence[Outcome]], None],
        on_appetite: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._least = workers
        self._most = max(workers, max_workers)
        self._real_seconds = real_seconds
        self._on_outcomes = on_outcomes
        self._on_appetite = on_appetite
        self._environment = environment or {}
        self._queue: deque[_Waiting] = deque()
        self._workers: dict[int, _Worker] = {}
        self._numbers = 0
        self._typical = _TYPICAL_SECONDS_AT_START
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._restart: asyncio.Task[None] | None = None
        self._all_forked = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._is_draining = False
        self._idle_since = 0.0

    @property
    def alive(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    @property
    def busy(self) -> int:
        """How many workers have a task."""
        return sum(1 for worker in self._workers.values() if worker.assigned)

    @property
    def appetite(self) -> int:
        """How many tasks are wanted now: as many as can begin at once, or within a few milliseconds."""
        if self._is_draining:
            return 0
        room = sum(max(self._depth(worker) - len(worker.assigned), 0) for worker in self._serving())
        return max(room + self._most - self.alive - len(self._queue), 0)

    async def start(self) -> None:
        """Start the first workers; returns when they are ready.

        Raises:
            WorkersUnavailableError: the entries cannot be loaded.

        """
        await self._start_zygote()
        self._grow(self._least)
        await self._all_forked.wait()

    def submit(self, tasks: Iterable[Task]) -> None:
        """Take in tasks; each one's outcome is reported exactly once."""
        now = self._now()
        for task in tasks:
            message = encode_task(task)
            if len(message) > MAXIMUM_TASK_BYTES:
                self._report([_refused(task)])
            else:
                self._queue.append(_Waiting(now, task, message))
        self._feed()

    async def drain(self, *, grace: float) -> list[Task]:
        """Begin nothing more, and give running tasks `grace` seconds; gives the tasks that were never begun.

        What is still running then is killed and reported lost.
        """
        self._is_draining = True
        for worker in self._workers.values():
            self._take_back(worker)
        unstarted = [waiting.task for waiting in self._queue]
        self._queue.clear()
        try:
            async with asyncio.timeout(grace):
                await self._wait_until_idle()
        except TimeoutError:
            for worker in self._workers.values():
                if worker.assigned:
                    self._kill(worker, _lost_at_shutdown)
            await self._wait_until_idle()
        return unstarted

    async def stop(self) -> None:
        """Kill every worker and the zygote; tasks that were running are not reported."""
        self._is_draining = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self._restart is not None:
            self._restart.cancel()
        self._queue.clear()
        for worker in list(self._workers.values()):
            self._forget(worker)
        await self._end_zygote()

    # The zygote

    async def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        with theirs:
            self._zygote = self._spawn_zygote(theirs)
        event = orjson.loads(await asyncio.get_running_loop().sock_recv(ours, _READ_BYTES) or b'{"event": "failed"}')
        if event["event"] != "ready":
            ours.close()
            await self._end_zygote()
            raise WorkersUnavailableError(event.get("message", "The worker processes could not be started"))
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    def _spawn_zygote(self, control: socket.socket) -> subprocess.Popen[bytes]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-m", "cronplane_operator.worker_process", str(control.fileno()), str(os.getpid())],
            env={**inherited, **self._environment},
            pass_fds=[control.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    async def _end_zygote(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._zygote is not None:
            # Its workers die with it.
            self._zygote.kill()
            await asyncio.to_thread(self._zygote.wait)
            self._zygote = None

    def _hear(self) -> None:
        while self._control is not None:
            try:
                message = self._control.recv(_READ_BYTES)
            except BlockingIOError:
                return
            if not message:
                self._zygote_died()
                return
            event = orjson.loads(message)
            worker = self._workers.get(event["number"])
            if worker is None:
                continue
            if event["event"] == "forked":
                self._forked(worker, event["pid"])
            else:
                self._exited(worker, event["code"])

    def _zygote_died(self) -> None:
        for worker in list(self._workers.values()):
            self._exited(worker, -9)
        self._restart = asyncio.create_task(self._start_again())

    async def _start_again(self) -> None:
        await self._end_zygote()
        for pause in (*_RESTART_PAUSES, *[_RESTART_PAUSES[-1]] * 1000):
            await asyncio.sleep(pause)
            try:
                await self._start_zygote()
            except WorkersUnavailableError:
                continue
            self._grow(self._least)
            self._feed()
            return

    # Workers

    def _grow(self, count: int) -> None:
        self._all_forked.clear()
        for _ in range(count):
            self._fork()

    def _fork(self) -> None:
        if self._control is None:
            return
        self._numbers += 1
        tasks, unread = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outcomes, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        outcomes.settimeout(0)
        descriptor = os.memfd_create("cronplane-output")
        os.ftruncate(descriptor, SharedOutput.SIZE)
        order = orjson.dumps({"order": "fork", "number": self._numbers})
        socket.send_fds(self._control, [order], [unread.fileno(), theirs.fileno(), descriptor])
        worker = _Worker(self._numbers, tasks, unread, outcomes, SharedOutput(descriptor))
        os.close(descriptor)
        theirs.close()
        self._workers[worker.number] = worker
        asyncio.get_running_loop().add_reader(outcomes, self._read, worker)

    def _forked(self, worker: _Worker, pid: int) -> None:
        worker.pid = pid
        if all(each.pid is not None for each in self._workers.values()):
            self._all_forked.set()

    def _serving(self) -> Iterable[_Worker]:
        return (worker for worker in self._workers.values() if worker.verdict is None and not worker.is_leaving)

    def _kill(self, worker: _Worker, verdict: Callable[[Task], Outcome]) -> None:
        if worker.verdict is None and self._control is not None:
            worker.verdict = verdict
            self._control.send(orjson.dumps({"order": "kill", "number": worker.number}))

    def _exited(self, worker: _Worker, code: int) -> None:
        """Settle what a dead worker leaves: outcomes on their way, tasks it never read, and the one it died of."""
        self._read(worker)
        self._take_back(worker)
        if worker.assigned:
            task = worker.assigned.popleft()
            verdict = worker.verdict or (lambda lost: _crashed(lost, code))
            self._report([replace(verdict(task), output=worker.output.read())])
        self._forget(worker)
        if not self._is_draining:
            self._grow(max(self._least - self.alive, 0))
        self._feed()

    def _forget(self, worker: _Worker) -> None:
        self._workers.pop(worker.number, None)
        asyncio.get_running_loop().remove_reader(worker.outcomes)
        worker.close()
        self._check_idle()

    # Tasks

    def _depth(self, worker: _Worker) -> int:
        """How many tasks a worker may have: one, and what will be begun within a few milliseconds."""
        if worker.assigned and self._now() - worker.current_since > _STUCK:
            return 1
        return 1 + min(int(_LOOK_AHEAD_SECONDS / self._typical), _DEEPEST_LOOK_AHEAD)

    def _feed(self) -> None:
        """Give waiting tasks to the workers with the fewest."""
        workers = sorted(self._serving(), key=lambda worker: len(worker.assigned))
        for worker in workers:
            room = self._depth(worker) - len(worker.assigned)
            share = -(-len(self._queue) // len(workers))
            for _ in range(min(room, max(share, 1), len(self._queue))):
                self._assign(worker)
        if self._queue or any(worker.assigned for worker in self._workers.values()):
            self._schedule_tick()
        if self.appetite:
            self._on_appetite()

    def _assign(self, worker: _Worker) -> None:
        waiting = self._queue.popleft()
        try:
            worker.tasks.send(waiting.message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._queue.appendleft(waiting)
            return
        if not worker.assigned:
            worker.current_since = self._now()
        worker.assigned.append(waiting.task)

    def _take_back(self, worker: _Worker) -> None:
        """Read what waits in a worker's socket in its stead; what we get it has not begun, and never will."""
        while message := _received(worker.unread, MAXIMUM_TASK_BYTES):
            self._queue.appendleft(_Waiting(worker.current_since, worker.assigned.pop(), message))

    def _read(self, worker: _Worker) -> None:
        try:
            while data := _received(worker.outcomes, _READ_BYTES):
                self._settle(worker, worker.reader.feed(data))
        except WorkerProtocolError:
            self._kill(worker, _spoke_nonsense)

    def _settle(self, worker: _Worker, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            return
        now = self._now()
        for outcome in outcomes:
            if not worker.assigned or worker.assigned[0].attempt_id != outcome.attempt_id:
                raise WorkerProtocolError("an outcome of a task that is not the worker's")
            worker.assigned.popleft()
        seconds = min((now - worker.current_since) / len(outcomes), _STUCK)
        self._typical += (seconds - self._typical) * min(_SMOOTHING * len(outcomes), 1.0)
        worker.current_since = now
        self._report(outcomes)
        self._feed()

    def _report(self, outcomes: Sequence[Outcome]) -> None:
        self._on_outcomes(outcomes)
        self._check_idle()

    # Time

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _schedule_tick(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now = self._now()
        for worker in list(self._serving()):
            if worker.assigned:
                self._look_after(worker, now - worker.current_since)
        self._feed()
        self._resize(now)

    def _look_after(self, worker: _Worker, seconds: float) -> None:
        if seconds > self._real_seconds(worker.assigned[0].timeout):
            self._kill(worker, _timed_out)
        elif seconds > _STUCK and len(worker.assigned) > 1:
            self._take_back(worker)

    def _resize(self, now: float) -> None:
        if self._queue and now - self._queue[0].since > _STUCK and not self._is_draining:
            self._grow(min(len(self._queue), self._most - self.alive))
            self._feed()
        if self._queue or self.busy == self.alive:
            self._idle_since = now
        elif now - self._idle_since > _IDLE_UNTIL_SHRUNK:
            self._shrink()
        if self.alive > self._least:
            self._schedule_tick()

    def _shrink(self) -> None:
        idle = [worker for worker in self._serving() if not worker.assigned]
        for worker in idle[: self.alive - self._least]:
            worker.is_leaving = True
            worker.tasks.close()

    # Waiting

    async def _wait_until_idle(self) -> None:
        self._all_ended.clear()
        self._check_idle()
        await self._all_ended.wait()

    def _check_idle(self) -> None:
        if not any(worker.assigned for worker in self._workers.values()):
            self._all_ended.set()


def _received(end: socket.socket, most: int) -> bytes:
    """Receive without waiting; nothing at all if nothing is there, or nobody is at the other end."""
    try:
        return end.recv(most, socket.MSG_DONTWAIT)
    except (BlockingIOError, ConnectionResetError):
        return b""


def _refused(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="PayloadInvalid",
        message=f"The execution payload takes more than {MAXIMUM_TASK_BYTES} bytes; make it smaller.",
    )


def _timed_out(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="timed_out",
        reason="AttemptTimeout",
        message=f"The entry was still running after its timeout of {task.timeout:g} s, and was killed.",
    )


def _lost_at_shutdown(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="lost",
        reason="Shutdown",
        message="The runner stopped, and the entry did not end within the time given.",
    )


def _spoke_nonsense(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="WorkerProtocol",
        message="The entry wrote to the channel between its worker and the runner, and was killed.",
    )


def _crashed(task: Task, code: int) -> Outcome:
    if code < 0:
        reason, cause = "WorkerKilled", f"was killed by signal {-code} ({_signal_name(-code)})"
    else:
        reason, cause = "WorkerExited", f"ended with exit code {code}"
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason=reason,
        message=f"The worker process {cause} while it ran the entry.",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
