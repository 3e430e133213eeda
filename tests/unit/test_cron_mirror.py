"""What the mirror writes of what people applied, where Kubernetes does not take it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from cronplane_core.cron_mirror_repository import MirrorPlace
from cronplane_core.kubernetes_client import (
    KubernetesRefusedError,
    ResourceConflictError,
    ResourceKind,
    ResourceNotFoundError,
)
from cronplane_core.settings import KubernetesSettings
from cronplane_operator import cron_mirror
from cronplane_operator.cron_mirror import CronMirror
from cronplane_operator.cron_mirror_plan import Refusal, RefusalReason
from cronplane_operator.cron_resources import CronResources
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.namespace_organizations import NamespaceOrganizations

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
REFUSAL = Refusal(generation=1, reason=RefusalReason.INVALID_SPEC, message="Not like this.")


def body(name: str) -> Any:
    metadata = {"name": name, "namespace": "acme", "uid": f"uid of {name}", "generation": 1, "resourceVersion": "7"}
    return {"apiVersion": "crons.cronplane.dev/v1alpha1", "kind": "Cron", "metadata": metadata, "spec": {"payload": {}}}


class Cluster:
    """Takes what is applied, but for resources of the names in `errors`."""

    def __init__(self) -> None:
        self.errors: dict[str, Exception] = {}
        self.applied: dict[str, Any] = {}

    async def apply(self, _: ResourceKind, body: Any, **__: object) -> Any:
        name = body["metadata"]["name"]
        if name in self.errors:
            raise self.errors[name]
        self.applied[name] = body
        return body | {"metadata": body["metadata"] | {"uid": f"uid of {name}"}}

    async def create(self, _: ResourceKind, body: Any, **__: object) -> Any:
        return body

    async def delete(self, _: ResourceKind, *, name: str, **__: object) -> None:
        if name in self.errors:
            raise self.errors[name]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def mirror(cluster: Any) -> CronMirror:
    settings = KubernetesSettings(installation="demo", release_namespace="acme")
    return CronMirror(
        precedence=LaunchPrecedence(),
        settings=settings,
        client=cluster,
        resources=CronResources(client=cluster, namespaces=["acme"]),
        organizations=NamespaceOrganizations(settings),
        refusals=dict,
    )


async def test_a_status_that_is_not_taken_keeps_no_other_one_back(cluster: Cluster, mirror: CronMirror) -> None:
    cluster.errors["a"] = KubernetesRefusedError("too long", status=422, reason="Invalid")
    [refused] = await mirror._write_refused([(REFUSAL, body("a")), (REFUSAL, body("b"))], NOW)
    assert (str(refused), set(cluster.applied)) == ("too long", {"b"})


async def test_a_status_is_meant_for_the_resource_that_was_judged_and_for_no_other_one_of_its_name(
    cluster: Cluster, mirror: CronMirror
) -> None:
    cluster.errors = {
        "gone": ResourceNotFoundError("gone", status=404, reason="NotFound"),
        "replaced": ResourceConflictError("replaced", status=409, reason="Conflict"),
    }
    told = [(REFUSAL, body(name)) for name in ("gone", "replaced", "there")]
    assert await mirror._write_refused(told, NOW) == []
    assert cluster.applied["there"]["metadata"]["resourceVersion"] == "7"
    assert mirror.state.written == 1


async def test_a_mirror_that_may_not_be_deleted_stays_to_be_and_keeps_no_other_one_back(
    cluster: Cluster, mirror: CronMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {uuid4(): MirrorPlace(namespace="acme", name=name, uid="uid") for name in ("forbidden", "left")}
    given_up: list[UUID] = []

    @asynccontextmanager
    async def transaction(_: object) -> AsyncIterator[None]:
        yield

    async def check(*_: object, **__: object) -> None: ...

    async def read_abandoned(_: object) -> dict[UUID, MirrorPlace]:
        return places

    async def give_place_up(_: object, *, cron_id: UUID) -> None:
        given_up.append(cron_id)

    monkeypatch.setattr(cron_mirror, "transaction", transaction)
    monkeypatch.setattr(cron_mirror, "leases", SimpleNamespace(check=check))
    repository = SimpleNamespace(read_abandoned=read_abandoned, give_place_up=give_place_up)
    monkeypatch.setattr(cron_mirror, "mirrors", repository)
    cluster.errors["forbidden"] = KubernetesRefusedError("forbidden", status=403, reason="Forbidden")
    nobody: Any = SimpleNamespace(engine=None, lease=None)
    [refused] = await mirror._remove_abandoned(nobody)
    assert (str(refused), given_up) == ("forbidden", [list(places)[1]])


async def test_what_a_person_applies_is_looked_at_alone_and_not_with_every_other_cron(mirror: CronMirror) -> None:
    mirror._is_all_dirty = False
    mirror.resource_seen("ADDED", body("nightly"))
    assert (mirror._is_all_dirty, mirror._seen) == (False, {("acme", "nightly")})


async def test_after_a_refusal_the_resources_are_listed_again_before_anything_is_written(mirror: CronMirror) -> None:
    mirror._is_list_due = False
    mirror._put_off(ResourceConflictError("there is one already", status=409, reason="AlreadyExists"))
    assert mirror._is_list_due
