"""What is known of the resources, whatever comes in between while they are listed."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cronplane_core.kubernetes_client import (
    KubernetesRefusedError,
    KubernetesUnavailableError,
    ResourceKind,
    ResourceNotFoundError,
)
from cronplane_operator.cron_resources import CronResources


def body(name: str, *, uid: str = "uid", version: int = 1, namespace: str = "acme") -> Any:
    known_by = {"name": name, "namespace": namespace, "uid": uid}
    metadata = known_by | {"generation": version, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"payload": {}}}


class Cluster:
    """Answers with `resources`, or raises what stands there; `meanwhile` happens before an answer arrives."""

    def __init__(self) -> None:
        self.resources: dict[str, list[Any] | Exception] = {}
        self.others: set[str] = set()
        self.meanwhile: Callable[[], object] = lambda: None
        self.asked = 0

    async def list_all(self, _: ResourceKind, *, namespace: str) -> list[Any]:
        answer = self.resources.get(namespace, [])
        self.asked += 1
        assert self.asked == 1
        await asyncio.sleep(0)
        self.meanwhile()
        self.asked -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def get(self, kind: ResourceKind, *, name: str) -> Any:
        if name not in self.others:
            raise ResourceNotFoundError(f"no {kind.plural} {name}", status=404, reason="NotFound")
        return {"metadata": {"name": name, "uid": name}}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def resources(cluster: Any) -> CronResources:
    return CronResources(client=cluster, namespaces=["acme"])


def known(resources: CronResources) -> dict[str, tuple[str, int]]:
    return {
        each["metadata"]["name"]: (each["metadata"]["uid"], each["metadata"]["generation"]) for each in list(resources)
    }


async def test_what_was_seen_while_a_list_was_on_its_way_is_not_forgotten_for_it(
    cluster: Cluster, resources: CronResources
) -> None:
    cluster.resources["acme"] = [body("changed"), body("deleted", uid="another"), body("removed", uid="our own")]

    def meanwhile() -> None:
        resources.seen("ADDED", body("new"))
        resources.written(body("changed", version=2))
        resources.seen("DELETED", body("deleted", uid="another", version=3))
        resources.removed(namespace="acme", name="removed", uid="our own")

    cluster.meanwhile = meanwhile
    await resources.list()
    assert known(resources) == {"new": ("uid", 1), "changed": ("uid", 2)}


async def test_what_a_list_knows_better_goes_before_what_was_seen_meanwhile(
    cluster: Cluster, resources: CronResources
) -> None:
    cluster.resources["acme"] = [body("changed", version=3)]
    cluster.meanwhile = lambda: resources.seen("MODIFIED", body("changed", version=2))
    await resources.list()
    assert known(resources) == {"changed": ("uid", 3)}
    cluster.resources["acme"] = []
    cluster.meanwhile = lambda: None
    await resources.list()
    assert known(resources) == {}


async def test_a_late_event_of_a_resource_that_was_replaced_does_not_bring_it_back(resources: CronResources) -> None:
    resources.seen("ADDED", body("nightly", uid="its successor", version=3))
    assert not resources.seen("MODIFIED", body("nightly", version=2))
    resources.written(body("nightly", version=2))
    assert known(resources) == {"nightly": ("its successor", 3)}


async def test_two_lists_at_once_come_one_after_the_other(cluster: Cluster, resources: CronResources) -> None:
    cluster.resources["acme"] = [body("nightly")]
    await asyncio.gather(resources.list(), resources.list())
    assert (resources.lists, known(resources)) == (2, {"nightly": ("uid", 1)})


async def test_a_resource_that_was_removed_takes_no_other_one_of_its_name_along(resources: CronResources) -> None:
    resources.seen("ADDED", body("nightly", uid="a person's"))
    resources.removed(namespace="acme", name="nightly", uid="the mirror's")
    assert known(resources) == {"nightly": ("a person's", 1)}


async def test_only_without_their_definition_are_resources_that_cannot_be_found_gone(
    cluster: Cluster, resources: CronResources
) -> None:
    resources.seen("ADDED", body("nightly"))
    cluster.resources["acme"] = ResourceNotFoundError("not served", status=404, reason="NotFound")
    cluster.others = {"crons.crons.cronplane.dev"}
    with pytest.raises(KubernetesUnavailableError, match="serves no Crons of version v1alpha1"):
        await resources.list()
    assert (resources.lists, known(resources)) == (0, {"nightly": ("uid", 1)})
    cluster.others = set()
    with pytest.raises(ResourceNotFoundError):
        await resources.list()
    assert (resources.lists, known(resources)) == (1, {})


async def test_of_a_namespace_that_cannot_be_looked_into_stays_what_was_known_while_it_is_there(
    cluster: Cluster, resources: CronResources
) -> None:
    resources.seen("ADDED", body("nightly"))
    cluster.resources["acme"] = KubernetesRefusedError("forbidden", status=403, reason="Forbidden")
    cluster.others = {"acme"}
    await resources.list()
    assert (set(resources.unlisted), known(resources)) == ({"acme"}, {"nightly": ("uid", 1)})
    cluster.others = set()
    await resources.list()
    assert (set(resources.unlisted), known(resources)) == (set(), {})
