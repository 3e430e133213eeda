"""What an agent's run may be asked for, what is kept of it, and what is said where no backend is set up."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from cronplane_entries.agent_inference import (
    AgentBackend,
    BackendNotConfiguredError,
    ExecutionPayload,
    UserPayload,
    execute,
    read_settings,
    validate_execution,
)
from cronplane_entries.core import AnyCronEntrySpec, ExecutionContext, RegistrationContext, Services
from cronplane_entries.invocation import PayloadInvalidError, load_execution_payload, register
from cronplane_entries.registry import CronEntrypoint, CronRegistry

PROJECT = "5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a01"
SOUND: dict[str, Any] = {"project_id": PROJECT, "env": "draft", "input_data": {}}


@pytest.fixture
def spec() -> AnyCronEntrySpec:
    entries = CronRegistry()
    entries.load()
    return entries[CronEntrypoint.AGENT_INFERENCE]


@pytest.mark.parametrize(
    ("change", "path", "kind"),
    [
        ({"project_id": "5d1c8f0e"}, ("project_id",), "uuid_parsing"),
        ({"project_id": 7}, ("project_id",), "uuid_type"),
        ({"project_id": None}, ("project_id",), "uuid_type"),
        ({"env": "staging"}, ("env",), "literal_error"),
        ({"env": "DRAFT"}, ("env",), "literal_error"),
        ({"env": None}, ("env",), "literal_error"),
        ({"input_data": None}, ("input_data",), "dict_type"),
        ({"input_data": []}, ("input_data",), "dict_type"),
        ({"input_data": "{}"}, ("input_data",), "dict_type"),
        ({"organization_id": PROJECT}, ("organization_id",), "extra_forbidden"),
        ({"base_url": "http://example.org"}, ("base_url",), "extra_forbidden"),
    ],
)
async def test_a_payload_that_is_wrong_is_refused_at_its_place_before_anybody_is_asked(
    *,
    spec: AnyCronEntrySpec,
    registration_context: RegistrationContext,
    change: dict[str, Any],
    path: tuple[str, ...],
    kind: str,
) -> None:
    with pytest.raises(PayloadInvalidError) as caught:
        await register(spec, payload=SOUND | change, context=registration_context)
    assert [(error.path, error.type) for error in caught.value.errors] == [(path, kind)]


@pytest.mark.parametrize("field", ["project_id", "env", "input_data"])
async def test_no_field_can_be_left_out(
    spec: AnyCronEntrySpec, registration_context: RegistrationContext, field: str
) -> None:
    sent = {name: value for name, value in SOUND.items() if name != field}
    with pytest.raises(PayloadInvalidError) as caught:
        await register(spec, payload=sent, context=registration_context)
    assert [(error.path, error.type) for error in caught.value.errors] == [((field,), "missing")]


def test_the_schema_tells_people_what_to_send() -> None:
    schema = UserPayload.model_json_schema()
    assert schema["required"] == ["project_id", "env", "input_data"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["env"]["enum"] == ["draft", "production"]


def test_what_was_registered_is_read_back_unchanged(spec: AnyCronEntrySpec) -> None:
    input_data = {"large": 2**53 + 1, "text": "👋", "nested": [{"a": None}, 0.5, True]}
    stored = SOUND | {"input_data": input_data, "organization_id": str(UUID(int=1))}
    payload = load_execution_payload(spec, json.dumps(stored))
    assert payload == ExecutionPayload(
        project_id=UUID(PROJECT), env="draft", input_data=input_data, organization_id=UUID(int=1)
    )


async def test_without_a_backend_a_run_says_so(execution_context: ExecutionContext) -> None:
    payload = ExecutionPayload(project_id=UUID(PROJECT), env="draft", input_data={}, organization_id=UUID(int=1))
    with pytest.raises(BackendNotConfiguredError, match="tell the administrator"):
        await validate_execution(payload, context=execution_context)
    with pytest.raises(BackendNotConfiguredError, match="tell the administrator"):
        await execute(payload, context=replace(execution_context, services=Services(settings={})))


def test_the_settings_have_defaults_and_show_no_key() -> None:
    settings = {"base_url": "https://agents.internal/v1/", "api_key": "a long key"}
    backend = read_settings(settings)
    assert isinstance(backend, AgentBackend)
    assert (backend.timeout_seconds, backend.ca_file) == (300.0, None)
    assert (backend.base.host, backend.base.port, backend.base.path) == ("agents.internal", 443, "/v1/")
    assert "a long key" not in repr(backend)
    assert read_settings({}) is None
