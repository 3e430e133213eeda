"""What pods are told is what their processes read: the rendered environment goes through the settings' own models."""

from typing import Any

import pytest
from pydantic_settings import BaseSettings

from cronplane_core.settings import (
    ApiSettings,
    KubernetesSettings,
    LogSettings,
    MigrationSettings,
    PodSettings,
    RegistrationSettings,
    RunnerSettings,
)
from cronplane_entries.core import ExecutionMode
from cronplane_entries.entry_settings import read_entry_settings, read_execution_modes
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from tests.chart.rendering import EVERYTHING, Document, Manifests, render, variables

SECRET = "postgresql://nobody@nowhere/nothing"
API, OPERATOR = "rel-cronplane-api", "rel-cronplane-operator"


def environment(made: Manifests, name: str) -> dict[str, str]:
    """Give the environment of a pod's process; each secret is one and the same text."""
    [process] = made.pod(name)["containers"]
    told: dict[str, str] = {}
    for source in process.get("envFrom", []):
        told |= made.one("ConfigMap", source["configMapRef"]["name"])["data"]
    own = variables(process)
    return told | {key: value if isinstance(value, str) else SECRET for key, value in own.items()}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
@pytest.mark.parametrize(
    ("pod", "models"),
    [
        (API, [ApiSettings, LogSettings]),
        (OPERATOR, [RunnerSettings, KubernetesSettings, PodSettings, RegistrationSettings, LogSettings]),
    ],
    ids=["api", "operator"],
)
def test_a_process_reads_all_that_its_pod_is_told(
    values: Document, pod: str, models: list[type[BaseSettings]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = environment(render(values), pod)
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    read = [model() for model in models]
    known = {f"CRONPLANE_{field.upper()}" for settings in read for field in type(settings).model_fields}
    assert [key for key in told if key not in known and not key.startswith("CRONPLANE_ENTRY_")] == []


def test_the_processes_have_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in environment(render(EVERYTHING), OPERATOR).items():
        monkeypatch.setenv(key, value)
    cluster, pods = KubernetesSettings(), PodSettings()
    assert cluster.namespaces == {"acme": "acme", "acme-batch": "acme", "umbrella": "umbrella"}
    assert pods.run_api_url == f"http://{API}.here.svc:80"
    large = pods.pod_profiles["large"]
    assert (large.service_account, large.runtime_class, large.priority_class) == ("large", "gvisor", "low")
    assert large.tolerations == [{"operator": "Exists"}]


@pytest.mark.parametrize("pod", [API, OPERATOR])
def test_entries_take_the_settings_that_they_are_given(pod: str) -> None:
    load_entries()
    told = environment(render(EVERYTHING), pod)
    settings = read_entry_settings(told, CRON_REGISTRY)
    assert settings["container"].keys() == {"images", "limits"}
    assert settings["http_request"].keys() == {"allowed_hosts", "secrets", "secret_reports_key"}
    modes = read_execution_modes(told, CRON_REGISTRY)
    assert {modes["http_request"], modes["dummy_print"], modes["container"]} == {ExecutionMode.POD}


def test_the_migration_reads_what_its_pod_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Any] = {"database": {"existingSecret": "ours", "serviceRole": "other"}}
    for key, value in environment(render(values), "rel-cronplane-migration").items():
        monkeypatch.setenv(key, value)
    settings = MigrationSettings()
    assert settings.owner_database_url.get_secret_value() == SECRET
    assert settings.service_role == "other"
