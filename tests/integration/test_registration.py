"""Registrations that are carried out: checked, written and changed on a real PostgreSQL."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import cron_repository, organization_repository
from cronplane_core.cron_repository import Cron, CronNameTakenError, NewCron
from cronplane_core.database import transaction
from cronplane_entries.core import Organization, User
from cronplane_entries.registration import CronChanges, CronDraft, PolicyDraft, Registrar
from cronplane_entries.registry import CronRegistry

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LATER = NOON + timedelta(minutes=7)
USER = User(id="key:1", name="laptop")
DRAFT = CronDraft(
    name="my job", cron_expr="0 9 * * 1-5", tz="UTC", entrypoint="my_entry", payload={"greeting": "hello"}
)


@pytest.fixture
def registrar(entries: CronRegistry) -> Registrar:
    return Registrar(registry=entries, settings={}, minimum_interval=timedelta(minutes=1))


@pytest.fixture
def tenant(organization: organization_repository.Organization) -> Organization:
    return Organization(id=organization.id, name=organization.name)


async def register(registrar: Registrar, engine: AsyncEngine, tenant: Organization, draft: CronDraft = DRAFT) -> Cron:
    cron_id = uuid4()
    definition, _ = await registrar.check(draft, organization=tenant, user=USER, cron_id=cron_id, now=NOON)
    async with transaction(engine) as connection:
        new = NewCron(id=cron_id, definition=definition, created_by=USER.id)
        [cron] = await registrar.register(connection, organization_id=tenant.id, crons=[new])
        return cron


async def change(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization, cron: Cron, changes: CronChanges
) -> Cron:
    definition = await registrar.check_changes(changes, cron=cron, organization=tenant, user=USER, now=NOON)
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=tenant.id, cron_id=cron.id)
        assert locked == cron
        return await cron_repository.update_cron(connection, cron=locked, definition=definition, updated_by=USER.id)


async def test_a_registered_cron_is_the_row_that_was_checked(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization
) -> None:
    cron = await register(registrar, engine, tenant)
    async with transaction(engine) as connection:
        assert await cron_repository.get_cron(connection, organization_id=tenant.id, cron_id=cron.id) == cron
    assert cron.definition.user_payload == {"greeting": "hello"}
    assert cron.definition.execution_payload == {"greeting": "HELLO"}
    assert (cron.created_by, cron.generation) == (USER.id, 1)


async def test_a_check_writes_nothing(registrar: Registrar, tenant: Organization, database: Any) -> None:
    await registrar.check(DRAFT, organization=tenant, user=USER, cron_id=uuid4(), now=NOON)
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_a_name_that_looks_the_same_is_taken(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization
) -> None:
    await register(registrar, engine, tenant, replace(DRAFT, name="caf\u00e9"))
    with pytest.raises(CronNameTakenError):
        await register(registrar, engine, tenant, replace(DRAFT, name="cafe\u0301"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (CronChanges(name="cafe\u0301"), {"name": "caf\u00e9"}),
        (CronChanges(cron_expr="  @daily "), {"cron_expr": "@daily"}),
        (CronChanges(tz="Asia/Tokyo"), {"tz": "Asia/Tokyo"}),
        (CronChanges(enabled=False), {"enabled": False}),
        (
            CronChanges(payload={"greeting": "bye"}),
            {"user_payload": {"greeting": "bye"}, "execution_payload": {"greeting": "BYE"}},
        ),
        (CronChanges(payload={}), {"user_payload": {"greeting": "hello"}}),
    ],
)
async def test_a_change_touches_what_it_names_and_nothing_else(
    registrar: Registrar,
    engine: AsyncEngine,
    tenant: Organization,
    changes: CronChanges,
    expected: Mapping[str, Any],
) -> None:
    cron = await register(registrar, engine, tenant)
    changed = await change(registrar, engine, tenant, cron, changes)
    assert changed.definition == replace(cron.definition, **expected)
    assert changed.generation == (cron.generation if changed.definition == cron.definition else 2)


async def test_a_changed_policy_leaves_the_others_as_they_were(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization
) -> None:
    draft = replace(DRAFT, policy=PolicyDraft(catchup_window=timedelta(hours=2)))
    cron = await register(registrar, engine, tenant, draft)
    changes = CronChanges(policy=PolicyDraft(timeout=timedelta(seconds=5)))
    changed = await change(registrar, engine, tenant, cron, changes)
    assert changed.definition.policy == replace(cron.definition.policy, timeout=timedelta(seconds=5))


async def test_another_entry_comes_with_a_payload_of_its_own(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization
) -> None:
    cron = await register(registrar, engine, tenant)
    changes = CronChanges(entrypoint="dummy_print", payload={"message": "m"})
    changed = await change(registrar, engine, tenant, cron, changes)
    assert changed.definition.entrypoint == "dummy_print"
    assert changed.definition.execution_payload == {
        "message": "m",
        "error_rate": 0.0,
        "user_id": USER.id,
        "organization_id": str(tenant.id),
    }


async def test_what_a_change_does_not_name_is_not_judged_again(
    entries: CronRegistry, registrar: Registrar, engine: AsyncEngine, tenant: Organization
) -> None:
    cron = await register(registrar, engine, tenant, replace(DRAFT, cron_expr="* * * * *"))
    stricter = Registrar(registry=entries, settings={}, minimum_interval=timedelta(hours=1))
    changed = await change(stricter, engine, tenant, cron, CronChanges(name="renamed"))
    assert changed.definition == replace(cron.definition, name="renamed")


async def test_a_schedule_that_is_changed_never_fires_into_the_past(
    registrar: Registrar, engine: AsyncEngine, tenant: Organization, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await register(registrar, engine, tenant)
    database.set_clock(LATER, speed=0)
    changed = await change(registrar, engine, tenant, cron, CronChanges(cron_expr="* * * * *"))
    assert (cron.effective_from, changed.effective_from) == (NOON, LATER)
