"""Values that would not do are refused before anything is made, with a message that says what to do about it."""

from typing import Any

import pytest

from tests.chart.rendering import CHART, EVERYTHING, NAMESPACE, NEWEST, RELEASE, helm

ADDRESS = "postgresql://s@db/c"
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"replicas": 3}, "additional properties 'replicas' not allowed"),
    ({"api": {"replica": 3}}, "additional properties 'replica' not allowed"),
    ({"api": {"settings": {"bodyLimits": 1}}}, "additional properties 'bodyLimits' not allowed"),
    ({"registration": {"minimumInterval": 5}}, "minimum: got 5, want 60"),
    ({"api": {"replicas": "two"}}, "got string, want integer"),
    ({"api": {"resources": {"request": {}}}}, "additional properties 'request' not allowed"),
    ({"log": {"level": "verbose"}}, "value must be one of 'debug', 'info', 'warning', 'error'"),
    ({"image": {"digest": "sha256:1"}}, "does not match pattern"),
    ({"organizations": {"acme": {"quota": 3}}}, "additional properties 'quota' not allowed"),
    ({"organizations": {"acme": {"namespaces": ["Acme"]}}}, "'Acme' does not match pattern"),
    ({"organizations": {"acme": {"cronQuota": -1}}}, "minimum: got -1, want 0"),
    ({"entries": {"dummy_print": {"execution": "thread"}}}, "value must be one of 'in_process', 'pod'"),
    ({"entries": {"dummy-print": {}}}, "invalid propertyName 'dummy-print'"),
    ({"entries": {"http_request": {"secrets": {"SECRET_X": "in plain"}}}}, "got string, want object"),
    ({"runs": {"profiles": {"large": {"hostNetwork": True}}}}, "additional properties 'hostNetwork' not allowed"),
    ({"database": {"password": "x"}}, "additional properties 'password' not allowed"),
    ({"database": {"url": "mysql://db"}}, "does not match pattern"),
    ({"database": {"existingSecret": "a", "url": ADDRESS}}, "existingSecret and url exclude each other"),
    ({"database": {"url": ADDRESS}}, "migrations need the address as the owner"),
    ({"database": {"ownerUrl": ADDRESS}}, "give database.url or database.existingSecret, too"),
    ({"database": {"existingSecret": "a", "ownerUrl": ADDRESS}}, "keep the address under ownerUrlKey"),
    ({"database": {"serviceRole": "other"}}, "the built-in PostgreSQL has the role cronplane_service"),
    ({"migrations": {"enabled": False}}, "the built-in PostgreSQL is migrated by the release alone"),
    (
        {"organizations": {"a": {"namespaces": ["one"]}, "b": {"namespaces": ["one"]}}},
        "the namespace one belongs to both a and b; give it to one of them",
    ),
    ({"selftest": {"organization": "acme"}}, "there is no organization acme; name one of default"),
    ({"api": {"ingress": {"enabled": True}}}, "name the hosts by which the API is asked for"),
    ({"api": {"httpRoute": {"enabled": True}}}, "name the Gateway that the route belongs to"),
    ({"api": {"autoscaling": {"enabled": True, "minReplicas": 9}}}, "minReplicas is more than maxReplicas"),
    ({"operator": {"settings": {"workers": 17}}}, "workers is more than maxWorkers"),
    (
        {"runs": {"allowedImages": {"a": "*"}}, "entries": {"container": {"settings": {"IMAGES": {"b": "*"}}}}},
        "say the same; give one of them",
    ),
    ({"runs": {"allowedImages": {"a": "everybody"}}}, "got string, want array"),
    ({"runs": {"ceiling": {"gpu": "1"}}}, "additional properties 'gpu' not allowed"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_values_that_would_not_do_are_refused_in_words(values: dict[str, Any], message: str) -> None:
    done = helm("template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", NEWEST, values=values)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_the_chart_passes_helms_own_strict_checks(values: dict[str, Any]) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)
    assert done.returncode == 0, done.stdout


def test_a_cluster_that_is_too_old_is_refused() -> None:
    done = helm("template", RELEASE, str(CHART), "--kube-version", "1.30", values={})
    assert "incompatible with Kubernetes v1.30" in done.stderr
