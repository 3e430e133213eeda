"""Registrations and keys at once: written and looked up together, and answered as if each had come alone."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_api.batched_statements import cron_insertion, key_recognition
from cronplane_core.api_key_repository import create_api_key, revoke_api_key
from cronplane_core.cron_repository import Cron, CronNameTakenError, Definition, NewCron, Policy
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.organization_repository import Organization, QuotaExceededError
from cronplane_core.tables import Role
from cronplane_entries.registration import Registrar
from cronplane_entries.registry import CronRegistry


@pytest.fixture
def insertion(engine: AsyncEngine, entries: CronRegistry) -> Any:
    return cron_insertion(engine, Registrar(registry=entries, settings={}, minimum_interval=timedelta(minutes=1)))


def new_cron(name: str, **changes: Any) -> NewCron:
    definition = {
        "name": name,
        "cron_expr": "0 9 * * *",
        "tz": "UTC",
        "entrypoint": "no_op",
        "user_payload": {"of": name},
        "execution_payload": {"of": name},
        "policy": Policy(timeout=timedelta(hours=1)),
        "enabled": True,
    }
    return NewCron(id=uuid4(), definition=Definition(**{**definition, **changes}), created_by="test")


async def insert_at_once(insertion: Any, organization: Organization, crons: list[NewCron]) -> list[Cron | Exception]:
    calls = (insertion.call(organization.id, cron) for cron in crons)
    outcomes: list[Cron | Exception] = await asyncio.gather(*calls, return_exceptions=True)
    return outcomes


async def test_registrations_at_once_are_one_statement_and_each_gets_its_own_cron(
    insertion: Any, organization: Organization, statements: list[Any], database: Any
) -> None:
    crons = [new_cron(f"cron {number}") for number in range(20)]
    statements.clear()
    inserted = await insert_at_once(insertion, organization, crons)
    assert len(statements) == 1
    assert [(cron.id, cron.definition) for cron in inserted if isinstance(cron, Cron)] == [
        (cron.id, cron.definition) for cron in crons
    ]
    assert database.execute("SELECT crons FROM scheduler.organizations WHERE name = 'acme'") == [(20,)]
    assert database.execute("SELECT count(*) FROM scheduler.cron_job_versions") == [(20,)]


async def test_a_name_that_is_taken_is_refused_and_spoils_no_neighbours_registration(
    insertion: Any, organization: Organization, database: Any
) -> None:
    await insert_at_once(insertion, organization, [new_cron("taken")])
    outcomes = await insert_at_once(
        insertion, organization, [new_cron(name) for name in ("before", "taken", "twice", "twice", "after")]
    )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds == [Cron, CronNameTakenError, Cron, CronNameTakenError, Cron]
    assert str(outcomes[1]) == "A cron named 'taken' exists already in this organization"
    assert database.execute("SELECT crons FROM scheduler.organizations WHERE name = 'acme'") == [(4,)]


async def test_of_more_registrations_than_the_quota_allows_as_many_pass_as_there_is_room_for(
    insertion: Any, organization: Organization, database: Any
) -> None:
    database.execute("UPDATE scheduler.organizations SET cron_quota = 3")
    outcomes = await insert_at_once(insertion, organization, [new_cron(f"{number}") for number in range(5)])
    assert [type(outcome) for outcome in outcomes] == [Cron] * 3 + [QuotaExceededError] * 2
    assert database.execute("SELECT count(*), max(crons) FROM scheduler.cron_jobs, scheduler.organizations") == [(3, 3)]


async def test_what_postgresql_refuses_spoils_no_neighbours_registration(
    insertion: Any, organization: Organization
) -> None:
    poison = new_cron("poison", entrypoint="no such label")
    outcomes = await insert_at_once(insertion, organization, [new_cron("a"), poison, new_cron("b")])
    assert [isinstance(outcome, Cron) for outcome in outcomes] == [True, False, True]


async def test_when_postgresql_is_away_nothing_is_tried_one_by_one(
    insertion: Any, engine: AsyncEngine, organization: Organization, statements: list[Any]
) -> None:
    crons = [new_cron(f"{number}") for number in range(5)]
    await insert_at_once(insertion, organization, [new_cron("opens a connection")])
    statements.clear()

    def cut(connection: Any, *_: object) -> None:
        connection.connection.dbapi_connection.driver_connection.pgconn.finish()

    event.listen(engine.sync_engine, "before_cursor_execute", cut)
    outcomes = await insert_at_once(insertion, organization, crons)
    event.remove(engine.sync_engine, "before_cursor_execute", cut)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailableError] * 5
    assert len(statements) == 1


async def test_two_organizations_names_do_not_meet(
    insertion: Any, organization: Organization, other_organization: Organization
) -> None:
    outcomes = await asyncio.gather(
        insertion.call(organization.id, new_cron("same")), insertion.call(other_organization.id, new_cron("same"))
    )
    assert [cron.organization_id for cron in outcomes] == [organization.id, other_organization.id]


async def test_keys_at_once_are_one_query_and_each_is_recognized_for_itself(
    engine: AsyncEngine, organization: Organization, other_organization: Organization, statements: list[Any]
) -> None:
    async with transaction(engine) as connection:
        made = [
            await create_api_key(connection, organization_id=owner.id, name="k", role=Role.VIEWER, created_by="test")
            for owner in (organization, other_organization, organization)
        ]
        revoked, _ = made[2]
        await revoke_api_key(connection, organization_id=organization.id, key_id=revoked.id)
    (ours, our_text), (theirs, their_text), (_, revoked_text) = made
    recognition = key_recognition(engine)
    mixed = our_text[:-43] + their_text[-43:]
    statements.clear()
    texts = [our_text, their_text, revoked_text, mixed, "no key at all", our_text]
    keys = await asyncio.gather(*(recognition.call(None, text) for text in texts))
    assert len(statements) == 1
    assert [None if key is None else key.id for key in keys] == [ours.id, theirs.id, None, None, None, ours.id]
    assert keys[1] is not None
    assert keys[1].organization_id == other_organization.id


async def test_a_key_that_is_revoked_while_another_is_looked_up_is_not_recognized(
    engine: AsyncEngine, organization: Organization
) -> None:
    async with transaction(engine) as connection:
        key, text = await create_api_key(
            connection, organization_id=organization.id, name="k", role=Role.VIEWER, created_by="test"
        )
    recognition = key_recognition(engine)
    under_way = asyncio.create_task(recognition.call(None, text))
    await asyncio.sleep(0)
    async with transaction(engine) as connection:
        await revoke_api_key(connection, organization_id=organization.id, key_id=key.id)
    assert await recognition.call(None, text) is None
    await under_way
