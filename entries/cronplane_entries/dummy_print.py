"""The entry to try things with: it prints a message and, if asked to, fails now and then."""

import random
from uuid import UUID

from pydantic import Field

from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)


class DummyPrintError(Exception):
    """The failure that `error_rate` asks for."""


class UserPayload(BaseUserPayload):
    """What to print, and how often to fail instead."""

    message: str = Field(description="the text to print", max_length=10_000, examples=["hello"])
    error_rate: float = Field(default=0.0, ge=0.0, le=1.0, description="the share of runs that fail, at random")


class ExecutionPayload(BaseExecutionPayload):
    """What is printed, for whom."""

    message: str
    error_rate: float
    user_id: str
    organization_id: UUID


async def validate_registration(payload: UserPayload, *, context: RegistrationContext) -> ExecutionPayload:
    """Refuse a message with nothing in it, and remember who registered."""
    if not payload.message.strip():
        raise RegistrationRefusedError("the message is blank; write something to print", field=("message",))
    return ExecutionPayload(
        message=payload.message,
        error_rate=payload.error_rate,
        user_id=context.user.id,
        organization_id=context.organization.id,
    )


def validate_execution(_: ExecutionPayload, *, context: ExecutionContext) -> None:
    """Find nothing wrong: what was registered can always be printed."""
    context.log.debug("nothing to check")


def execute(payload: ExecutionPayload, *, context: ExecutionContext) -> dict[str, object]:
    """Print the message, or fail; the log line tells which attempt it was."""
    context.log.debug("attempt %d of run %s", context.attempt, context.run.id)
    if random.SystemRandom().random() < payload.error_rate:
        raise DummyPrintError(f"failed as asked, at a rate of {payload.error_rate}")
    print(payload.message)  # noqa: T201 - printing is what this entry is for
    return {"printed_characters": len(payload.message)}


spec = CronEntrySpec(
    user_payload_model=UserPayload,
    execution_payload_model=ExecutionPayload,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
)
