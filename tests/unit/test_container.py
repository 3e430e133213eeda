"""The entry `container`: what its payload may hold, what the administrator allows, and what becomes of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from cronplane_entries import container
from cronplane_entries.container import check_settings
from cronplane_entries.core import (
    ExecutionContext,
    ExecutionMode,
    PermanentError,
    PodContainer,
    RegistrationContext,
    Services,
)
from cronplane_entries.entry_settings import InvalidSettingsError, read_execution_modes
from cronplane_entries.invocation import PayloadInvalidError, load_execution_payload, register
from cronplane_entries.registry import CronRegistry

IMAGE = "registry.example/team/report:1"
SETTINGS = {"images": json.dumps({"registry.example/team/*": "*"})}
Register = Callable[..., Any]
spec: Any = container.spec


@pytest.fixture
def given(registration_context: RegistrationContext) -> Register:
    """Register a payload under settings, and give the execution payload."""

    async def given(payload: dict[str, Any], settings: dict[str, str] = SETTINGS) -> dict[str, Any]:
        context = replace(registration_context, services=Services(settings=settings))
        return dict((await register(spec, payload=payload, context=context)).execution_payload)

    return given


async def test_a_container_is_made_as_it_was_registered_with_limits_for_what_was_left_out(
    given: Register, execution_context: ExecutionContext
) -> None:
    registered = await given(
        {
            "image": IMAGE,
            "command": ["report"],
            "args": ["--day", "$(CRONPLANE_SCHEDULED_FOR)"],
            "env": [{"name": "COLOR", "value": "blue"}],
            "resources": {"requests": {"cpu": "750m"}, "limits": {"memory": "64Mi"}},
        }
    )
    made = made_of(registered, execution_context)
    assert made == PodContainer(
        image=IMAGE,
        command=("report",),
        args=("--day", "$(CRONPLANE_SCHEDULED_FOR)"),
        env=(("COLOR", "blue"),),
        requests={"cpu": "750m"},
        limits={"cpu": "750m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
    )


def made_of(registered: dict[str, Any], context: ExecutionContext, settings: dict[str, str] = SETTINGS) -> PodContainer:
    context = replace(context, services=Services(settings=settings))
    payload = load_execution_payload(spec, json.dumps(registered))
    spec.execution_validator(payload, context=context)
    made: PodContainer = spec.container(payload, context=context)
    return made


async def test_an_images_name_is_written_whole(given: Register) -> None:
    registered = await given({"image": "python"}, {"images": '{"python": "*"}'})
    assert registered["container"]["image"] == "docker.io/library/python:latest"


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"image": "registry.example/other/app:1"}, ("image",)),
        ({"image": "registry.example.evil.example/team/app:1"}, ("image",)),
        ({"image": "not an image"}, ("image",)),
        ({}, ("image",)),
        ({"image": IMAGE, "command": "report"}, ("command",)),
        ({"image": IMAGE, "args": [1]}, ("args", 0)),
        ({"image": IMAGE, "env": {"COLOR": "blue"}}, ("env",)),
        ({"image": IMAGE, "env": [{"name": "CRONPLANE_RUN_ID", "value": "x"}]}, ("env", 0, "name")),
        ({"image": IMAGE, "env": [{"name": "A=B", "value": "x"}]}, ("env", 0, "name")),
        ({"image": IMAGE, "env": [{"name": "A", "valueFrom": {"secretKeyRef": {}}}]}, ("env", 0, "valueFrom")),
        ({"image": IMAGE, "env": [{"name": "A"}, {"name": "A"}]}, ()),
        ({"image": IMAGE, "resources": {"limits": {"memory": "1.5Gi"}}}, ("resources", "limits", "memory")),
        ({"image": IMAGE, "resources": {"requests": {"cpu": "1001m"}}}, ("resources", "requests", "cpu")),
        (
            {"image": IMAGE, "resources": {"limits": {"ephemeral-storage": "3Gi"}}},
            ("resources", "limits", "ephemeral-storage"),
        ),
        ({"image": IMAGE, "resources": {"limits": {"memory": "lots"}}}, ("resources", "limits", "memory")),
        ({"image": IMAGE, "resources": {"limits": {"memory": 64}}}, ("resources", "limits", "memory")),
        ({"image": IMAGE, "resources": {"limits": {"nvidia.com/gpu": "1"}}}, ("resources", "limits", "nvidia.com/gpu")),
        ({"image": IMAGE, "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "999m"}}}, ("resources",)),
        ({"image": IMAGE, "hostNetwork": True}, ("hostNetwork",)),
        ({"image": IMAGE, "serviceAccountName": "default"}, ("serviceAccountName",)),
    ],
)
async def test_what_may_not_be_run_is_refused_where_it_stands(
    given: Register, payload: dict[str, Any], path: tuple[str | int, ...]
) -> None:
    with pytest.raises(PayloadInvalidError) as refused:
        await given(payload)
    assert [error.path for error in refused.value.errors] == [path]


async def test_without_settings_no_image_is_allowed_and_the_refusal_names_the_setting(given: Register) -> None:
    with pytest.raises(PayloadInvalidError, match="CRONPLANE_ENTRY_CONTAINER_IMAGES"):
        await given({"image": IMAGE}, {})


async def test_an_image_is_allowed_for_the_organizations_that_are_named(
    given: Register, registration_context: RegistrationContext
) -> None:
    own, other = registration_context.organization.id, UUID(int=99)
    await given({"image": IMAGE}, {"images": json.dumps({IMAGE: [str(own)]})})
    with pytest.raises(PayloadInvalidError) as not_granted:
        await given({"image": IMAGE}, {"images": json.dumps({IMAGE: [str(other)]})})
    with pytest.raises(PayloadInvalidError) as not_there:
        await given({"image": IMAGE}, {"images": "{}"})
    assert not_granted.value.errors == not_there.value.errors


@pytest.mark.parametrize("settings", [{"images": "{}"}, {**SETTINGS, "limits": '{"memory": "32Mi"}'}])
async def test_what_was_taken_back_is_refused_for_good_when_it_is_to_run(
    given: Register, execution_context: ExecutionContext, settings: dict[str, str]
) -> None:
    registered = await given({"image": IMAGE, "resources": {"limits": {"memory": "64Mi"}}})
    with pytest.raises(PermanentError, match=r"^(image|resources\.limits\.memory): "):
        made_of(registered, execution_context, settings)


async def test_a_lower_ceiling_lowers_what_was_left_to_us(given: Register, execution_context: ExecutionContext) -> None:
    registered = await given({"image": IMAGE})
    lowered = {**SETTINGS, "limits": '{"memory": "32Mi", "cpu": "4"}'}
    made = made_of(registered, execution_context, lowered)
    assert made.limits == {"cpu": "500m", "memory": "32Mi", "ephemeral-storage": "1Gi"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "{}"}, "there is no setting IMAGE"),
        ({"images": "[]"}, "IMAGES is not"),
        ({"images": '{"te*": "*"}'}, "IMAGES is not.*a repository is made of"),
        ({"images": '{"team/app": "acme"}'}, "IMAGES is not"),
        ({"limits": '{"memory": "0"}'}, "LIMITS is not.*more than none"),
        ({"limits": '{"gpu": "1"}'}, "LIMITS is not.*gpu"),
    ],
)
def test_settings_that_are_wrong_are_an_error_that_says_which(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(settings)


async def test_where_there_is_no_cluster_a_run_says_so(given: Register, execution_context: ExecutionContext) -> None:
    payload = load_execution_payload(spec, json.dumps(await given({"image": IMAGE})))
    with pytest.raises(PermanentError, match="cronplane operator"):
        spec.executor(payload, context=execution_context)


def test_a_container_cannot_be_set_to_run_in_the_runner() -> None:
    registry = CronRegistry()
    registry.load()
    assert read_execution_modes({}, registry)["container"] is ExecutionMode.POD
    with pytest.raises(InvalidSettingsError, match="CRONPLANE_ENTRY_CONTAINER_EXECUTION cannot be in_process"):
        read_execution_modes({"CRONPLANE_ENTRY_CONTAINER_EXECUTION": "in_process"}, registry)
