"""Entries that behave well and badly, as an installed distribution would bring them."""

import ctypes
import math
import os
from pathlib import Path
from typing import Any

from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionContext


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


no_op = entry(_no_op)
no_op_async = entry(_no_op_async)
block = entry(_block)
spin = entry(_spin)
exit_hard = entry(_exit_hard)
segfault = entry(_segfault)
fail = entry(_fail)
refuse_to_run = entry(_no_op, _refuse)
show_environment = entry(_show_environment)
print_much = entry(_print_much)
return_value = entry(_return_value)
