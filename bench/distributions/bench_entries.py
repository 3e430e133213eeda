"""An entry that does nothing, in the runner or in a pod, so that what is measured is everything around it."""

from dataclasses import replace

from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionMode


class Nothing(BaseUserPayload):
    """No payload."""


class NothingToDo(BaseExecutionPayload):
    """No payload."""


def accept(payload: Nothing, **_: object) -> NothingToDo:
    """Accept it."""
    del payload
    return NothingToDo()


def agree(payload: NothingToDo, **_: object) -> None:
    """Find nothing wrong."""
    del payload


def do_nothing(payload: NothingToDo, **_: object) -> None:
    """Do it."""
    del payload


bench_no_op = CronEntrySpec(
    user_payload_model=Nothing,
    execution_payload_model=NothingToDo,
    registration_validator=accept,
    execution_validator=agree,
    executor=do_nothing,
)
bench_in_pod = replace(bench_no_op, execution=ExecutionMode.POD)
