"""The processes that run entries: one zygote, which imports every entry once, and the workers that it forks.

A worker runs one task after another and knows nothing but what a task says: no database, no secret, an environment that
the runner chose. It dies with the zygote, and the zygote with the runner.
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
import traceback
from collections.abc import Awaitable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

import orjson
from pydantic import ValidationError

from cronplane_core.errors import CronplaneError
from cronplane_entries.core import AnyCronEntrySpec, CronReference, ExecutionContext, RunReference, Services
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
from cronplane_operator.worker_protocol import (
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
# Sent to the zygote by the kernel when the runner dies; SIGTERM would not do, see `_ignore_termination`.
_RUNNER_DIED = signal.SIGUSR1
_CONTROL_BYTES = 4096
_DESCRIPTORS = 3


class Zygote:
    """Forks workers on request, tells when one ends, and kills one when told to."""

    def __init__(self, control: socket.socket, *, runner: int, settings: EntrySettings) -> None:
        self._control = control
        self._runner = runner
        self._settings = settings
        self._workers: dict[int, int] = {}
        self._wakeup, self._wakeup_writer = socket.socketpair()
        self._wakeup_writer.settimeout(0)
        self._wakeup.settimeout(0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())

    def serve(self) -> None:
        """Serve until the runner hangs up or dies; then no worker is left, and nothing that one of them started."""
        try:
            signal.signal(_RUNNER_DIED, _hang_up)
            _die_with_parent(self._runner, _RUNNER_DIED)
            self._control.send(orjson.dumps({"event": "ready"}))
            self._listen()
        except ConnectionError:
            return
        finally:
            signal.set_wakeup_fd(-1)
            for pid in self._workers:
                _kill(pid)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wakeup in ready:
                    self._reap()
                if self._control in ready and not self._obey():
                    return

    def _obey(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(
            self._control, _CONTROL_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            return False
        order = orjson.loads(message)
        if order["order"] == "fork":
            self._fork(order["number"], *descriptors)
        elif (pid := self._pid(order["number"])) is not None:
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
            self._say({"event": "exited", "number": number, "code": 1})
            return
        finally:
            for descriptor in (tasks, outcomes, output):
                os.close(descriptor)
        self._workers[pid] = number
        self._say({"event": "forked", "number": number, "pid": pid})

    def _reap(self) -> None:
        self._wakeup.recv(_CONTROL_BYTES)
        while (pid := _ended_child()) is not None:
            number = self._workers.pop(pid, None)
            if number is not None:
                # While it is not reaped, its process group cannot be another's.
                _kill(pid)
            _, status = os.waitpid(pid, 0)
            if number is not None:
                self._say({"event": "exited", "number": number, "code": os.waitstatus_to_exitcode(status)})

    def _say(self, event: dict[str, object]) -> None:
        self._control.send(orjson.dumps(event))

    def _become_worker(self, zygote: int, tasks: int, outcomes: int, output: int) -> NoReturn:
        """Turn this fork into a worker, in a session of its own so that nothing meant for us reaches it."""
        code = 1
        try:
            self._leave()
            os.setsid()
            _die_with_parent(zygote, signal.SIGKILL)
            _silence()
            memory = SharedOutput(output)
            os.close(output)
            Worker(socket.socket(fileno=tasks), socket.socket(fileno=outcomes), memory, self._settings).serve()
            code = 0
        finally:
            os._exit(code)

    def _leave(self) -> None:
        """Let go of what is the zygote's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(_RUNNER_DIED, signal.SIG_DFL)
        for end in (self._control, self._wakeup, self._wakeup_writer):
            end.close()


