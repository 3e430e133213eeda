"""Entries that need something of their pods, each with a profile of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec, ExecutionContext

_BITE = 2**22


class Wish(BaseUserPayload):
    pass


class Task(BaseExecutionPayload):
    pass


def entry(executor: Callable[..., Any], *, pod_profile: str) -> CronEntrySpec[Wish, Task]:
    return CronEntrySpec(
        user_payload_model=Wish,
        execution_payload_model=Task,
        registration_validator=lambda payload, **_: Task(),
        execution_validator=lambda payload, **_: None,
        executor=executor,
        pod_profile=pod_profile,
    )


def _eat_memory(payload: Task, **_: object) -> None:
    """Take ever more."""
    hoard: list[bytes] = []
    while True:
        hoard.append(b"x" * _BITE)


def _no_op(payload: Task, **_: object) -> None:
    return None


def _tell_secrets(payload: Task, *, context: ExecutionContext) -> dict[str, object]:
    """Tell what the profile brought, as only an entry for tests may."""
    return {"word": context.services.settings["word"], "file": Path("/etc/secrets/files/word").read_text("ascii")}


hungry = entry(_eat_memory, pod_profile="small")
homeless = entry(_no_op, pod_profile="elsewhere")
trusted = entry(_tell_secrets, pod_profile="with-secrets")
