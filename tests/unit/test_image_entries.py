"""What the leader learns of an entry whose attempts are containers, whatever its functions do."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from cronplane_core.attempt_job_repository import PendingAttempt
from cronplane_entries.container import spec
from cronplane_entries.core import PermanentError, PodContainer
from cronplane_entries.registry import CronEntrypoint, CronRegistry
from cronplane_operator import image_entries
from cronplane_operator.image_entries import ImageEntries, RefusedBody

IMAGE = "registry.example/team/report:1"
SETTINGS = {"a_container": {"images": json.dumps({IMAGE: "*"})}}
ATTEMPT = PendingAttempt(
    run_id=UUID(int=1),
    number=1,
    organization_id=UUID(int=2),
    cron_id=UUID(int=3),
    cron_name="nightly",
    entrypoint="a_container",
    payload_json=json.dumps({"container": {"image": IMAGE}}),
    scheduled_for=datetime(2026, 6, 1, tzinfo=UTC),
    trigger_kind="schedule",
    deadline=datetime(2026, 6, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def entries_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ImageEntries]:
    monkeypatch.setattr(type(CronEntrypoint), "_members", dict(type(CronEntrypoint)._members))

    def entries_with(**changes: Any) -> ImageEntries:
        registry = CronRegistry()
        registry[CronEntrypoint.add("a_container")] = replace(spec, **changes)
        return ImageEntries(registry=registry, settings=SETTINGS)

    return entries_with


def test_only_entries_that_make_containers_are_known(entries_with: Any) -> None:
    assert "a_container" in entries_with()
    assert "a_container" not in entries_with(container=None)
    assert "nobody_knows" not in entries_with()


async def test_the_container_is_made_of_payload_and_settings(entries_with: Any) -> None:
    body = await entries_with().body(ATTEMPT)
    assert isinstance(body, PodContainer)
    assert (body.image, body.limits["memory"]) == (IMAGE, "512Mi")


async def test_a_payload_that_the_entry_does_not_take_any_more_is_not_tried_again(entries_with: Any) -> None:
    body = await entries_with().body(replace(ATTEMPT, payload_json='{"container": {}}'))
    assert isinstance(body, RefusedBody)
    assert (body.ended.reason, body.ended.may_retry) == ("PayloadInvalid", False)


@pytest.mark.parametrize(
    ("error", "may_retry"),
    [(PermanentError("never"), False), (RuntimeError("not now"), True), (SystemExit("out"), True)],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_what_a_validator_raises_ends_the_attempt_as_in_a_worker(
    entries_with: Any, error: BaseException, *, may_retry: bool, is_async: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    async def refuse_later(*_: object, **__: object) -> None:
        raise error

    body = await entries_with(execution_validator=refuse_later if is_async else refuse).body(ATTEMPT)
    assert isinstance(body, RefusedBody)
    assert (body.ended.reason, body.ended.may_retry) == ("ValidatorFailed", may_retry)
    assert body.error.message == str(error)


@pytest.fixture
def hang() -> Iterator[Callable[..., None]]:
    """A validator that returns when the test is over."""
    is_over = threading.Event()

    def hang(*_: object, **__: object) -> None:
        is_over.wait()

    yield hang
    is_over.set()


async def test_a_validator_that_hangs_does_not_hold_up_the_leader(
    entries_with: Any, hang: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_entries, "VALIDATOR_SECONDS", 0.01)
    body = await entries_with(execution_validator=hang).body(ATTEMPT)
    assert isinstance(body, RefusedBody)
    assert (body.ended.reason, body.error.type) == ("ValidatorFailed", "builtins.TimeoutError")
