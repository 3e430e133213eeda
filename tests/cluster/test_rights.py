"""What the chart's accounts may do, whole: a right too many fails here as one too few does in the other tests."""

from typing import Any

import pytest

# As `kubectl auth can-i --list` names them; what everybody may do is left out.
OF_EVERYBODY = "selfsubject"
CRON_RIGHTS = {
    "crons.crons.cronplane.dev": "[list watch create patch delete]",
    "crons.crons.cronplane.dev/status": "[patch]",
    "events": "[get create patch]",
}
CLUSTER_RIGHTS = {
    "customresourcedefinitions.apiextensions.k8s.io": "[get list watch]",
    "namespaces": "[get list watch]",
}
RUNNER_RIGHTS = {
    "runners.crons.cronplane.dev": "[create patch]",
    "runners.crons.cronplane.dev/status": "[patch]",
}


def rights(kubectl: Any, installation: Any, namespace: str) -> dict[str, str]:
    account = f"system:serviceaccount:{installation.namespace}:{installation.name}-operator"
    lines = kubectl("auth", "can-i", "--list", "--no-headers", "--namespace", namespace, "--as", account).splitlines()
    words = (line.split("[") for line in lines)
    found = {parts[0].strip(): f"[{parts[-1].strip()}" for parts in words}
    return {name: verbs for name, verbs in found.items() if name and OF_EVERYBODY not in name}


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("tenant", CRON_RIGHTS | CLUSTER_RIGHTS),
        ("namespace", CRON_RIGHTS | RUNNER_RIGHTS | CLUSTER_RIGHTS),
        ("foreign", CLUSTER_RIGHTS),
    ],
)
async def test_the_operators_account_may_do_what_it_needs_and_no_more(
    kubectl: Any, installation: Any, place: str, expected: dict[str, str]
) -> None:
    namespace = getattr(installation, place, "default")
    assert rights(kubectl, installation, namespace) == expected
