"""Crons and their versions, as the service's role reads and writes them."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import cron_repository
from cronplane_core.cron_repository import Cron, CronNameTakenError, DefiningResource, Definition, NewCron, Policy
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import Catchup, CronSource, Overlap

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LATER = NOON + timedelta(minutes=7)
PAYLOAD: dict[str, Any] = {
    "n": 2**53 + 1,
    "text": "é 🚀 \u2028 \\u0000",
    "list": [None, True, 1, 1.5, {}],
    "": {"": []},
}
DEFINITION = Definition(
    name="nightly 🌙",
    cron_expr="0 9 * * MON-FRI",
    tz="Europe/Paris",
    entrypoint="my_entry",
    user_payload=PAYLOAD,
    execution_payload={**PAYLOAD, "added": "by the entry"},
    policy=Policy(
        timeout=timedelta(seconds=90),
        overlap=Overlap.QUEUE_ONE,
        catchup=Catchup.ALL,
        catchup_window=timedelta(days=30),
        max_attempts=3,
        backoff_initial=timedelta(seconds=1),
        backoff_maximum=timedelta(hours=1, microseconds=5),
        jitter=timedelta(seconds=30),
        starts_at=NOON,
        ends_at=NOON + timedelta(days=400),
        max_runs=2**40,
    ),
    enabled=True,
)
HANG_GUARD = 30.0


async def insert(connection: AsyncConnection, organization: Organization, definition: Definition = DEFINITION) -> Cron:
    new = NewCron(id=uuid4(), definition=definition, created_by="key:1")
    [cron] = await cron_repository.insert_crons(connection, organization_id=organization.id, crons=[new])
    return cron


async def get(engine: AsyncEngine, organization: Organization, cron_id: UUID) -> Cron | None:
    async with transaction(engine) as connection:
        return await cron_repository.get_cron(connection, organization_id=organization.id, cron_id=cron_id)


async def change(engine: AsyncEngine, cron: Cron, **changes: Any) -> Cron:
    """Change a cron as its routes do: under its lock."""
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        return await cron_repository.update_cron(
            connection, cron=locked, definition=replace(locked.definition, **changes), updated_by="key:2"
        )


async def delete(engine: AsyncEngine, cron: Cron) -> None:
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        await cron_repository.delete_cron(connection, cron=locked, deleted_by="key:3")


RESOURCE = DefiningResource(namespace="acme", name="nightly", uid="a uid", generation=4, scope="a scope")


def versions(database: Any, columns: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(
        f"SELECT {columns} FROM scheduler.cron_job_versions ORDER BY generation"
    )
    return found


async def test_a_cron_is_read_as_it_was_written(engine: AsyncEngine, organization: Organization, database: Any) -> None:
    database.set_clock(NOON, speed=0)
    cron_id = uuid4()
    async with transaction(engine) as connection:
        new = NewCron(
            id=cron_id,
            definition=DEFINITION,
            created_by="key:1",
            resource=RESOURCE,
        )
        [inserted] = await cron_repository.insert_crons(connection, organization_id=organization.id, crons=[new])
    assert inserted == Cron(
        id=cron_id,
        organization_id=organization.id,
        definition=DEFINITION,
        generation=1,
        effective_from=NOON,
        resource=RESOURCE,
        created_at=NOON,
        created_by="key:1",
        updated_at=NOON,
        updated_by="key:1",
    )
    assert inserted.source is CronSource.KUBERNETES
    assert await get(engine, organization, cron_id) == inserted


async def test_a_cron_and_its_first_version_are_written_in_one_round_trip(
    engine: AsyncEngine, organization: Organization, database: Any, statements: list[Any]
) -> None:
    statements.clear()
    async with transaction(engine) as connection:
        cron = await insert(connection, organization)
    assert len(statements) == 1
    assert versions(database, "cron_id, generation, effective_from, cron_expr, tz, enabled") == [
        (cron.id, 1, cron.effective_from, "0 9 * * MON-FRI", "Europe/Paris", True)
    ]
    of_cron, of_version = (
        database.execute(
            f"""SELECT overlap, catchup, catchup_window, timeout, max_attempts, backoff_initial, backoff_maximum,
                       jitter, starts_at, ends_at, max_runs FROM scheduler.{table}"""
        )
        for table in ("cron_jobs", "cron_job_versions")
    )
    assert of_cron == of_version


async def test_a_name_is_taken_once_in_an_organization(
    engine: AsyncEngine, organization: Organization, other_organization: Organization
) -> None:
    async with transaction(engine) as connection:
        await insert(connection, organization)
        await insert(connection, other_organization)
    with pytest.raises(CronNameTakenError, match="nightly"):
        async with transaction(engine) as connection:
            await insert(connection, organization)


async def test_a_cron_cannot_take_the_name_of_another(engine: AsyncEngine, add_cron: Any) -> None:
    await add_cron("first")
    second = await add_cron("second")
    with pytest.raises(CronNameTakenError, match="first"):
        await change(engine, second, name="first")


async def test_another_constraint_is_not_taken_for_a_name_that_is_in_use(
    engine: AsyncEngine, organization: Organization
) -> None:
    unending = replace(DEFINITION, policy=replace(DEFINITION.policy, timeout=timedelta(days=400)))
    with pytest.raises(IntegrityError, match="timeout_bounded"):
        async with transaction(engine) as connection:
            await insert(connection, organization, unending)


async def test_another_organizations_cron_is_absent(
    engine: AsyncEngine, organization: Organization, other_organization: Organization, add_cron: Any
) -> None:
    cron = await add_cron()
    assert await get(engine, organization, cron.id) == cron
    assert await get(engine, other_organization, cron.id) is None
    async with transaction(engine) as connection:
        stranger: dict[str, Any] = {"organization_id": other_organization.id}
        assert await cron_repository.lock_cron(connection, **stranger, cron_id=cron.id) is None
        assert await cron_repository.list_crons(connection, **stranger, after=None, limit=10) == []


async def test_a_change_reaches_no_cron_of_another_organization(
    engine: AsyncEngine, organization: Organization, other_organization: Organization, add_cron: Any
) -> None:
    cron = await add_cron()
    forged = replace(cron, organization_id=other_organization.id)
    with pytest.raises(NoResultFound):
        async with transaction(engine) as connection:
            await cron_repository.update_cron(
                connection, cron=forged, definition=replace(cron.definition, enabled=False), updated_by="them"
            )
    with pytest.raises(NoResultFound):
        async with transaction(engine) as connection:
            await cron_repository.delete_cron(connection, cron=forged, deleted_by="them")
    assert await get(engine, organization, cron.id) == cron


async def test_pages_of_crons_hold_each_once_and_in_order(
    engine: AsyncEngine, organization: Organization, add_cron: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    made = [await add_cron(f"cron {n}") for n in range(5)]
    listed: list[Cron] = []
    async with transaction(engine) as connection:
        while page := await cron_repository.list_crons(
            connection,
            organization_id=organization.id,
            after=(listed[-1].created_at, listed[-1].id) if listed else None,
            limit=2,
        ):
            assert len(page) <= 2
            listed.extend(page)
    assert listed == sorted(made, key=lambda cron: cron.id)


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ({}, ["a", "b", "c"]),
        ({"entrypoint": "my_entry"}, ["b", "c"]),
        ({"entrypoint": "no such entry"}, []),
        ({"enabled": True}, ["a", "b"]),
        ({"enabled": False}, ["c"]),
        ({"name": "b"}, ["b"]),
        ({"name": "B"}, []),
        ({"entrypoint": "my_entry", "enabled": True, "name": "b"}, ["b"]),
    ],
)
async def test_crons_are_listed_by_what_is_asked(
    engine: AsyncEngine, organization: Organization, add_cron: Any, question: dict[str, Any], names: list[str]
) -> None:
    await add_cron("a")
    await add_cron("b", entrypoint="my_entry")
    await add_cron("c", entrypoint="my_entry", enabled=False)
    await delete(engine, await add_cron("d", entrypoint="my_entry"))
    async with transaction(engine) as connection:
        listed = await cron_repository.list_crons(
            connection, organization_id=organization.id, after=None, limit=10, **question
        )
    assert [cron.definition.name for cron in listed] == names


async def test_the_same_definition_again_changes_nothing(engine: AsyncEngine, organization: Organization) -> None:
    async with transaction(engine) as connection:
        cron = await insert(connection, organization)
    assert await change(engine, cron, user_payload=dict(reversed(PAYLOAD.items()))) == cron
    assert await get(engine, organization, cron.id) == cron


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"entrypoint": "my_entry"},
        {"user_payload": {"flag": True}},
        {"execution_payload": {"flag": 1.0}},
        {"name": "another", "user_payload": {}},
    ],
)
async def test_a_change_that_moves_no_fire_counts_as_a_generation_and_adds_no_version(
    engine: AsyncEngine, organization: Organization, add_cron: Any, database: Any, changes: dict[str, Any]
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron(payload={"flag": 1})
    database.set_clock(LATER, speed=0)
    changed = await change(engine, cron, **changes)
    assert changed == replace(
        cron, definition=replace(cron.definition, **changes), generation=2, updated_at=LATER, updated_by="key:2"
    )
    assert repr(await get(engine, organization, cron.id)) == repr(changed)
    assert versions(database, "generation") == [(1,)]


POLICY = Policy(timeout=timedelta(hours=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"cron_expr": "0 9 * * *"},
        {"tz": "Asia/Tokyo"},
        {"enabled": False},
        {"policy": replace(POLICY, timeout=timedelta(seconds=5))},
        {"policy": replace(POLICY, catchup_window=timedelta(seconds=5))},
        {"policy": replace(POLICY, overlap=Overlap.ALLOW)},
        {"policy": replace(POLICY, ends_at=LATER, max_runs=3)},
        {"cron_expr": "@daily", "enabled": False, "name": "another"},
    ],
)
async def test_a_change_of_schedule_state_or_policy_is_in_force_from_now_on_and_adds_a_version(
    engine: AsyncEngine, organization: Organization, add_cron: Any, database: Any, changes: dict[str, Any]
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron()
    database.set_clock(LATER, speed=0)
    changed = await change(engine, cron, **changes)
    definition = replace(cron.definition, **changes)
    assert changed == replace(
        cron, definition=definition, generation=2, effective_from=LATER, updated_at=LATER, updated_by="key:2"
    )
    assert await get(engine, organization, cron.id) == changed
    policy = definition.policy
    assert versions(
        database,
        "generation, effective_from, cron_expr, tz, enabled, overlap, catchup_window, timeout, ends_at, max_runs",
    )[1] == (
        2,
        LATER,
        definition.cron_expr,
        definition.tz,
        definition.enabled,
        policy.overlap.value,
        policy.catchup_window,
        policy.timeout,
        policy.ends_at,
        policy.max_runs,
    )


async def test_pausing_a_paused_cron_changes_nothing(engine: AsyncEngine, add_cron: Any, database: Any) -> None:
    cron = await add_cron()
    paused = await change(engine, cron, enabled=False)
    assert await change(engine, cron, enabled=False) == paused
    assert versions(database, "generation, enabled") == [(1, True), (2, False)]


async def test_a_change_is_in_force_from_the_moment_it_holds_the_row_and_not_from_when_it_asked(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron()
    async with engine.connect() as claim, engine.connect() as watcher:
        await claim.execute(text("SELECT 1 FROM scheduler.cron_jobs FOR SHARE"))
        asked = asyncio.create_task(change(engine, cron, enabled=False))
        async with asyncio.timeout(HANG_GUARD):
            while not await watcher.scalar(text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)")):
                pass
        database.set_clock(LATER, speed=0)
        await claim.rollback()
        async with asyncio.timeout(HANG_GUARD):
            changed = await asked
    assert changed.effective_from == LATER


async def test_a_cron_that_is_being_changed_is_passed_over_by_a_claim(engine: AsyncEngine, add_cron: Any) -> None:
    cron = await add_cron()
    claim = text("SELECT id FROM scheduler.cron_jobs FOR SHARE SKIP LOCKED")
    async with transaction(engine) as connection:
        await cron_repository.lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        async with transaction(engine) as claiming:
            assert list(await claiming.scalars(claim)) == []
    async with transaction(engine) as claiming:
        assert list(await claiming.scalars(claim)) == [cron.id]


async def test_a_deleted_cron_is_absent_and_its_row_and_runs_are_kept(
    engine: AsyncEngine, organization: Organization, add_cron: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron()
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at)
           SELECT organization_id, id, scheduler.now(), 'manual', 'completed', 'Completed', '', 1, scheduler.now()
           FROM scheduler.cron_jobs"""
    )
    database.set_clock(LATER, speed=0)
    await delete(engine, cron)
    assert await get(engine, organization, cron.id) is None
    async with transaction(engine) as connection:
        identity: dict[str, Any] = {"organization_id": organization.id}
        assert await cron_repository.lock_cron(connection, **identity, cron_id=cron.id) is None
        assert await cron_repository.list_crons(connection, **identity, after=None, limit=10) == []
    kept = database.execute(
        "SELECT generation, effective_from, deleted_at, deleted_by, updated_at FROM scheduler.cron_jobs"
    )
    assert kept == [(2, LATER, LATER, "key:3", LATER)]
    assert versions(database, "generation, effective_from, enabled") == [(1, NOON, True), (2, LATER, False)]
    assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(1,)]


