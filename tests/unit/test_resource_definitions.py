"""The CRDs: structural, as people apply them, and of one mind with the API's models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cronplane_cli.resource_definitions_page import page
from cronplane_entries.cron_request import CronCreation
from cronplane_operator.resource_definitions import resource_definitions

CRON, RUNNER = resource_definitions()
NOT_STRUCTURAL = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "additionalProperties", "const", "title", "examples"}


def schema(definition: dict[str, Any]) -> dict[str, Any]:
    [version] = definition["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return found


def walk(found: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    yield path, found
    for name, each in found.get("properties", {}).items():
        yield from walk(each, *path, name)
    if "items" in found:
        yield from walk(found["items"], *path, "[]")


@pytest.mark.parametrize("definition", [CRON, RUNNER], ids=["Cron", "Runner"])
def test_every_field_has_one_type_and_nothing_that_a_structural_schema_may_not_have(definition: dict[str, Any]) -> None:
    fields = [each for part in schema(definition).values() for each in walk(part)]
    assert [path for path, found in fields if "type" not in found] == []
    assert [path for path, found in fields if NOT_STRUCTURAL & found.keys()] == []


def test_a_cron_is_asked_for_by_the_same_names_and_bounds_as_over_the_api() -> None:
    asked = schema(CRON)["spec"]["properties"]
    sent = CronCreation.model_json_schema()["properties"]
    assert asked.keys() == sent.keys()
    bounded = {name: field for name, field in sent.items() if "maximum" in field}
    assert bounded.keys() >= {"timeout", "max_attempts", "run_timeout", "catchup_window"}
    for name, field in bounded.items():
        assert (asked[name]["minimum"], asked[name]["maximum"]) == (field["minimum"], field["maximum"])


def test_a_resource_needs_neither_a_payload_nor_a_name_of_its_own() -> None:
    assert schema(CRON)["spec"]["required"] == ["cron_expr", "tz", "entrypoint"]


def test_a_payload_is_kept_as_it_is() -> None:
    assert schema(CRON)["spec"]["properties"]["payload"]["x-kubernetes-preserve-unknown-fields"] is True


def test_conditions_are_merged_by_their_type() -> None:
    for definition in (CRON, RUNNER):
        conditions = schema(definition)["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]
        assert "default" not in conditions


def test_the_page_holds_the_definitions_and_no_anchor() -> None:
    written = page()
    assert list(yaml.safe_load_all(written)) == resource_definitions()
    assert "&id" not in written


def test_the_chart_installs_these_definitions() -> None:
    chart = Path(__file__).parents[2] / "helm" / "cronplane" / "files" / "crds.yaml"
    assert chart.read_text(encoding="utf-8") == page(), "write it anew: cronplane crd > helm/cronplane/files/crds.yaml"
