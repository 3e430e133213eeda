"""The notes give the next three commands for exactly the values of the release."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.rendering import ADDRESSES, CHART, NEWEST, OUTSIDE, helm

EVALUATION = "for trying things out"


@pytest.fixture
def notes(tmp_path: Path) -> Any:
    """Render the notes, which `helm template` leaves out, as a document of a copy of the chart."""
    copy = Path(shutil.copytree(CHART, tmp_path / "cronplane"))
    written = (copy / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    wrapped = '{{ define "notes" }}' + written + '{{ end }}text: {{ include "notes" . | toJson }}\n'
    (copy / "templates" / "notes.yaml").write_text(wrapped, encoding="utf-8")

    def render(values: dict[str, Any]) -> str:
        options = ["--namespace", "here", "--kube-version", NEWEST, "--show-only", "templates/notes.yaml"]
        done = helm("template", "rel", str(copy), *options, values=values)
        assert done.returncode == 0, done.stderr
        return str(yaml.safe_load(done.stdout)["text"])

    return render


def block(text: str, first: str) -> str:
    """Give the indented lines that begin with a word, as a person copies them."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next((number for number, line in enumerate(lines[start:], start) if not line.strip()), len(lines))
    return "\n".join(lines[start:end])


def test_the_first_command_applies_a_cron_in_the_namespace_of_an_organization(notes: Any) -> None:
    text = notes({"organizations": {"acme": {"namespaces": ["acme-two", "acme-one"]}}})
    command = block(text, "echo")
    assert command.endswith("kubectl apply -n acme-one -f -")
    applied = yaml.safe_load(command.split("'")[1])
    assert (applied["kind"], applied["spec"]["entrypoint"]) == ("Cron", "dummy_print")
    assert "kubectl get crons -n acme-one --watch" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {},
            "-n here rel-cronplane-installation -o go-template='{{index .data \"installation-key\" | base64decode}}'",
        ),
        (
            {"installation": {"existingSecret": "ours", "installationKey": "key"}},
            "-n here ours -o go-template='{{index .data \"key\" | base64decode}}'",
        ),
    ],
)
def test_the_key_is_read_where_it_is(notes: Any, values: dict[str, Any], expected: str) -> None:
    assert expected in notes(values)


@pytest.mark.parametrize(
    ("values", "address", "forwarded"),
    [
        ({}, "http://127.0.0.1:8080", "port-forward -n here service/rel-cronplane-api 8080:8080"),
        ({"api": {"service": {"port": 80}}}, "http://127.0.0.1:8080", "8080:80"),
        ({"api": {"ingress": {"enabled": True, "hosts": ["a.example.org"]}}}, "http://a.example.org", None),
        (
            {"api": {"ingress": {"enabled": True, "hosts": ["a.example.org"], "tls": [{"secretName": "b"}]}}},
            "https://a.example.org",
            None,
        ),
    ],
    ids=["default", "port", "ingress", "tls"],
)
def test_the_api_is_reached_the_way_that_there_is(
    notes: Any, values: dict[str, Any], address: str, forwarded: str | None
) -> None:
    text = notes(values)
    assert f"The API is at {address}" in text
    assert forwarded in text if forwarded else "port-forward" not in text


@pytest.mark.parametrize(("execution", "place"), [("pod", "in a pod:"), ("in_process", "in the operator:")])
def test_it_is_said_where_the_cron_runs(notes: Any, execution: str, place: str) -> None:
    assert place in notes({"entries": {"dummy_print": {"execution": execution}}})


@pytest.mark.parametrize(("values", "times"), [({}, 1), (OUTSIDE, 0), (ADDRESSES, 0)])
def test_of_the_built_in_database_it_is_said_what_it_is_for(notes: Any, values: dict[str, Any], times: int) -> None:
    assert notes(values).count(EVALUATION) == times


def test_the_commands_are_words_that_a_shell_understands_as_they_stand(notes: Any) -> None:
    shell = shutil.which("bash") or "bash"
    for first in ("echo", "kubectl get crons", "kubectl exec", "kubectl get secret"):
        done = subprocess.run([shell, "-n"], input=block(notes({}), first), capture_output=True, text=True, check=False)
        assert done.stderr == ""
