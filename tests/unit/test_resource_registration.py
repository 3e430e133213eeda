"""How many resources are registered at once, and what they keep waiting."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from cronplane_core.cron_repository import DefiningResource
from cronplane_core.organization_repository import Organization
from cronplane_core.settings import KubernetesSettings
from cronplane_core.tables import OrganizationState
from cronplane_operator.cron_mirror_plan import Refusal, RefusalReason
from cronplane_operator.cron_resources import CronResources
from cronplane_operator.namespace_organizations import NamespaceOrganizations
from cronplane_operator.resource_registration import ResourceRegistration
from cronplane_operator.resource_registration_plan import Registering

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


def organization() -> Organization:
    return Organization(
        id=uuid4(),
        name="acme",
        state=OrganizationState.ACTIVE,
        created_at=NOW,
        entrypoints=None,
        cron_quota=None,
        triggers_per_minute=None,
        crons=0,
    )


def asking(count: int, owner: Organization) -> list[Registering]:
    resources = [
        DefiningResource(namespace="acme", name=f"cron-{n}", uid=str(uuid4()), generation=n, scope="scope")
        for n in range(count)
    ]
    return [Registering(body={}, resource=each, organization=owner, cron=None) for each in resources]


class Refusing:
    """Refuses everything at once."""

    def __init__(self, reason: RefusalReason) -> None:
        self.reason, self.asked = reason, 0

    async def register(self, asked: Registering, *, now: datetime) -> Refusal:
        self.asked += 1
        return Refusal(generation=asked.resource.generation, reason=self.reason, message="no")


@pytest.fixture
def registration() -> ResourceRegistration:
    settings = KubernetesSettings(installation="demo", release_namespace="acme")
    nobody: Any = None
    return ResourceRegistration(
        settings=settings,
        client=nobody,
        resources=CronResources(client=nobody, namespaces=["acme"]),
        organizations=NamespaceOrganizations(settings),
        registrar=nobody,
        on_refused=lambda: None,
    )


async def test_whoever_waits_for_the_loop_comes_in_between_resources_that_are_refused_at_once(
    registration: ResourceRegistration,
) -> None:
    registrar: Any = Refusing(RefusalReason.INVALID_SPEC)
    registering = asyncio.create_task(
        registration._register_all(registrar, asking(1000, organization()), now=NOW, again=True)
    )
    most, before = 0, 0
    while not registering.done():
        await asyncio.sleep(0)
        most, before = max(most, registrar.asked - before), registrar.asked
    assert (most <= 10, len(registering.result())) == (True, 1000)


async def test_an_organization_that_has_as_many_crons_as_it_may_is_not_counted_for_each_one_more(
    registration: ResourceRegistration,
) -> None:
    registrar: Any = Refusing(RefusalReason.QUOTA_EXCEEDED)
    asked = [*asking(100, organization()), *asking(100, organization())]
    refused = await registration._register_all(registrar, asked, now=NOW, again=True)
    assert registrar.asked < 20
    assert [refused[str(each.resource.uid)].generation for each in asked] == [
        each.resource.generation for each in asked
    ]
