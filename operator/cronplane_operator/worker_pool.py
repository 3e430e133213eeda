"""The pool of worker processes in which in-process entries run.

An entry that blocks, spins or crashes costs its own worker and nothing else. Tasks wait in a worker's socket only while
runs are short: what waits behind a long one is taken back by reading that socket ourselves, so the kernel decides who
has a task, and it is never run twice. The pool grows while all workers are busy and tasks wait, and shrinks when idle.
A worker that neither ends nor works on what it has is killed; so is a zygote that does not do as it is told.
It decides nothing about runs: it reports each task's outcome, exactly once.
"""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple
from uuid import UUID

import orjson

from cronplane_entries.entry_settings import EntrySettings
from cronplane_operator.errors import RunnerError
from cronplane_operator.worker_protocol import (
    CHANNEL_CLOSED_EXIT,
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
# A worker that has not begun its next task by then is at something that we know nothing of.
_ABSENT = 0.5
# A worker that has hung up has this long to end by itself, so that how it ended can be told.
_HUNG_UP_GRACE = 1.0
# The zygote has this long to fork or kill a worker before it is taken for stuck.
_ZYGOTE_PATIENCE = 10.0
# The zygote looks at the memory of the workers for this long after it was last told to, also while we are held up.
_WATCH_SECONDS = 10.0
_IDLE_UNTIL_SHRUNK = 10.0
# After a worker died before it had a task, and before its successor is forked.
_FORK_PAUSE = 0.5
_RESTART_PAUSES = (0.1, 0.5, 2.0, 5.0)
# A zygote on which we hang up has this long to kill what its workers started.
_ZYGOTE_GRACE = 2.0
_TASK_BUFFER_BYTES = 1024 * 1024
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)
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
    # Of the attempt for which we have killed the worker: what to report once it is gone.
    verdict: tuple[UUID, Callable[[Task], Outcome]] | None = None
    has_served: bool = False
    is_trusted: bool = True
    # It gets no more tasks, since it is to be killed, or has hung up and is about to end.
    is_leaving: bool = False
    hung_up_at: float | None = None
    # Since when the zygote owes us word of it: that it was forked, or that it has ended.
    awaited_since: float | None = None

    @property
    def is_serving(self) -> bool:
        return self.pid is not None and not self.is_leaving and self.hung_up_at is None

    @property
    def is_in_between(self) -> bool:
        return self.awaited_since is not None or self.hung_up_at is not None

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
    """Workers, and the tasks that wait for them. All of it happens in one event loop.

    `memory` is how many bytes a worker may take, together with what it starts; 0 for as many as there are. With
    `echoes` what entries print goes to this process's standard output, too.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_workers: int,
        memory: int,
        real_seconds: Callable[[float], float],
        on_outcomes: Callable[[Sequence[Outcome]], None],
        on_appetite: Callable[[], None],
        on_trouble: Callable[[str], None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
        settings: EntrySettings | None = None,
        echoes: bool = False,
    ) -> None:
        self._least = workers
        self._most = max(workers, max_workers)
        self._memory = memory
        self._real_seconds = real_seconds
        self._on_outcomes = on_outcomes
        self._on_appetite = on_appetite
        self._on_trouble = on_trouble
        self._environment = environment or {}
        self._echoes = echoes
        self._settings = orjson.dumps(settings or {})
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
        self._no_fork_before = 0.0
        self._watched_until = 0.0

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
        if self._is_draining or self._control is None:
            return 0
        room = sum(max(self._depth(worker) - len(worker.assigned), 0) for worker in self._serving())
        forking = sum(1 for worker in self._workers.values() if worker.pid is None)
        return max(room + forking + self._most - self.alive - len(self._queue), 0)

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

    def cancel(self, attempt_ids: Collection[UUID]) -> None:
        """End these attempts, whose outcome is then that they were cancelled; one that is not here is left out."""
        for worker in list(self._workers.values()):
            if any(task.attempt_id in attempt_ids for task in worker.assigned):
                self._find_out(worker)
                if worker.assigned and worker.assigned[0].attempt_id in attempt_ids:
                    self._kill(worker, _cancelled)
        unwanted = [waiting.task for waiting in self._queue if waiting.task.attempt_id in attempt_ids]
        if unwanted:
            self._queue = deque(each for each in self._queue if each.task.attempt_id not in attempt_ids)
            self._report([_cancelled(task) for task in unwanted])

    def interrupt(self, attempt_id: UUID) -> None:
        """Let an attempt under way know that it should end: its executor is cancelled, and may clean up."""
        for worker in self._workers.values():
            if worker.assigned and worker.assigned[0].attempt_id == attempt_id:
                self._order({"order": "interrupt", "number": worker.number})

    async def drain(self, *, grace: float) -> list[Task]:
        """Begin nothing more, and give running tasks `grace` seconds; gives the tasks that were never begun.

        What is still running then is killed and reported lost.
        """
        self._is_draining = True
        for worker in self._workers.values():
            self._take_back(worker)
        try:
            async with asyncio.timeout(grace):
                await self._wait_until_idle()
        except TimeoutError:
            for worker in self._workers.values():
                if worker.assigned:
                    self._kill(worker, _lost_at_shutdown)
            await self._wait_until_idle()
        unstarted = [waiting.task for waiting in self._queue]
        self._queue.clear()
        return unstarted

    async def stop(self) -> None:
        """Kill every worker and the zygote; tasks that were running are not reported."""
        self._is_draining = True
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        self._queue.clear()
        for worker in list(self._workers.values()):
            self._forget(worker)
        await self._end_zygote()

    # The zygote

    async def _start_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        try:
            with theirs:
                self._zygote = self._spawn_zygote(theirs)
            await _wait_until_ready(ours)
        except BaseException:
            ours.close()
            await self._end_zygote()
            raise
        self._control = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    def _spawn_zygote(self, control: socket.socket) -> subprocess.Popen[bytes]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        # The settings are not in its environment, which whatever an entry starts would inherit.
        with os.fdopen(os.memfd_create("cronplane-settings"), "w+b") as settings:
            settings.write(self._settings)
            settings.seek(0)
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "cronplane_operator.worker_process",
                    str(control.fileno()),
                    str(os.getpid()),
                    str(self._memory),
                    str(int(self._echoes)),
                ],
                env={**inherited, **self._environment},
                pass_fds=[control.fileno()],
                stdin=settings,
                start_new_session=True,
            )

    async def _end_zygote(self) -> None:
        """Hang up, upon which it kills its workers and what they have started, and ends."""
        zygote, self._zygote = self._zygote, None
        self._hang_up()
        if zygote is not None:
            await asyncio.to_thread(_end, zygote)

    def _hang_up(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None

    def _hear(self) -> None:
        while self._control is not None:
            try:
                message = self._control.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message = b""
            if not message:
                self._hang_up()
                self._restart = asyncio.create_task(self._start_again())
                return
            event = orjson.loads(message)
            worker = self._workers.get(event["number"])
            if worker is None:
                continue
            if event["event"] == "forked":
                self._forked(worker, event["pid"])
            elif event["is_over_memory"]:
                self._exited(worker, partial(_out_of_memory, limit=self._memory))
            else:
                self._exited(worker, partial(_crashed, code=event["code"]))

    async def _start_again(self) -> None:
        self._on_trouble("The process that forks the workers has died, and its workers with it; it is started again")
        await self._end_zygote()
        for worker in list(self._workers.values()):
            self._exited(worker, _lost_with_zygote)
        for pause in chain(_RESTART_PAUSES, repeat(_RESTART_PAUSES[-1])):
            await asyncio.sleep(pause)
            if self._is_draining:
                return
            try:
                await self._start_zygote()
            except (WorkersUnavailableError, OSError) as error:
                self._on_trouble(f"No worker can be started: {error}")
                continue
            self._no_fork_before = 0.0
            self._watched_until = 0.0
            self._refill()
            return

    def _order(self, order: dict[str, object]) -> bool:
        """Tell the zygote what to do, unless it is dead or stuck."""
        if self._control is None:
            return False
        try:
            self._control.send(orjson.dumps(order))
        except OSError:
            return False
        return True

    def _watch_memory(self, now: float) -> None:
        is_due = self._memory and now > self._watched_until - _WATCH_SECONDS / 2
        if is_due and self._order({"order": "watch", "seconds": _WATCH_SECONDS}):
            self._watched_until = now + _WATCH_SECONDS

    def _end_if_stuck(self, now: float) -> None:
        """Kill a zygote that does not do as it is told; an entry may have stopped it, a process like any other."""
        awaited = [worker.awaited_since for worker in self._workers.values() if worker.awaited_since is not None]
        if self._control is None or self._zygote is None or now - min(awaited, default=now) <= _ZYGOTE_PATIENCE:
            return
        self._on_trouble("The process that forks the workers does not answer any more, and is killed")
        self._zygote.kill()
        for worker in self._workers.values():
            worker.awaited_since = None

    # Workers

    def _grow(self, count: int) -> None:
        try:
            for _ in range(count):
                self._fork()
        except OSError as error:
            # Those that there are do the work, and it is tried again.
            self._no_fork_before = self._now() + _FORK_PAUSE
            self._on_trouble(f"No further worker can be started: {error}")

    def _refill(self) -> None:
        """Fork what lacks to the least number of workers, or leave it to a tick if that would be of no use now."""
        if self._now() >= self._no_fork_before:
            self._grow(max(self._least - self.alive, 0))
        self._schedule_tick()

    def _fork(self) -> None:
        if self._control is None:
            return
        self._numbers += 1
        with ExitStack() as passed, ExitStack() as kept:
            tasks, unread = map(kept.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            outcomes, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            kept.enter_context(outcomes)
            passed.enter_context(theirs)
            descriptor = SharedOutput.allocate()
            passed.callback(os.close, descriptor)
            worker = _Worker(self._numbers, tasks, unread, outcomes, SharedOutput(descriptor))
            kept.callback(worker.close)
            order = orjson.dumps({"order": "fork", "number": worker.number})
            socket.send_fds(self._control, [order], [unread.fileno(), theirs.fileno(), descriptor])
            kept.pop_all()
        tasks.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _TASK_BUFFER_BYTES)
        outcomes.settimeout(0)
        worker.awaited_since = self._now()
        self._workers[worker.number] = worker
        asyncio.get_running_loop().add_reader(outcomes, self._read, worker)
        self._schedule_tick()

    def _forked(self, worker: _Worker, pid: int) -> None:
        worker.pid = pid
        worker.awaited_since = None
        if sum(1 for each in self._workers.values() if each.pid is not None) >= self._least:
            self._all_forked.set()
        self._feed()

    def _serving(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.is_serving]

    def _kill(self, worker: _Worker, verdict: Callable[[Task], Outcome]) -> None:
        """Have a worker killed for its current task, and only for that: what waits behind it is taken back."""
        self._take_back(worker)
        if worker.is_leaving:
            return
        worker.is_leaving = True
        if worker.assigned:
            worker.verdict = (worker.assigned[0].attempt_id, verdict)
        # If the zygote is dead, so is the worker; if it is stuck, it will be killed.
        worker.awaited_since = self._now()
        self._order({"order": "kill", "number": worker.number})
        self._schedule_tick()

    def _exited(self, worker: _Worker, cause: Callable[[Task], Outcome]) -> None:
        """Settle what a dead worker leaves: outcomes on their way, tasks it never read, and the one it died of."""
        self._read(worker)
        self._take_back(worker)
        if not (worker.assigned or worker.has_served or worker.is_leaving):
            # What it died of would kill the next one, too.
            self._no_fork_before = self._now() + _FORK_PAUSE
        if worker.assigned:
            task = worker.assigned.popleft()
            judge = worker.verdict[1] if worker.verdict and worker.verdict[0] == task.attempt_id else cause
            self._report([replace(judge(task), output=worker.output.read())])
        # An entry has read what was meant for its worker, which begins a task only when the one before is answered.
        for stolen in reversed(worker.assigned):
            self._queue.appendleft(_Waiting(worker.current_since, stolen, encode_task(stolen)))
        self._forget(worker)
        if not self._is_draining:
            self._refill()
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
        workers = [] if self._is_draining else sorted(self._serving(), key=lambda worker: len(worker.assigned))
        for index, worker in enumerate(workers):
            room = self._depth(worker) - len(worker.assigned)
            share = -(-len(self._queue) // (len(workers) - index))
            for _ in range(min(room, share)):
                if not self._assign(worker):
                    break
        if self._queue or any(worker.assigned for worker in self._workers.values()):
            self._watch_memory(self._now())
            self._schedule_tick()
        if self.appetite:
            self._on_appetite()

    def _assign(self, worker: _Worker) -> bool:
        """Send the next task to a worker; tells whether it may get more."""
        waiting = self._queue[0]
        try:
            worker.tasks.send(waiting.message, socket.MSG_DONTWAIT)
        except OSError as error:
            return self._not_assigned(worker, error)
        self._queue.popleft()
        if not worker.assigned:
            worker.current_since = self._now()
        worker.assigned.append(waiting.task)
        return True

    def _not_assigned(self, worker: _Worker, error: OSError) -> bool:
        if error.errno == errno.EMSGSIZE:
            self._report([_refused(self._queue.popleft().task)])
            return True
        if error.errno not in _FULL:
            # An entry has closed what its worker reads tasks from.
            self._kill(worker, _spoke_nonsense)
        return False

    def _find_out(self, worker: _Worker) -> None:
        """Learn what a worker is at: what it has not begun is taken back first, so that it begins nothing meanwhile."""
        self._take_back(worker)
        self._read(worker)

    def _take_back(self, worker: _Worker) -> None:
        """Read what waits in a worker's socket in its stead; what we get it has not begun, and never will."""
        messages = []
        while message := _received(worker.unread):
            messages.append(message)
        # They come in the order in which they were sent, so they are the last ones assigned. If there are more, then an
        # entry has answered for a task that its worker did not read, and that one is over.
        for message in reversed(messages[-len(worker.assigned) :] if worker.assigned else []):
            self._queue.appendleft(_Waiting(worker.current_since, worker.assigned.pop(), message))

    def _read(self, worker: _Worker) -> None:
        if not worker.is_trusted:
            return
        try:
            while data := worker.outcomes.recv(_READ_BYTES):
                self._settle(worker, data)
        except BlockingIOError:
            return
        except WorkerProtocolError:
            worker.is_trusted = False
            self._kill(worker, _spoke_nonsense)
        # It has hung up or talks nonsense; how it ended, the zygote tells.
        asyncio.get_running_loop().remove_reader(worker.outcomes)
        worker.hung_up_at = self._now()
        self._schedule_tick()

    def _settle(self, worker: _Worker, data: bytes) -> None:
        outcomes: list[Outcome] = []
        try:
            for outcome in worker.reader.feed(data):
                if not worker.assigned or worker.assigned[0].attempt_id != outcome.attempt_id:
                    raise WorkerProtocolError("an outcome of a task that is not the worker's")
                worker.assigned.popleft()
                outcomes.append(outcome)
        finally:
            if outcomes:
                self._finished(worker, outcomes)

    def _finished(self, worker: _Worker, outcomes: Sequence[Outcome]) -> None:
        now = self._now()
        worker.has_served = True
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
        # Before anything is held against the zygote or a worker, what they have told by now.
        self._hear()
        now = self._now()
        for worker in list(self._workers.values()):
            if worker.hung_up_at is not None and now - worker.hung_up_at > _HUNG_UP_GRACE:
                self._kill(worker, _channel_closed)
            elif worker.is_serving and worker.assigned:
                self._look_after(worker, now - worker.current_since)
        self._end_if_stuck(now)
        self._feed()
        self._resize(now)
        if any(worker.is_in_between for worker in self._workers.values()):
            self._schedule_tick()

    def _look_after(self, worker: _Worker, seconds: float) -> None:
        if seconds > self._real_seconds(worker.assigned[0].timeout):
            late = worker.assigned[0].attempt_id
            self._find_out(worker)
            if worker.assigned and worker.assigned[0].attempt_id == late:
                self._kill(worker, _timed_out)
        elif seconds > _ABSENT:
            self._take_back(worker)
            if not worker.assigned:
                self._kill(worker, _spoke_nonsense)
        elif seconds > _STUCK and len(worker.assigned) > 1:
            self._take_back(worker)

    def _resize(self, now: float) -> None:
        if self._is_draining:
            return
        if self._queue and now - self._queue[0].since > _STUCK and now >= self._no_fork_before:
            forking = sum(1 for worker in self._workers.values() if worker.pid is None)
            self._grow(min(len(self._queue) - forking, self._most - self.alive))
        if self.alive < self._least:
            self._refill()
        if self._queue or self.busy == self.alive:
            self._idle_since = now
        elif now - self._idle_since > _IDLE_UNTIL_SHRUNK:
            self._shrink()
        if self.alive > self._least:
            self._schedule_tick()

    def _shrink(self) -> None:
        serving = self._serving()
        idle = [worker for worker in serving if not worker.assigned]
        for worker in idle[: max(len(serving) - self._least, 0)]:
            self._kill(worker, _lost_at_shutdown)

    # Waiting

    async def _wait_until_idle(self) -> None:
        self._all_ended.clear()
        self._check_idle()
        await self._all_ended.wait()

    def _check_idle(self) -> None:
        if not any(worker.assigned for worker in self._workers.values()):
            self._all_ended.set()


