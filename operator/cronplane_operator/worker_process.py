"""The processes that run entries: one zygote, which imports every entry once, and the workers that it forks.

A worker runs one task after another and knows nothing but what a task says: no database, no secret, an environment that
the runner chose. It dies with the zygote, and the zygote with the runner; whatever an entry has started goes with its
worker, to which it stays attached wherever it hides (`PR_SET_CHILD_SUBREAPER`, prctl(2)).
"""

import asyncio
import ctypes
import gc
import io
import logging
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import orjson
from pydantic import ValidationError

from cronplane_core import failpoints
from cronplane_core.errors import CronplaneError
from cronplane_core.failpoints import Failpoint
from cronplane_entries.core import (
    Accepted,
    AnyCronEntrySpec,
    Callback,
    CronReference,
    ExecutionContext,
    PermanentError,
    RunReference,
    Services,
    TemporaryError,
)
from cronplane_entries.entry_settings import NO_SETTINGS, EntrySettings
from cronplane_entries.invocation import (
    PayloadInvalidError,
    ResultInvalidError,
    encode_result,
    execute,
    load_execution_payload,
    validate_execution,
)
from cronplane_entries.registry import CRON_REGISTRY, CronEntrypoint, UnknownEntryError, load_entries
from cronplane_operator.process_tree import children
from cronplane_operator.worker_leftovers import Housekeeping
from cronplane_operator.worker_memory import MemoryWatch, own_memory
from cronplane_operator.worker_protocol import (
    CHANNEL_CLOSED_EXIT,
    LONGEST_DELAY,
    MAXIMUM_MESSAGE_CHARACTERS,
    MAXIMUM_TASK_BYTES,
    MAXIMUM_TRACEBACK_CHARACTERS,
    ErrorRecord,
    Outcome,
    SharedOutput,
    Task,
    decode_task,
    encode_outcome,
    storable,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Sent to the zygote by the kernel when the runner dies; SIGTERM would not do, see `_ignore_termination`.
_RUNNER_DIED = signal.SIGUSR1
# Sent to a worker by the zygote to have the executor cancelled.
_INTERRUPT = signal.SIGUSR2
_CONTROL_BYTES = 4096
_DESCRIPTORS = 3
# Where memory is short, the kernel kills a worker before the runner or PostgreSQL (proc(5), oom_score_adj).
_EXPENDABLE = "500"


class Zygote:
    """Forks workers on request, tells when one ends, and kills one when told to, or when it takes too much memory.

    `memory` is how many bytes a worker may take; 0 for as many as there are. What entries print goes to the descriptor
    `echo`, too, if there is one.
    """

    def __init__(
        self, control: socket.socket, *, runner: int, settings: EntrySettings, memory: int, echo: int | None
    ) -> None:
        self._control = control
        self._echo = echo
        self._runner = runner
        self._settings = settings
        self._memory = memory
        self._watch = MemoryWatch(limit=memory, own=own_memory())
        self._workers: dict[int, int] = {}
        self._over_memory: set[int] = set()
        self._selector = selectors.DefaultSelector()
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup_writer.settimeout(0)
        self._wakeup.settimeout(0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())

    def serve(self) -> None:
        """Serve until the runner hangs up or dies; then no worker is left, and nothing that one of them started."""
        try:
            signal.signal(_RUNNER_DIED, lambda *_: None)
            _die_with_parent(self._runner, _RUNNER_DIED)
            _adopt_orphans()
            self._control.send(orjson.dumps({"event": "ready"}))
            self._listen()
        except ConnectionError:
            return
        finally:
            signal.set_wakeup_fd(-1)
            self._end_everything()

    def _listen(self) -> None:
        self._selector.register(self._control, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in self._selector.select(self._watch.pause(time.monotonic()))}
            if self._wakeup in ready:
                # Each byte is the number of a signal.
                if _RUNNER_DIED in self._wakeup.recv(_CONTROL_BYTES):
                    return
                self._reap()
            if self._control in ready and not self._obey():
                return
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        now = time.monotonic()
        if self._watch.pause(now) != 0.0:
            return
        for pid in self._watch.look(self._workers):
            self._over_memory.add(pid)
            _kill(pid)
        self._watch.rest(since=now, now=time.monotonic())

    def _end_everything(self) -> None:
        for pid in self._workers:
            _kill(pid)
        with suppress(ChildProcessError):
            while True:
                # Each that ends leaves us its children, which may be in sessions of their own.
                self._kill_orphans()
                os.waitpid(-1, 0)

    def _kill_orphans(self) -> None:
        """Kill what entries have started and their workers have left behind; our own children cannot be another's."""
        for pid in children(os.getpid()):
            if pid not in self._workers:
                with suppress(PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def _obey(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(
            self._control, _CONTROL_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        order = orjson.loads(message)
        if order["order"] == "fork":
            self._fork(order["number"], *descriptors)
        elif order["order"] == "watch":
            self._watch.keep_on(until=time.monotonic() + order["seconds"])
        elif (pid := self._pid(order["number"])) is not None:
            if order["order"] == "interrupt":
                os.kill(pid, _INTERRUPT)
            else:
                _kill(pid)
        return True

    def _pid(self, number: int) -> int | None:
        return next((pid for pid, worker in self._workers.items() if worker == number), None)

    def _fork(self, number: int, tasks: int, outcomes: int, output: int) -> None:
        zygote = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(zygote, tasks, outcomes, output)
        except OSError:
            # No memory or no process is left: the workers that there are go on.
            self._say({"event": "exited", "number": number, "code": 1, "is_over_memory": False})
            return
        finally:
            for descriptor in (tasks, outcomes, output):
                os.close(descriptor)
        self._workers[pid] = number
        self._say({"event": "forked", "number": number, "pid": pid})

    def _reap(self) -> None:
        while (pid := _ended_child()) is not None:
            number = self._workers.pop(pid, None)
            if number is not None:
                # While it is not reaped, its process group cannot be another's.
                _kill(pid)
            _, status = os.waitpid(pid, 0)
            if number is not None:
                code, is_over = os.waitstatus_to_exitcode(status), pid in self._over_memory
                self._over_memory.discard(pid)
                self._say({"event": "exited", "number": number, "code": code, "is_over_memory": is_over})
        self._kill_orphans()

    def _say(self, event: dict[str, object]) -> None:
        self._control.send(orjson.dumps(event))

    def _become_worker(self, zygote: int, tasks: int, outcomes: int, output: int) -> NoReturn:
        """Turn this fork into a worker, in a session of its own so that nothing meant for us reaches it."""
        code = 1
        try:
            self._leave()
            os.setsid()
            _die_with_parent(zygote, signal.SIGKILL)
            _adopt_orphans()
            _offer_to_be_killed_first()
            _silence()
            shared = SharedOutput(output)
            os.close(output)
            channels = socket.socket(fileno=tasks), socket.socket(fileno=outcomes)
            Worker(*channels, shared, self._settings, memory=self._memory, echo=self._echo).serve()
            code = 0
        except _ChannelClosedError:
            code = CHANNEL_CLOSED_EXIT
        finally:
            os._exit(code)

    def _leave(self) -> None:
        """Let go of what is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(_RUNNER_DIED, signal.SIG_DFL)
        for end in (self._control, self._wakeup, self._wakeup_writer, self._selector):
            end.close()


class _ChannelClosedError(Exception):
    """A worker cannot tell an outcome any more, as its entry has closed what did not belong to it."""


def _ended_child() -> int | None:
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid


def _kill(pid: int) -> None:
    """Kill a worker that was not reaped, and its whole group, since an entry may have started programs of its own."""
    with suppress(PermissionError):
        os.kill(pid, signal.SIGKILL)
    # It has no group yet if it was forked a moment ago.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _ignore_termination() -> None:
    """Leave SIGTERM to the runner, which drains: a service manager sends it to every process of a service.

    A handler, since an ignored signal would be ignored by the programs that an entry starts, too.
    """
    signal.signal(signal.SIGTERM, lambda *_: None)


def _silence() -> None:
    """Let nothing that is written past Python's own streams reach our log."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)


def _silence_input() -> None:
    """Leave no way to read again what came in."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


class Worker:
    """Runs tasks until the runner hangs up, or until something is left in this process that is not the next run's."""

    def __init__(
        self,
        tasks: socket.socket,
        outcomes: socket.socket,
        output: SharedOutput,
        settings: EntrySettings,
        *,
        memory: int,
        echo: int | None,
    ) -> None:
        self._tasks = tasks
        self._outcomes = outcomes
        self._output = output
        self._services = {name: Services(settings=settings[name]) for name in settings}
        self._message = bytearray(MAXIMUM_TASK_BYTES)
        self._loop = asyncio.new_event_loop()
        self._housekeeping = Housekeeping(self._loop, memory=memory)
        self._stream = io.TextIOWrapper(
            OutputFile(output, echo=echo), encoding="utf-8", errors="replace", write_through=True
        )
        self._awaited: asyncio.Task[object] | None = None
        self._is_interruptible = False
        self._log = logging.getLogger("cronplane.entry")
        self._log.setLevel(logging.INFO)
        logging.basicConfig(
            level=logging.WARNING, stream=self._stream, format="%(asctime)s %(levelname)s %(message)s", force=True
        )

    def serve(self) -> None:
        """Run one task after another."""
        process = os.getpid()
        signal.signal(_INTERRUPT, self._interrupt)
        while length := self._tasks.recv_into(self._message):
            sys.stdout = sys.stderr = self._stream
            failpoints.reach(Failpoint.BODY)
            outcome = self._run(decode_task(self._message[:length]))
            if os.getpid() != process:
                # An entry has forked, and its child came back here: the task is its parent's.
                return
            leftovers = self._housekeeping.look()
            failpoints.reach(Failpoint.RESULT)
            self._tell(outcome if leftovers is None else leftovers.note(outcome))
            # Now and not later: whenever the next task's worker is killed, this is no output of that task.
            self._output.clear()
            if leftovers is not None or self._housekeeping.is_worn():
                return

    def _tell(self, outcome: Outcome) -> None:
        try:
            self._outcomes.sendall(encode_outcome(outcome))
        except OSError as error:
            raise _ChannelClosedError from error

    def _run(self, task: Task) -> Outcome:
        stage = "EntryUnknown"
        try:
            spec: AnyCronEntrySpec = CRON_REGISTRY[CronEntrypoint(task.entrypoint)]
            stage = "PayloadInvalid"
            payload = load_execution_payload(spec, task.payload_json)
            context = self._context(task)
            stage = "ValidatorFailed"
            self._is_interruptible = True
            validate_execution(spec, payload=payload, context=context, run_until_complete=self._run_until_complete)
            stage = "ExecutorFailed"
            result = execute(spec, payload=payload, context=context, run_until_complete=self._run_until_complete)
            self._is_interruptible = False
            stage = "ResultInvalid"
            if isinstance(result, Accepted):
                return self._accepted(task, result)
            result_json = encode_result(result)
        except BaseException as error:  # noqa: BLE001 - an entry may raise anything, SystemExit included
            self._is_interruptible = False
            return self._failed(task, stage, error)
        return Outcome(
            attempt_id=task.attempt_id,
            status="completed",
            reason="Completed",
            message="The entry finished.",
            result_json=result_json,
            output=self._output.read(),
        )

    def _interrupt(self, *_: object) -> None:
        """Cancel what runs: a coroutine at what it waits for, anything else between two of its instructions."""
        if self._awaited is not None:
            self._loop.call_soon_threadsafe(self._awaited.cancel)
        elif self._is_interruptible:
            raise asyncio.CancelledError

    def _context(self, task: Task) -> ExecutionContext:
        return ExecutionContext(
            cron=CronReference(id=task.cron_id, name=task.cron_name, organization_id=task.organization_id),
            run=RunReference(id=task.run_id, trigger=task.trigger),
            attempt=task.attempt,
            scheduled_for=task.scheduled_for,
            deadline=task.deadline,
            log=self._log,
            services=self._services.get(task.entrypoint, _NO_SERVICES),
            callback=_callback(task),
        )

    def _run_until_complete(self, awaitable: Awaitable[object]) -> object:
        self._awaited = self._loop.create_task(_awaited(awaitable))
        try:
            return self._loop.run_until_complete(self._awaited)
        finally:
            self._awaited = None
            self._housekeeping.end_tasks()

    def _accepted(self, task: Task, accepted: Accepted) -> Outcome:
        if task.callback_token is None:
            raise ResultInvalidError(
                "The executor returned Accepted, and nobody could tell the end of the run: "
                "set completes_by_callback in the entry's spec, and CRONPLANE_TOKEN_KEYS for API and runner"
            )
        return Outcome(
            attempt_id=task.attempt_id,
            status="accepted",
            reason="Accepted",
            message=storable(accepted.message, longest=MAXIMUM_MESSAGE_CHARACTERS),
            output=self._output.read(),
        )

    def _failed(self, task: Task, stage: str, error: BaseException) -> Outcome:
        reason = _reason(stage, error)
        return Outcome(
            attempt_id=task.attempt_id,
            status="error",
            reason=reason,
            message=_SENTENCES[reason],
            error=_record(error),
            output=self._output.read(),
            may_retry=reason not in _PERMANENT and not isinstance(error, PermanentError),
            retry_after=_retry_after(error),
        )


class OutputFile(io.BufferedIOBase):
    """What an entry prints to: bounded memory, and never our own log."""

    name = "<output>"

    def __init__(self, output: SharedOutput, *, echo: int | None) -> None:
        self._output = output
        self._echo = echo

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, data: "ReadableBuffer") -> int:
        """Keep as much as there is room for, and take all of it."""
        written = bytes(data)
        self._output.append(written)
        if self._echo is not None:
            # Nobody may be there to see it any more, which is not the entry's fault.
            with suppress(OSError):
                os.write(self._echo, written)
        return len(written)

    def close(self) -> None:
        """Stay open: an entry may close what it prints to, and the next run prints to the same."""


_NO_SERVICES = Services(settings=NO_SETTINGS)
# The next attempt would meet the same.
_PERMANENT = {"PayloadInvalid", "ResultInvalid"}
_SENTENCES = {
    "EntryUnknown": "This version of the runner has no such entry.",
    "PayloadInvalid": "The entry does not accept the stored payload; change the cron's payload.",
    "ValidatorFailed": "The entry's validator refused to run.",
    "ExecutorFailed": "The entry raised an error.",
    "ResultInvalid": "The entry returned something that cannot be kept as its result.",
    "ExecutorExited": "The entry raised SystemExit, which ends no worker; let it return, or raise an error.",
    "ExecutorInterrupted": "The entry raised KeyboardInterrupt, as if from a keyboard, of which there is none.",
    "ExecutorCancelled": "The entry cancelled itself, or let what it waited for be cancelled; nobody else did.",
    "OutOfMemory": "The entry asked for more memory than there is; let it take less at a time.",
}
# What an executor may raise that is no plain error of it.
_RAISED: dict[type[BaseException], str] = {
    SystemExit: "ExecutorExited",
    KeyboardInterrupt: "ExecutorInterrupted",
    asyncio.CancelledError: "ExecutorCancelled",
}
# Errors of ours say all there is to know; a traceback would only show our own code.
_OUR_MODULES = {"__main__", "cronplane_entries.invocation", "asyncio.base_events"}
_PLAIN_ERRORS = (PayloadInvalidError, ResultInvalidError, UnknownEntryError)


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _callback(task: Task) -> Callback | None:
    if task.callback_token is None or task.callback_deadline is None:
        return None
    return Callback(path=f"/runs/{task.run_id}/finish", deadline=task.callback_deadline, token=task.callback_token)


def _retry_after(error: BaseException) -> float | None:
    if not isinstance(error, TemporaryError) or not isinstance(error.delay, timedelta):
        return None
    return min(max(error.delay.total_seconds(), 0.0), LONGEST_DELAY)


def _reason(stage: str, error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "OutOfMemory"
    if stage != "ExecutorFailed":
        return stage
    return next((reason for kind, reason in _RAISED.items() if isinstance(error, kind)), stage)


def _record(error: BaseException) -> ErrorRecord:
    kind = type(error)
    frames = [] if isinstance(error, _PLAIN_ERRORS) else traceback.format_tb(_below_us(error.__traceback__))
    return ErrorRecord(
        type=storable(f"{kind.__module__}.{kind.__qualname__}", longest=512),
        message=storable(_message(error), longest=MAXIMUM_MESSAGE_CHARACTERS),
        traceback=storable("".join(frames)[-MAXIMUM_TRACEBACK_CHARACTERS:], longest=MAXIMUM_TRACEBACK_CHARACTERS),
    )


def _below_us(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames by which we got to the entry; an author looks for their own."""
    while trace is not None and trace.tb_frame.f_globals.get("__name__") in _OUR_MODULES:
        trace = trace.tb_next
    return trace


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        # Its text would repeat the values, which may be the payload's.
        return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
    try:
        return str(error)
    except BaseException as failure:  # noqa: BLE001 - an entry's own exception may raise anything
        return f"(no message: it raised {type(failure).__name__})"


def _die_with_parent(parent: int, death: signal.Signals) -> None:
    """Get the signal `death` when the process that made us dies (prctl(2)); it may have died before we asked."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death)
    if os.getppid() != parent:
        os._exit(1)


def _adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none of them gets away (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _offer_to_be_killed_first() -> None:
    # Some containers do not let us; then the kernel chooses by size alone.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_EXPENDABLE, encoding="ascii")


def _serve_zygote(control: socket.socket, *, runner: int, memory: int, echo: int | None) -> None:
    _ignore_termination()
    _die_with_parent(runner, signal.SIGKILL)
    settings: EntrySettings = orjson.loads(sys.stdin.buffer.read())
    _silence_input()
    try:
        load_entries()
    except CronplaneError as error:
        control.send(orjson.dumps({"event": "failed", "message": str(error)[: _CONTROL_BYTES // 2]}))
        return
    # What is frozen is not touched by the collector, so that workers share its memory.
    gc.collect()
    gc.freeze()
    Zygote(control, runner=runner, settings=settings, memory=memory, echo=echo).serve()


def main(arguments: list[str]) -> None:
    """Serve as the zygote.

    The arguments are the control socket's descriptor, the runner's pid, the `memory`, and 1 if entries are echoed.
    """
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    echo = os.dup(1) if int(arguments[3]) else None
    _serve_zygote(control, runner=int(arguments[1]), memory=int(arguments[2]), echo=echo)


if __name__ == "__main__":
    main(sys.argv[1:])
