"""Entries whose runs live through more than one attempt, or end somewhere else."""

import time
from datetime import timedelta
from typing import Any, Literal

from cronplane_entries.core import (
    Accepted,
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    ExecutionContext,
    ExecutionMode,
    PermanentError,
    TemporaryError,
)

HOW = Literal["plain", "temporary", "permanent", "killed", "late", "completed"]


class FlakyPayload(BaseUserPayload):
    """What becomes of each attempt; those behind the last one complete."""

    attempts: tuple[HOW, ...] = ()
    delay: float = 60.0


class FlakyExecution(BaseExecutionPayload):
    attempts: tuple[HOW, ...] = ()
    delay: float = 60.0


def register(payload: FlakyPayload, **_: Any) -> FlakyExecution:
    return FlakyExecution(attempts=payload.attempts, delay=payload.delay)


def nothing(payload: object, **_: Any) -> None:
    del payload


def fail(payload: FlakyExecution, *, context: ExecutionContext) -> dict[str, object]:
    how = [*payload.attempts, *["completed"] * context.attempt][context.attempt - 1]
    if how == "temporary":
        raise TemporaryError("come back later", delay=timedelta(seconds=payload.delay))
    if how == "permanent":
        raise PermanentError("it will never work")
    if how == "plain":
        raise RuntimeError("it did not work")
    if how == "killed":
        import os  # noqa: PLC0415 - what a segfault does, without one

        os._exit(11)
    if how == "late":
        time.sleep(3600)
    return {"attempt": context.attempt, "deadline": context.deadline.isoformat()}


def hand_on(payload: FlakyExecution, *, context: ExecutionContext) -> Accepted:
    del payload
    assert context.callback is not None
    # Printed, so that a test can play the one to whom the work was handed on.
    print(context.callback.path, context.callback.token)
    return Accepted(message="The batch was sent away.")


def common() -> dict[str, Any]:
    return {
        "user_payload_model": FlakyPayload,
        "execution_payload_model": FlakyExecution,
        "registration_validator": register,
        "execution_validator": nothing,
    }


flaky = CronEntrySpec(**common(), executor=fail)
handing_on = CronEntrySpec(**common(), executor=hand_on, completes_by_callback=True)
in_a_pod = CronEntrySpec(**common(), executor=fail, execution=ExecutionMode.POD, completes_by_callback=True)
