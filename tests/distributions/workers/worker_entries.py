"""Entries that meddle with the worker they run in, as a careless or hostile author might write them."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def _wait_to_be_killed() -> None:
    while True:
        time.sleep(3600)


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


def _start_and_wait(payload: Task, **_: object) -> None:
    subprocess.run(["/bin/true"], check=True)


def _forget_a_program(payload: Task, **_: object) -> None:
    """Start a program and wait for its end without taking note of it."""
    program = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)


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
start_and_wait = entry(_start_and_wait)
forget_a_program = entry(_forget_a_program)
