"""The entry to try things with: what it refuses, what it keeps, what it prints, and how often it fails."""

import random
from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue

from cronplane_entries.core import AnyCronEntrySpec, ExecutionContext, RegistrationContext
from cronplane_entries.dummy_print import DummyPrintError, ExecutionPayload, UserPayload, execute, validate_execution
from cronplane_entries.invocation import PayloadInvalidError, register
from cronplane_entries.registry import CronEntrypoint, CronRegistry


@pytest.fixture
def spec() -> AnyCronEntrySpec:
    entries = CronRegistry()
    entries.load()
    return entries[CronEntrypoint.DUMMY_PRINT]


def payload(error_rate: float) -> ExecutionPayload:
    return ExecutionPayload(message="hello 👋", error_rate=error_rate, user_id="key:1", organization_id=UUID(int=1))


async def test_a_registration_keeps_the_message_and_who_registered(
    spec: AnyCronEntrySpec, registration_context: RegistrationContext
) -> None:
    registered = await register(spec, payload={"message": " hello 👋"}, context=registration_context)
    assert registered.user_payload == {"message": " hello 👋", "error_rate": 0.0}
    assert registered.execution_payload == {
        "message": " hello 👋",
        "error_rate": 0.0,
        "user_id": "key:1",
        "organization_id": str(UUID(int=1)),
    }


@pytest.mark.parametrize(
    ("sent", "path", "kind"),
    [
        ({"message": ""}, ("message",), "refused"),
        ({"message": " \t\n\u3000"}, ("message",), "refused"),
        ({"message": "x" * 10_001}, ("message",), "string_too_long"),
        ({"message": 1}, ("message",), "string_type"),
        ({}, ("message",), "missing"),
        ({"message": "x", "error_rate": -0.1}, ("error_rate",), "greater_than_equal"),
        ({"message": "x", "error_rate": 1.1}, ("error_rate",), "less_than_equal"),
        ({"message": "x", "error_rate": "0.5"}, ("error_rate",), "float_type"),
        ({"message": "x", "error_rate": True}, ("error_rate",), "float_type"),
        ({"message": "x", "error_rate": None}, ("error_rate",), "float_type"),
        ({"message": "x", "organization_id": "1"}, ("organization_id",), "extra_forbidden"),
    ],
)
async def test_a_payload_that_is_wrong_is_refused_at_its_place(
    spec: AnyCronEntrySpec,
    registration_context: RegistrationContext,
    sent: dict[str, JsonValue],
    path: tuple[str, ...],
    kind: str,
) -> None:
    with pytest.raises(PayloadInvalidError) as caught:
        await register(spec, payload=sent, context=registration_context)
    assert [(error.path, error.type) for error in caught.value.errors] == [(path, kind)]


@pytest.mark.parametrize("rate", [0, 1, 0.0, 1.0])
async def test_the_bounds_of_the_rate_are_accepted(
    spec: AnyCronEntrySpec, registration_context: RegistrationContext, rate: float
) -> None:
    sent: dict[str, JsonValue] = {"message": "x", "error_rate": rate}
    registered = await register(spec, payload=sent, context=registration_context)
    assert registered.execution_payload["error_rate"] == rate


def test_the_schema_tells_people_what_to_send() -> None:
    schema = UserPayload.model_json_schema()
    assert schema["required"] == ["message"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["error_rate"] | {"minimum": 0.0, "maximum": 1.0} == schema["properties"]["error_rate"]


def test_a_run_prints_the_message_and_counts_its_characters(
    execution_context: ExecutionContext, capsys: pytest.CaptureFixture[str]
) -> None:
    validate_execution(payload(0.0), context=execution_context)
    assert execute(payload(0.0), context=execution_context) == {"printed_characters": 7}
    assert capsys.readouterr().out == "hello 👋\n"


@pytest.mark.parametrize(
    ("drawn", "rate", "fails"),
    [(0.0, 0.0, False), (0.49, 0.5, True), (0.5, 0.5, False), (0.999_999, 1.0, True)],
)
def test_a_run_fails_if_the_number_drawn_lies_below_the_rate(
    *,
    execution_context: ExecutionContext,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    drawn: float,
    rate: float,
    fails: bool,
) -> None:
    def draw(_: Any) -> float:
        return drawn

    monkeypatch.setattr(random.SystemRandom, "random", draw)
    if fails:
        with pytest.raises(DummyPrintError, match=f"at a rate of {rate}"):
            execute(payload(rate), context=execution_context)
    else:
        execute(payload(rate), context=execution_context)
    assert (capsys.readouterr().out == "") is fails
