"""Entries that behave well and badly, as an installed distribution would bring them."""

import asyncio
import ctypes
import math
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionContext
from cronplane_operator.worker_protocol import Outcome, encode_outcome

_BITE = 2**22
# What must not be collected, since nobody else holds it.
left: list[Any] = []


class MyUserPayload(BaseUserPayload):
    greeting: str = "hello"


class MyExecutionPayload(BaseExecutionPayload):
    greeting: str


def validate_registration(user_input: MyUserPayload, **kwargs: Any) -> MyExecutionPayload:
    return MyExecutionPayload(greeting=user_input.greeting.upper())


def validate_execution(execution_payload: MyExecutionPayload, **kwargs: Any) -> None:
    pass


async def execute(execution_payload: MyExecutionPayload, **kwargs: Any) -> dict[str, object]:
    return {"ok": True, "greeting": execution_payload.greeting}


my_entry = CronEntrySpec(
    user_payload_model=MyUserPayload,
    execution_payload_model=MyExecutionPayload,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
)


class Wish(BaseUserPayload):
    path: str = ""
    text: str = ""
    value: Any = None


class Task(BaseExecutionPayload):
    path: str = ""
    text: str = ""
    value: Any = None


def accept(payload: Wish, **_: object) -> Task:
    return Task(**payload.model_dump())


def entry(executor: Any, validator: Any = lambda payload, **_: None) -> CronEntrySpec[Wish, Task]:
    return CronEntrySpec(
        user_payload_model=Wish,
        execution_payload_model=Task,
        registration_validator=accept,
        execution_validator=validator,
        executor=executor,
    )


def _no_op(payload: Task, **_: object) -> None:
    return None


async def _no_op_async(payload: Task, **_: object) -> None:
    return None


def _block(payload: Task, **_: object) -> None:
    """Say that it runs, then read a pipe, which blocks until the test opens its other end."""
    print("blocking", flush=True)
    Path(payload.path).read_bytes()


def _say_that_it_runs(payload: Task) -> None:
    """Say it to whoever reads the pipe."""
    Path(payload.path).write_text("running")


def _wait_for_cancellation(payload: Task, **_: object) -> None:
    try:
        _say_that_it_runs(payload)
        time.sleep(3600)
    except asyncio.CancelledError:
        print("cleaned up")
        raise


async def _await_cancellation(payload: Task, **_: object) -> None:
    try:
        _say_that_it_runs(payload)
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        print("cleaned up")
        raise


def _spin(payload: Task, **_: object) -> None:
    print("spinning")
    while True:
        try:
            while True:
                pass
        except BaseException:
            continue


def _exit_hard(payload: Task, **_: object) -> None:
    print("last words")
    os._exit(3)


def _segfault(payload: Task, **_: object) -> None:
    ctypes.string_at(0)


def _fail(payload: Task, *, context: ExecutionContext) -> None:
    context.log.warning("about to fail in attempt %d", context.attempt)
    raise RuntimeError(payload.text)


def _refuse(payload: Task, **_: object) -> None:
    raise PermissionError("not today")


def _show_environment(payload: Task, **_: object) -> dict[str, object]:
    return {"environment": sorted(os.environ)}


def _print_much(payload: Task, **_: object) -> None:
    for _n in range(100_000):
        print("a line of output")


def _return_value(payload: Task, **_: object) -> Any:
    return {"nan": math.nan, "list": [1], "large": {"text": "x" * 100_000}, "nul": {"text": "\0"}}[payload.text]


def _descriptors() -> Iterator[int]:
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2 and path.is_symlink():
            yield int(path.name)


def _sockets(kind: socket.SocketKind) -> Iterator[socket.socket]:
    for descriptor in _descriptors():
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            found = socket.socket(fileno=os.dup(descriptor))
            if found.type == kind:
                yield found


def _wait_to_be_killed() -> NoReturn:
    while True:
        time.sleep(3600)


def _say_to_the_runner(payload: Task, **_: object) -> None:
    print("garbage follows")
    for channel in _sockets(socket.SOCK_STREAM):
        # The loop's own wake-up pair are streams as well; they do not mind.
        channel.sendall(bytes.fromhex(payload.text))
    _wait_to_be_killed()


def _steal_tasks_and_die(payload: Task, **_: object) -> None:
    """Read what waits for the worker; wait at `path`, if given, until the test lets go."""
    for channel in _sockets(socket.SOCK_SEQPACKET):
        channel.settimeout(0)
        try:
            while channel.recv(1_000_000):
                pass
        except BlockingIOError:
            continue
    if payload.path:
        Path(payload.path).read_bytes()
    os._exit(5)


def _refuse_tasks(payload: Task, **_: object) -> None:
    for channel in _sockets(socket.SOCK_SEQPACKET):
        channel.shutdown(socket.SHUT_RD)


def _cut_output_off(payload: Task, **_: object) -> dict[str, object]:
    print("still readable")
    errors = []
    for descriptor in _descriptors():
        if "memfd" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            try:
                os.ftruncate(descriptor, 0)
            except PermissionError as error:
                errors.append(type(error).__name__)
    return {"errors": errors}


def _close_everything(payload: Task, **_: object) -> None:
    """Close every descriptor; then block for good if `text` says so."""
    print("closing")
    os.closerange(3, 4096)
    if payload.text == "and stay":
        _wait_to_be_killed()


