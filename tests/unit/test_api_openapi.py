"""The description of the API: that it holds together, and says what a client has to know."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from cronplane_api.application import create_application
from cronplane_core.settings import ApiSettings
from cronplane_entries.registry import CronRegistry

OPERATIONS = {
    "beat_attempt",
    "cancel_run",
    "create_cron",
    "create_key",
    "create_organization",
    "delete_cron",
    "finish_attempt",
    "finish_run",
    "get_cron",
    "get_organization",
    "get_run",
    "get_run_log",
    "healthz",
    "list_crons",
    "list_entrypoints",
    "list_keys",
    "list_organizations",
    "list_runs",
    "metrics",
    "pause_cron",
    "preview_cron",
    "readyz",
    "rerun_run",
    "resume_cron",
    "revoke_key",
    "start_attempt",
    "trigger_cron",
    "update_cron",
    "update_organization",
}  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    settings = ApiSettings(database_url=SecretStr("postgresql://nobody@/nothing"), installation_key=SecretStr("k" * 32))
    return create_application(settings, registry=CronRegistry()).openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_every_operation_is_there_under_its_stable_name(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for *_, operation in operations(document)]
    assert len(names) == len(set(names))
    assert set(names) == OPERATIONS


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert "#/components/schemas/ProblemBody" in found
    for reference in found:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_every_refusal_is_described_as_a_problem(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], (path, method, status)
                assert response["description"]


def test_every_route_that_needs_a_key_says_so(document: dict[str, Any]) -> None:
    (scheme,) = document["components"]["securitySchemes"].items()
    assert scheme[1]["scheme"] == "bearer"
    for path, _, operation in operations(document):
        is_open = path in {"/healthz", "/metrics", "/readyz"}
        assert operation["security"] == ([] if is_open else [{scheme[0]: []}])
        assert ("401" in operation["responses"]) is not is_open


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        for reference in references(operation.get("requestBody", {})):
            schema = document["components"]["schemas"][reference.rpartition("/")[2]]
            examples = schema.get("examples") or [
                field for field in schema["properties"].values() if field.get("examples")
            ]
            assert examples, (path, method)


def test_every_operation_has_a_tag_and_a_sentence(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        assert operation["tags"], (path, method)
        assert operation["description"], (path, method)


def test_every_post_but_that_of_a_key_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    for _, method, operation in operations(document):
        names = {parameter["name"] for parameter in operation.get("parameters", [])}
        # What an attempt tells is told once because of its nonce, or its token.
        is_repeatable = (
            method == "post" and operation["operationId"] != "create_key" and "attempts" not in operation["tags"]
        )
        assert ("Idempotency-Key" in names) is is_repeatable, operation["operationId"]


def test_every_guard_says_what_it_answers(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        statuses = set(operation["responses"])
        assert statuses >= {"400", "422"}, (path, method)
        assert ({"408", "413", "415"} <= statuses) is ("requestBody" in operation), (path, method)


def test_no_parameter_of_a_query_or_header_is_null(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        for parameter in operation.get("parameters", []):
            assert "null" not in str(parameter["schema"]), (path, method, parameter["name"])


def test_a_change_may_leave_fields_out_but_not_null(document: dict[str, Any]) -> None:
    for name, field in document["components"]["schemas"]["CronPatch"]["properties"].items():
        assert "null" not in str(field), name
        assert field.get("type") or field.get("$ref"), name
