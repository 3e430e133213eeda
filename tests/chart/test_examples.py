"""The examples do what they say: values render, and resources are taken by the definitions and by their entries."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from cronplane_entries.cron_request import CronCreation
from cronplane_entries.registry import CRON_REGISTRY, CronEntrypoint, load_entries
from tests.chart.rendering import CHART, ROOT, helm, render, variables

EXAMPLES = ROOT / "deploy" / "examples"
VALUES = sorted(EXAMPLES.rglob("*values.yaml"))
Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


CRONS = [each for path in EXAMPLES.rglob("*.yaml") for each in documents(path) if each.get("kind") == "Cron"]


def closed(schema: Document) -> Document:
    """Let a definition refuse what the API server would prune, as `kubectl apply` warns of."""
    found = {name: closed(part) if isinstance(part, dict) else part for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        found.setdefault("additionalProperties", False)
    return found


def definition(kind: str) -> Document:
    [found] = [each for each in documents(CHART / "files" / "crds.yaml") if each["spec"]["names"]["kind"] == kind]
    [version] = found["spec"]["versions"]
    spec: Document = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return closed(spec)


@pytest.mark.parametrize("path", VALUES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_values_of_the_examples_render(path: Path) -> None:
    [values] = documents(path)
    assert render(values).names("Deployment") == ["rel-cronplane-api", "rel-cronplane-operator"]
    assert helm("lint", "--strict", str(CHART), values=values).returncode == 0


@pytest.mark.parametrize("cron", CRONS, ids=lambda cron: cron["metadata"]["name"])
def test_crons_of_the_examples_are_taken_by_the_definition(cron: Document) -> None:
    jsonschema_rs.validate(definition("Cron"), cron["spec"])


def test_a_cron_with_an_unknown_field_would_not_be_taken() -> None:
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(definition("Cron"), CRONS[0]["spec"] | {"schedule": "* * * * *"})


@pytest.mark.parametrize("cron", CRONS, ids=lambda cron: cron["metadata"]["name"])
def test_crons_of_the_examples_are_taken_by_their_entries(cron: Document) -> None:
    load_entries()
    asked = CronCreation.model_validate({"name": cron["metadata"]["name"], **cron["spec"]})
    CRON_REGISTRY[CronEntrypoint(asked.entrypoint)].user_payload_model.model_validate(asked.payload)


def test_the_roles_of_the_cloudnativepg_example_are_those_that_the_values_name() -> None:
    [cluster] = documents(EXAMPLES / "cloudnativepg" / "cluster.yaml")
    [values] = documents(EXAMPLES / "cloudnativepg" / "values.yaml")
    [role] = cluster["spec"]["managed"]["roles"]
    assert values["database"]["ownerExistingSecret"] == f"{cluster['metadata']['name']}-app"
    [process] = render(values).pod("rel-cronplane-api")["containers"]
    assert variables(process)["CRONPLANE_DATABASE_URL"] == (role["passwordSecret"]["name"], "url")
    [migration] = render(values).pod("rel-cronplane-migration")["containers"]
    assert variables(migration)["CRONPLANE_SERVICE_ROLE"] == role["name"]
