"""An entry of a distribution of its own: greets somebody, and refuses to greet nobody."""

from pydantic import Field

from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)


class Greeting(BaseUserPayload):
    """Whom to greet."""

    name: str = Field(max_length=100, description="who is greeted", examples=["Ada"])


class GreetingToSay(BaseExecutionPayload):
    """What to say."""

    text: str


def validate_registration(payload: Greeting, *, context: RegistrationContext) -> GreetingToSay:
    """Put the greeting together once, so that each run only says it."""
    if not payload.name.strip():
        raise RegistrationRefusedError("there is nobody to greet", field=("name",))
    return GreetingToSay(text=f"Hello {payload.name}, says {context.organization.name}.")


def validate_execution(payload: GreetingToSay, *, context: ExecutionContext) -> None:
    """Refuse to say nothing, which only a change by hand could ask for."""
    if not payload.text:
        raise ValueError(f"cron {context.cron.name} has nothing to say")


def execute(payload: GreetingToSay, *, context: ExecutionContext) -> dict[str, object]:
    """Say it; what is printed becomes the run's output."""
    print(payload.text)
    return {"said": payload.text, "attempt": context.attempt}


spec = CronEntrySpec(
    user_payload_model=Greeting,
    execution_payload_model=GreetingToSay,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
)