def _answer_early_and_stay(payload: Task, **_: object) -> None:
    """Answer in the worker's name before the body has ended, then go on."""
    frame = sys._getframe()
    while "task" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    attempt_id = frame.f_locals["task"].attempt_id
    answer = Outcome(attempt_id=attempt_id, status="completed", reason="Completed", message="So it says.")
    for channel in _sockets(socket.SOCK_STREAM):
        channel.sendall(encode_outcome(answer))
    _wait_to_be_killed()


def _stop_the_zygote(payload: Task, **_: object) -> None:
    os.kill(os.getppid(), signal.SIGSTOP)


def _spin_in_c(payload: Task, **_: object) -> None:
    """Hold the interpreter's lock in one call that does not come back."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def _print_endlessly(payload: Task, **_: object) -> None:
    while True:
        print("and on and on")


def _kill_itself(payload: Task, **_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise_exit(payload: Task, **_: object) -> None:
    sys.exit(4)


def _raise_interrupt(payload: Task, **_: object) -> None:
    raise KeyboardInterrupt


async def _cancel_itself(payload: Task, **_: object) -> None:
    raise asyncio.CancelledError


def _set_an_alarm(payload: Task, **_: object) -> None:
    """Leave behind what would kill the worker in an hour."""
    signal.setitimer(signal.ITIMER_REAL, 3600)


def _tell_alarm(payload: Task, **_: object) -> dict[str, object]:
    return {"seconds": signal.getitimer(signal.ITIMER_REAL)[0]}


# Memory


def _eat_memory(payload: Task, **_: object) -> None:
    """Take `value` bytes, or ever more."""
    hoard: list[bytes] = []
    while payload.value is None or len(hoard) * _BITE < payload.value:
        hoard.append(b"x" * _BITE)


def _eat_memory_in_children(payload: Task, **_: object) -> None:
    """Have children take `value` bytes each, in sessions of their own."""
    for _n in range(4):
        if os.fork() == 0:
            os.setsid()
            left.append(b"x" * payload.value)
            _wait_to_be_killed()
    os.wait()


def _ask_for_too_much(payload: Task, **_: object) -> None:
    bytearray(2**60)


# What is left behind


async def _ignore_cancellation(payload: Task, **_: object) -> None:
    """Neither end nor be cancelled."""
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


async def _leave_a_stubborn_task(payload: Task, **_: object) -> None:
    left.append(asyncio.create_task(_ignore_cancellation(payload)))
    await asyncio.sleep(0)


def _leave_a_thread(payload: Task, **_: object) -> None:
    """Leave a thread, which is a daemon if `text` says so."""
    threading.Thread(target=_wait_to_be_killed, daemon=payload.text == "daemon").start()


def _leave_a_thread_and_fail(payload: Task, **_: object) -> None:
    _leave_a_thread(payload)
    raise RuntimeError("after that")


async def _leave_a_thread_of_the_loop(payload: Task, **_: object) -> None:
    left.append(asyncio.get_running_loop().run_in_executor(None, _wait_to_be_killed))


async def _use_a_thread_of_the_loop(payload: Task, **_: object) -> None:
    await asyncio.to_thread(int)


def _leave_a_process(payload: Task, **_: object) -> None:
    """Leave a process that hides as a daemon does, and print its pid; or tell its family's at `path`, and stay."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            os.write(writing, str(os.getpid()).encode())
            _wait_to_be_killed()
        os._exit(0)
    os.wait()
    pid = os.read(reading, 16).decode()
    print(pid)
    if payload.path:
        Path(payload.path).write_text(f"{pid} {os.getpid()} {os.getppid()}")
        _wait_to_be_killed()


no_op = entry(_no_op)
no_op_async = entry(_no_op_async)
block = entry(_block)
wait_for_cancellation = entry(_wait_for_cancellation)
await_cancellation = entry(_await_cancellation)
spin = entry(_spin)
exit_hard = entry(_exit_hard)
segfault = entry(_segfault)
fail = entry(_fail)
refuse_to_run = entry(_no_op, _refuse)
show_environment = entry(_show_environment)
print_much = entry(_print_much)
return_value = entry(_return_value)
say_to_the_runner = entry(_say_to_the_runner)
steal_tasks_and_die = entry(_steal_tasks_and_die)
refuse_tasks = entry(_refuse_tasks)
cut_output_off = entry(_cut_output_off)
close_everything = entry(_close_everything)
answer_early_and_stay = entry(_answer_early_and_stay)
stop_the_zygote = entry(_stop_the_zygote)
spin_in_c = entry(_spin_in_c)
print_endlessly = entry(_print_endlessly)
kill_itself = entry(_kill_itself)
raise_exit = entry(_raise_exit)
raise_interrupt = entry(_raise_interrupt)
cancel_itself = entry(_cancel_itself)
set_an_alarm = entry(_set_an_alarm)
tell_alarm = entry(_tell_alarm)
eat_memory = entry(_eat_memory)
eat_memory_in_children = entry(_eat_memory_in_children)
ask_for_too_much = entry(_ask_for_too_much)
ignore_cancellation = entry(_ignore_cancellation)
leave_a_stubborn_task = entry(_leave_a_stubborn_task)
leave_a_thread = entry(_leave_a_thread)
leave_a_thread_and_fail = entry(_leave_a_thread_and_fail)
leave_a_thread_of_the_loop = entry(_leave_a_thread_of_the_loop)
use_a_thread_of_the_loop = entry(_use_a_thread_of_the_loop)
leave_a_process = entry(_leave_a_process)