def _received(end: socket.socket) -> bytes:
    """Receive a task without waiting; nothing at all if nothing is there, or nobody is at the other end."""
    try:
        return end.recv(MAXIMUM_TASK_BYTES, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


async def _wait_until_ready(control: socket.socket) -> None:
    message = b""
    with suppress(ConnectionResetError):
        message = await asyncio.get_running_loop().sock_recv(control, _READ_BYTES)
    if not message:
        raise WorkersUnavailableError("The worker processes could not be started; standard error tells why")
    event = orjson.loads(message)
    if event["event"] != "ready":
        raise WorkersUnavailableError(event["message"])


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_ZYGOTE_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _refused(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="PayloadInvalid",
        message=f"The execution payload takes more than {MAXIMUM_TASK_BYTES} bytes; make it smaller.",
        may_retry=False,
    )


def _timed_out(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="timed_out",
        reason="AttemptTimeout",
        message=f"The entry was still running after its timeout of {task.timeout:g} s, and was killed; "
        "make it end sooner, or give the cron a longer timeout.",
    )


def _cancelled(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="cancelled",
        reason="CancelRequested",
        message="Somebody cancelled the run, and the entry was killed.",
    )


def _lost_at_shutdown(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="lost",
        reason="Shutdown",
        message="The runner stopped, and the entry did not end within the time given.",
    )


def _lost_with_zygote(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="lost",
        reason="WorkersLost",
        message="The worker processes were ended from outside while the entry ran; nobody knows how far it came.",
    )


def _spoke_nonsense(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="WorkerProtocol",
        message="The entry wrote to the channel between its worker and the runner, and was killed; "
        "let it write only to what it has opened itself.",
    )


def _channel_closed(task: Task) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="ChannelClosed",
        message="The entry closed the channel between its worker and the runner, so that its result is not known; "
        "let it close only what it has opened itself.",
    )


