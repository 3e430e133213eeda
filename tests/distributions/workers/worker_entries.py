"""Entries that meddle with the worker they run in, as a careless or hostile author might write them."""

import asyncio
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionContext


class Wish(BaseUserPayload):
    text: str = ""
    path: str = ""


class Task(BaseExecutionPayload):
    text: str = ""
    path: str = ""


def entry(executor: Callable[..., Any]) -> CronEntrySpec[Wish, Task]:
    return CronEntrySpec(
        user_payload_model=Wish,
        execution_payload_model=Task,
        registration_validator=lambda payload, **_: Task(**payload.model_dump()),
        execution_validator=lambda payload, **_: None,
        executor=executor,
    )


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


def _wait_to_be_killed() -> None:
    while True:
        time.sleep(3600)


def _say_to_the_runner(payload: Task, **_: object) -> None:
    print("garbage follows")
    for channel in _sockets(socket.SOCK_STREAM):
        # The loop's own wake-up pair are streams as well; they do not mind.
        channel.sendall(bytes.fromhex(payload.text))
    _wait_to_be_killed()


def _steal_tasks_and_die(payload: Task, **_: object) -> None:
    for channel in _sockets(socket.SOCK_SEQPACKET):
        channel.settimeout(0)
        try:
            while channel.recv(1_000_000):
                pass
        except BlockingIOError:
            continue
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
    print("closing")
    os.closerange(3, 4096)


def _fork_and_return(payload: Task, **_: object) -> dict[str, object]:
    child = os.fork()
    if child == 0:
        sys.exit()
    os.waitpid(child, 0)
    return {"is": "parent"}


def _start_a_program(payload: Task, **_: object) -> None:
    """Start a program that outlives the body, and tell its pid through the pipe at `path`, if any."""
    program = subprocess.Popen(["/bin/sleep", "3600"])
    print(program.pid)
    if payload.path:
        Path(payload.path).write_text(f"{program.pid}\n")
        _wait_to_be_killed()


def _misuse_output(payload: Task, **_: object) -> None:
    sys.stdout.buffer.write(b"bytes \xff\n")
    print("nul \0 surrogate \ud800")
    os.write(1, b"past Python")
    sys.stdout.close()
    sys.stdout = sys.stderr = io.StringIO()


def _raise(payload: Task, **_: object) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise ValueError

    raise {
        "exit": SystemExit(4),
        "interrupt": KeyboardInterrupt("as if by Ctrl-C"),
        "unprintable": UnprintableError(),
        "surrogate": RuntimeError("\ud800\0"),
        "long": RuntimeError("x" * 100_000),
    }[payload.text]


async def _raise_async(payload: Task, **_: object) -> None:
    _raise(payload)


async def _leave_a_task_behind(payload: Task, **_: object) -> None:
    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            print("cancelled")

    lingering = asyncio.create_task(linger())
    await asyncio.sleep(0)
    print(f"left {not lingering.done()}")


def _recurse(payload: Task, **_: object) -> None:
    _recurse(payload)


def _sleep(payload: Task, **_: object) -> None:
    time.sleep(3600)


def _tell_settings(payload: Task, *, context: ExecutionContext) -> dict[str, object]:
    """Tell what it was given, and what a program that it starts could read besides."""
    again = sys.stdin.read() if sys.stdin else ""
    environment = subprocess.run(["/usr/bin/env"], capture_output=True, check=True, text=True).stdout
    return {"settings": dict(context.services.settings), "input": again, "environment": environment}


def _terminate_everyone(payload: Task, **_: object) -> None:
    """Send SIGTERM as a service manager does: to the zygote and to every worker."""
    for pid in (os.getppid(), os.getpid()):
        os.kill(pid, signal.SIGTERM)


say_to_the_runner = entry(_say_to_the_runner)
steal_tasks_and_die = entry(_steal_tasks_and_die)
refuse_tasks = entry(_refuse_tasks)
cut_output_off = entry(_cut_output_off)
close_everything = entry(_close_everything)
fork_and_return = entry(_fork_and_return)
start_a_program = entry(_start_a_program)
misuse_output = entry(_misuse_output)
raise_sync = entry(_raise)
raise_async = entry(_raise_async)
leave_a_task_behind = entry(_leave_a_task_behind)
recurse = entry(_recurse)
tell_settings = entry(_tell_settings)
sleep = entry(_sleep)
terminate_everyone = entry(_terminate_everyone)
