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
    "runners.crons.cronplane.dev": "[get create patch]",
    "runners.crons.cronplane.dev/status": "[patch]",
}
RUN_RIGHTS = {
    "jobs.batch": "[get list watch create patch delete]",
    "pods": "[list]",
    "pods/log": "[get]",
    "events": "[list]",
}
# Each is a way to a token of the account of runs.
OF_PODS = (
    "create pods",
    "create pods --subresource=exec",
    "create jobs.batch",
    "patch jobs.batch",
    "create serviceaccounts --subresource=token",
    "impersonate serviceaccounts",
    "get secrets",
)


def rights(kubectl: Any, installation: Any, *, role: str, account_in: str, place: str) -> dict[str, str]:
    namespaces = {"tenant": installation.tenant, "namespace": installation.namespace, "runs": installation.runs}
    account = f"system:serviceaccount:{namespaces[account_in]}:{installation.name}-{role}"
    where = namespaces.get(place, "default")
    lines = kubectl("auth", "can-i", "--list", "--no-headers", "--namespace", where, "--as", account).splitlines()
    words = (line.split("[") for line in lines)
    found = {parts[0].strip(): f"[{parts[-1].strip()}" for parts in words}
    return {name: verbs for name, verbs in found.items() if name and OF_EVERYBODY not in name}


async def test_the_operators_account_may_do_what_it_needs_and_no_more(kubectl: Any, installation: Any) -> None:
    expected = {
        "tenant": CRON_RIGHTS | CLUSTER_RIGHTS,
        "namespace": CRON_RIGHTS | RUNNER_RIGHTS | CLUSTER_RIGHTS,
        "runs": RUN_RIGHTS | CLUSTER_RIGHTS,
        "foreign": CLUSTER_RIGHTS,
    }
    found = {
        place: rights(kubectl, installation, role="operator", account_in="namespace", place=place) for place in expected
    }
    assert found == expected


async def test_the_apis_account_may_review_tokens_and_look_at_pods_of_runs(kubectl: Any, installation: Any) -> None:
    review = {"tokenreviews.authentication.k8s.io": "[create]"}
    expected = {"tenant": review, "namespace": review, "runs": review | {"pods": "[get]"}, "foreign": review}
    found = {
        place: rights(kubectl, installation, role="api", account_in="namespace", place=place) for place in expected
    }
    assert found == expected


async def test_the_account_of_runs_may_do_nothing(kubectl: Any, installation: Any) -> None:
    for place in ("tenant", "namespace", "runs", "foreign"):
        assert rights(kubectl, installation, role="run", account_in="runs", place=place) == {}


@pytest.fixture
def tenant_editor(kubectl: Any, installation: Any) -> str:
    """Name an ordinary account: Kubernetes' role `edit` in the namespace of its organization, and nothing else."""
    here = ("--namespace", installation.tenant)
    kubectl("create", "serviceaccount", "somebody", *here)
    account = f"{installation.tenant}:somebody"
    kubectl("create", "rolebinding", "somebody", "--clusterrole=edit", f"--serviceaccount={account}", *here)
    return f"system:serviceaccount:{account}"


async def test_a_tenant_may_do_nothing_where_runs_are_by_which_it_could_pass_for_one(
    kubectl: Any, installation: Any, tenant_editor: str
) -> None:
    def may(right: str, namespace: str) -> str:
        asked = ("auth", "can-i", *right.split(), "--namespace", namespace, "--as", tenant_editor)
        return str(kubectl.ask(*asked)).strip()

    assert {right: may(right, installation.runs) for right in OF_PODS} == dict.fromkeys(OF_PODS, "no")
    # In its own namespace it may: these are the right questions.
    assert {right: may(right, installation.tenant) for right in OF_PODS} == dict.fromkeys(OF_PODS, "yes")