def _out_of_memory(task: Task, limit: int) -> Outcome:
    return Outcome(
        attempt_id=task.attempt_id,
        status="error",
        reason="OutOfMemory",
        message=f"The entry, with what it had started, took more than the {limit / 2**20:g} MiB that a worker may "
        "take, and was killed; let it take less at a time, or have CRONPLANE_WORKER_MEMORY raised.",
    )


def _crashed(task: Task, code: int) -> Outcome:
    if code == CHANNEL_CLOSED_EXIT:
        return _channel_closed(task)
    reason, message = _death(code)
    return Outcome(attempt_id=task.attempt_id, status="error", reason=reason, message=f"The worker process {message}.")


def _death(code: int) -> tuple[str, str]:
    """Put an exit code, or the negative number of a signal, into a reason and words."""
    if code >= 0:
        return "WorkerExited", f"ended with exit code {code} in the entry; let it return, or raise an error"
    name = _signal_name(-code)
    if -code in _FAULTS:
        return "WorkerCrashed", f"crashed with signal {-code} ({name}) in the entry; look at the native code it uses"
    advice = "if the entry did not do it, see who did, and whether memory was short"
    return "WorkerKilled", f"was killed by signal {-code} ({name}) in the entry; {advice}"


# What a program does to itself by a mistake of its own (signal(7)).
_FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
