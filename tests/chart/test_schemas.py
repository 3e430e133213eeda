"""Whatever is rendered is what Kubernetes takes, in each version that is supported, and no pod asks for much."""

from typing import Any

import kubernetes_validate
import pytest

from tests.chart.rendering import ADDRESSES, EVERYTHING, OUTSIDE, ROLE_EXTRAS, Document, render

VERSIONS = ["1.31", "1.32", "1.33", "1.34"]
# Of CRDs that others bring; what is in them is looked at in test_rendering.
FOREIGN_GROUPS = {"gateway.networking.k8s.io", "monitoring.coreos.com"}
SOMETHING_OF_EACH: Document = EVERYTHING | {
    "operator": ROLE_EXTRAS,
    "database": {"builtIn": {"persistence": {"enabled": False}, "affinity": {"nodeAffinity": {}}}},
    "jobs": {name: ROLE_EXTRAS[name] for name in ("podAnnotations", "tolerations", "extraEnv", "extraVolumes")},
}
MATRIX = {"defaults": {}, "outside": OUTSIDE, "addresses": ADDRESSES, "something-of-each": SOMETHING_OF_EACH}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_document_is_valid(values: Document, version: str) -> None:
    checked = 0
    for document in render(values, version=version):
        if document["apiVersion"].partition("/")[0] not in FOREIGN_GROUPS:
            kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked > 30


def test_a_document_with_an_unknown_field_would_not_pass() -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a"},
        "spec": {"containers": [], "hostNetworks": True},
    }
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_pod_meets_the_restricted_standard(values: Document) -> None:
    pods = render(values).pods()
    assert len(pods) >= 5
    assert [name for name, spec in pods if not is_restricted(spec)] == []


def is_restricted(pod: dict[str, Any]) -> bool:
    """Judge as the pod security standard `restricted` does (Kubernetes documentation, "Pod Security Standards")."""
    whole = pod["securityContext"]
    volumes = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
    return (
        whole["runAsNonRoot"] is True
        and whole["runAsUser"] > 0
        and whole["seccompProfile"]["type"] == "RuntimeDefault"
        and volumes <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
        and not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        and all(_drops_everything(container["securityContext"]) for container in pod["containers"])
    )


def _drops_everything(context: dict[str, Any]) -> bool:
    return (
        context["allowPrivilegeEscalation"] is False
        and context["readOnlyRootFilesystem"] is True
        and context["capabilities"] == {"drop": ["ALL"]}
    )


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_nothing_is_made_by_chance_or_looked_up_so_that_each_rendering_is_the_same(values: Document) -> None:
    once, again = (render(values | {"nameOverride": ""}, version=version) for version in ("1.34", "1.34.1"))
    assert once.documents == again.documents


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_no_two_documents_are_the_same_object(values: Document) -> None:
    objects = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in render(values)]
    assert len(set(objects)) == len(objects)
