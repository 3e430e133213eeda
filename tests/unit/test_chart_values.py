"""The values of the chart: what the comments, the schema and the README say of them is one, and so are their names."""

import json
import re
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from cronplane_core.settings import (
    ApiSettings,
    KubernetesSettings,
    PodProfile,
    PodSettings,
    RegistrationSettings,
    RunnerSettings,
)
from helm.values_reference import CHART, UnreadableValuesError, values_schema, values_table, with_table

PAGE = (CHART / "values.yaml").read_text(encoding="utf-8")
VALUES = yaml.safe_load(PAGE)
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
# What templates make of other values, or of the release itself.
MADE_BY_TEMPLATES = {
    "database_url",
    "host",
    "installation",
    "installation_key",
    "kubeconfig",
    "metrics_host",
    "metrics_port",
    "namespaces",
    "pod_attempts",
    "pod_launches",
    "pod_profiles",
    "pod_start_timeout",
    "port",
    "release_namespace",
    "run_api_url",
    "run_image",
    "run_namespace",
    "run_service_account",
    "token_keys",
}
# For people who look at a running operator; they can give it by `extraEnv`.
LEFT_OUT = {"watch_probe_url"}


def test_the_schema_is_made_from_the_comments() -> None:
    assert values_schema(PAGE) == SCHEMA, "write it anew: make chart-docs"


def test_the_table_in_the_readme_is_made_from_the_comments() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, values_table(PAGE)) == readme, "write it anew: make chart-docs"


def test_the_table_has_a_row_for_each_value_that_can_be_set() -> None:
    def leaves(path: str, value: Any) -> list[str]:
        if isinstance(value, dict) and value:
            return [leaf for name, each in value.items() for leaf in leaves(f"{path}.{name}", each)]
        return [path.removeprefix(".")]

    rows = re.findall(r"^\| `([^`]+)` \|", values_table(PAGE), re.MULTILINE)
    assert len(rows) == len(set(rows))
    without_row = [leaf for leaf in leaves("", VALUES) if not any(f"{leaf}.".startswith(f"{row}.") for row in rows)]
    assert without_row == []


def open_mappings(path: str, schema: Any) -> list[str]:
    if not isinstance(schema, dict):
        return []
    inner = [each for name, part in schema.items() for each in open_mappings(f"{path}/{name}", part)]
    is_open = schema.get("type") == "object" and schema.get("additionalProperties", True) is True
    return [path, *inner] if is_open and not path.endswith("items") else inner


def test_only_what_is_kubernetes_own_or_other_charts_takes_unknown_keys() -> None:
    found = {path.removeprefix("/properties/").replace("/properties/", ".") for path in open_mappings("", SCHEMA)}
    assert found == {
        "api.affinity",
        "api.autoscaling.behavior",
        "containerSecurityContext",
        "containerSecurityContext.capabilities",
        "database.builtIn.affinity",
        "global",
        "operator.affinity",
        "podSecurityContext",
        "podSecurityContext.seccompProfile",
    }


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("key: 1\n", "say what key is for"),
        ("# Text.\nkey: null\n", "does not tell its type"),
        ("# Text.\n# @schema {$ref: '#/a', minimum: 1}\nkey: 1\n", "beside a \\$ref is not heeded"),
        ("- 1\n", "no mapping"),
    ],
)
def test_values_that_are_not_described_are_no_values(page: str, message: str) -> None:
    with pytest.raises(UnreadableValuesError, match=message):
        values_schema(page)


def test_a_directive_may_go_on_in_the_next_line_and_text_may_follow() -> None:
    schema = values_schema("# One\n# @schema {minimum: 1,\n#   maximum: 2}\n# and two.\nkey: 1\n")
    assert schema["properties"]["key"] == {"description": "One and two.", "type": "integer", "minimum": 1, "maximum": 2}


def in_snake_case(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize(
    ("values", "models"),
    [
        (VALUES["registration"] | VALUES["api"]["settings"], [ApiSettings]),
        (
            VALUES["registration"] | VALUES["operator"]["settings"],
            [RunnerSettings, KubernetesSettings, PodSettings, RegistrationSettings],
        ),
    ],
    ids=["api", "operator"],
)
def test_each_setting_of_a_role_has_a_value_with_the_same_default_or_is_made_by_a_template(
    values: dict[str, Any], models: list[type[BaseSettings]]
) -> None:
    fields = {name: field for model in models for name, field in model.model_fields.items()}
    written = {in_snake_case(name): value for name, value in values.items()}
    assert written.keys() == fields.keys() - MADE_BY_TEMPLATES - LEFT_OUT
    for name, value in written.items():
        default = fields[name].default
        assert value == (default.total_seconds() if hasattr(default, "total_seconds") else default), name


def test_a_pod_profile_has_the_fields_that_the_operator_knows() -> None:
    fields = SCHEMA["properties"]["runs"]["properties"]["profiles"]["additionalProperties"]["properties"]
    assert {in_snake_case(name) for name in fields} == PodProfile.model_fields.keys()