async def test_the_name_of_a_deleted_cron_is_free(engine: AsyncEngine, add_cron: Any) -> None:
    for _ in range(3):
        await delete(engine, await add_cron("phoenix"))
    await add_cron("phoenix")


async def test_every_change_is_stamped_with_its_transaction_even_one_made_by_hand(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    async def changed_since(snapshot: str) -> bool:
        rows = database.execute(f"SELECT 1 FROM scheduler.cron_jobs WHERE changed_by_transaction >= '{snapshot}'")
        return bool(rows)

    def snapshot() -> str:
        oldest: str = database.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0]
        return oldest

    cron = await add_cron()
    before_update = snapshot()
    assert not await changed_since(before_update)
    await change(engine, cron, enabled=False)
    assert await changed_since(before_update)
    by_hand = snapshot()
    database.execute("UPDATE scheduler.cron_jobs SET enabled = true, changed_by_transaction = '3'")
    assert await changed_since(by_hand)


async def test_pages_of_a_hundred_thousand_crons_are_read_through_an_index(
    engine: AsyncEngine, many_crons: Organization, statements: list[Any]
) -> None:
    questions: list[tuple[dict[str, Any], str]] = [
        ({}, "cron_jobs_by_organization"),
        ({"after": (NOON + timedelta(seconds=50_000), UUID(int=0))}, "cron_jobs_by_organization"),
        ({"enabled": True}, "cron_jobs_by_organization"),
        ({"name": "cron 777"}, "cron_jobs_name_key"),
    ]
    async with transaction(engine) as connection:
        for question, index in questions:
            page = await cron_repository.list_crons(
                connection, organization_id=many_crons.id, **{"after": None, "limit": 51, **question}
            )
            statement, parameters = statements[-1]
            plan = "\n".join((await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)).scalars())
            assert page
            assert index in plan
            assert "Seq Scan" not in plan


@pytest.fixture
def many_crons(database: Any, organization: Organization) -> Organization:
    """An organization with 100,000 crons, made a second apart."""
    database.execute(
        """INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                            execution_payload, timeout, created_at, created_by, updated_by)
           SELECT %s, 'cron ' || n, '* * * * *', 'UTC', 'no_op', '{}', '{}', '1 h',
                  %s + n * interval '1 second', '', ''
           FROM generate_series(1, 100000) AS n""",
        (organization.id, NOON),
    )
    database.execute("ANALYZE scheduler.cron_jobs")
    return organization