def _hang_up(*_: object) -> NoReturn:
    raise ConnectionAbortedError("the runner is gone")


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
    """Runs tasks until the runner hangs up."""

    def __init__(
        self, tasks: socket.socket, outcomes: socket.socket, output: SharedOutput, settings: EntrySettings
    ) -> None:
        self._tasks = tasks
        self._outcomes = outcomes
        self._output = output
        self._services = {name: Services(settings=settings[name]) for name in settings}
        self._message = bytearray(MAXIMUM_TASK_BYTES)
        self._loop = asyncio.new_event_loop()
        self._stream = io.TextIOWrapper(OutputFile(output), encoding="utf-8", errors="replace", write_through=True)
        self._log = logging.getLogger("cronplane.entry")
        self._log.setLevel(logging.INFO)
        logging.basicConfig(
            level=logging.WARNING, stream=self._stream, format="%(asctime)s %(levelname)s %(message)s", force=True
        )

    def serve(self) -> None:
        """Run one task after another."""
        process = os.getpid()
        while length := self._tasks.recv_into(self._message):
            sys.stdout = sys.stderr = self._stream
            outcome = self._run(decode_task(self._message[:length]))
            if os.getpid() != process:
                # An entry has forked, and its child came back here: the task is its parent's.
                return
            self._outcomes.sendall(encode_outcome(outcome))
            # Now and not later: whenever the next task's worker is killed, this is no output of that task.
            self._output.clear()

    def _run(self, task: Task) -> Outcome:
        stage = "EntryUnknown"
        try:
            spec: AnyCronEntrySpec = CRON_REGISTRY[CronEntrypoint(task.entrypoint)]
            stage = "PayloadInvalid"
            payload = load_execution_payload(spec, task.payload_json)
            context = self._context(task)
            stage = "ValidatorFailed"
            validate_execution(spec, payload=payload, context=context, run_until_complete=self._run_until_complete)
            stage = "ExecutorFailed"
            result = execute(spec, payload=payload, context=context, run_until_complete=self._run_until_complete)
            stage = "ResultInvalid"
            result_json = encode_result(result)
        except BaseException as error:  # noqa: BLE001 - an entry may raise anything, SystemExit included
            return self._failed(task, stage, error)
        return Outcome(
            attempt_id=task.attempt_id,
            status="completed",
            reason="Completed",
            message="The entry finished.",
            result_json=result_json,
            output=self._output.read(),
        )

    def _context(self, task: Task) -> ExecutionContext:
        return ExecutionContext(
            cron=CronReference(id=task.cron_id, name=task.cron_name, organization_id=task.organization_id),
            run=RunReference(id=task.run_id, trigger=task.trigger),
            attempt=task.attempt,
            scheduled_for=task.scheduled_for,
            deadline=task.deadline,
            log=self._log,
            services=self._services.get(task.entrypoint, _NO_SERVICES),
        )

    def _run_until_complete(self, awaitable: Awaitable[object]) -> object:
        try:
            return self._loop.run_until_complete(_awaited(awaitable))
        finally:
            if leftovers := asyncio.all_tasks(self._loop):
                for leftover in leftovers:
                    leftover.cancel()
                self._loop.run_until_complete(asyncio.gather(*leftovers, return_exceptions=True))

    def _failed(self, task: Task, stage: str, error: BaseException) -> Outcome:
        return Outcome(
            attempt_id=task.attempt_id,
            status="error",
            reason=stage,
            message=_SENTENCES[stage],
            error=_record(error),
            output=self._output.read(),
        )


class OutputFile(io.BufferedIOBase):
    """What an entry prints to: bounded memory, and never our own log."""

    name = "<output>"

    def __init__(self, output: SharedOutput) -> None:
        self._output = output

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def write(self, data: "ReadableBuffer") -> int:
        """Keep as much as there is room for, and take all of it."""
        written = bytes(data)
        self._output.append(written)
        return len(written)

    def close(self) -> None:
        """Stay open: an entry may close what it prints to, and the next run prints to the same."""


_NO_SERVICES = Services(settings=NO_SETTINGS)
_SENTENCES = {
    "EntryUnknown": "This version of the runner has no such entry.",
    "PayloadInvalid": "The entry does not accept the stored payload; change the cron's payload.",
    "ValidatorFailed": "The entry's validator refused to run.",
    "ExecutorFailed": "The entry raised an error.",
    "ResultInvalid": "The entry returned something that cannot be kept as its result.",
}
# Errors of ours say all there is to know; a traceback would only show our own code.
_OUR_MODULES = {"__main__", "cronplane_entries.invocation", "asyncio.base_events"}
_PLAIN_ERRORS = (PayloadInvalidError, ResultInvalidError, UnknownEntryError)


async def _awaited(awaitable: Awaitable[object]) -> object:
    return await awaitable


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


def _serve_zygote(control: socket.socket, runner: int) -> None:
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
    Zygote(control, runner=runner, settings=settings).serve()


def main(arguments: list[str]) -> None:
    """Serve as the zygote: the first argument is the control socket's descriptor, the second the runner's pid."""
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    _serve_zygote(control, int(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
