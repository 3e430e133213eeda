"""Runs as the API reads and triggers them, as the service's role."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import cron_repository, run_repository
from cronplane_core.cron_repository import Cron
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.run_repository import Attempt, Run, RunFilter
from cronplane_core.tables import ACTIVE_STATUSES, RunStatus, TriggerKind

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TERMINAL_STATUSES = [status for status in RunStatus if status not in ACTIVE_STATUSES]
HANG_GUARD = 30.0


def write_run(
    database: Any,
    cron: Cron,
    scheduled_for: datetime = NOON,
    status: RunStatus = RunStatus.COMPLETED,
    trigger_kind: TriggerKind = TriggerKind.SCHEDULE,
) -> UUID:
    """Write a run as the runner would leave it."""
    missed = (scheduled_for, 1) if status is RunStatus.MISSED else (None, None)
    finished_at = None if status in ACTIVE_STATUSES else scheduled_for
    written: UUID = database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at, missed_until, missed_count)
           VALUES (%s, %s, %s, %s, %s, 'Written', 'by hand', 1, %s, %s, %s) RETURNING id""",
        (cron.organization_id, cron.id, scheduled_for, trigger_kind.value, status.value, finished_at, *missed),
    )[0][0]
    return written


async def trigger(engine: AsyncEngine, cron: Cron, execution_payload: dict[str, Any] | None = None) -> Run:
    """Trigger a cron as its route does: under its lock."""
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        return await run_repository.insert_manual_run(
            connection, cron=locked, created_by="key:1", execution_payload=execution_payload
        )


async def page_of(connection: AsyncConnection, cron: Cron, **question: Any) -> list[Run]:
    asked = {"after": None, "limit": 10, "organization_id": cron.organization_id, "run_filter": RunFilter()}
    return await run_repository.list_runs(connection, cron_id=cron.id, **{**asked, **question})


async def listed(engine: AsyncEngine, cron: Cron, **question: Any) -> list[UUID]:
    async with transaction(engine) as connection:
        return [run.id for run in await page_of(connection, cron, **question)]


async def delete(engine: AsyncEngine, cron: Cron) -> None:
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        await cron_repository.delete_cron(connection, cron=locked, deleted_by="key:1")


async def test_a_triggered_run_is_queued_for_now(engine: AsyncEngine, add_cron: Any, database: Any) -> None:
    cron = await add_cron(enabled=False)
    database.set_clock(NOON, speed=0)
    run = await trigger(engine, cron)
    assert run == Run(
        id=run.id,
        organization_id=cron.organization_id,
        cron_id=cron.id,
        scheduled_for=NOON,
        trigger_kind=TriggerKind.MANUAL,
        status=RunStatus.QUEUED,
        reason="Triggered",
        message="The run was triggered and waits for a worker.",
        result=None,
        error=None,
        attempts=0,
        generation=1,
        created_at=NOON,
        created_by="key:1",
        started_at=None,
        finished_at=None,
        missed_until=None,
        missed_count=None,
        not_before=None,
        deadline=None,
        cancel_requested_at=None,
        cancel_requested_by=None,
        rerun_of=None,
    )
    async with transaction(engine) as connection:
        assert await page_of(connection, cron) == [run]


@pytest.mark.parametrize("payload", [None, {"n": 2**53 + 1, "text": "🚀"}, {}])
async def test_a_triggered_run_keeps_the_payload_it_was_given(
    engine: AsyncEngine, add_cron: Any, database: Any, payload: dict[str, Any] | None
) -> None:
    await trigger(engine, await add_cron(), payload)
    assert database.execute("SELECT execution_payload FROM scheduler.cron_runs") == [(payload,)]


@pytest.mark.parametrize("status", ACTIVE_STATUSES)
async def test_a_run_triggered_while_another_is_not_over_is_recorded_as_skipped(
    engine: AsyncEngine, add_cron: Any, database: Any, status: RunStatus
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron()
    active = write_run(database, cron, NOON - MINUTE, status)
    run = await trigger(engine, cron)
    assert (run.status, run.reason, run.finished_at, run.started_at) == (RunStatus.SKIPPED, "OverlapSkip", NOON, None)
    assert str(active) in run.message


async def test_runs_that_are_over_and_runs_of_other_crons_stand_in_nobodys_way(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    cron, neighbour = await add_cron("a"), await add_cron("b")
    write_run(database, neighbour, status=RunStatus.RUNNING)
    for minute, status in enumerate(TERMINAL_STATUSES):
        write_run(database, cron, NOON + minute * MINUTE, status)
    assert (await trigger(engine, cron)).status is RunStatus.QUEUED


async def test_of_two_triggers_at_once_one_is_queued_and_one_skipped(engine: AsyncEngine, add_cron: Any) -> None:
    cron = await add_cron()
    async with asyncio.timeout(HANG_GUARD):
        runs = await asyncio.gather(*(trigger(engine, cron) for _ in range(8)))
    assert sorted(run.status for run in runs) == ["queued"] + ["skipped"] * 7


async def test_pages_of_runs_hold_each_once_and_the_newest_first(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    cron = await add_cron()
    # Three of them for one instant: their ids decide.
    instants = [NOON, NOON + MINUTE, NOON + MINUTE, NOON + MINUTE, NOON + 2 * MINUTE]
    written = {write_run(database, cron, at, trigger_kind=TriggerKind.MANUAL): at for at in instants}
    found: list[Run] = []
    async with transaction(engine) as connection:
        while page := await page_of(
            connection, cron, limit=2, after=(found[-1].scheduled_for, found[-1].id) if found else None
        ):
            assert len(page) <= 2
            found.extend(page)
    assert [run.id for run in found] == sorted(written, key=lambda run_id: (written[run_id], run_id), reverse=True)


@pytest.mark.parametrize(
    ("run_filter", "minutes"),
    [
        (RunFilter(), [4, 3, 2, 1]),
        (RunFilter(statuses=[RunStatus.COMPLETED]), [1]),
        (RunFilter(statuses=[RunStatus.ERROR, RunStatus.MISSED]), [3, 2]),
        (RunFilter(statuses=[RunStatus.LOST]), []),
        (RunFilter(trigger_kind=TriggerKind.MANUAL), [4]),
        (RunFilter(scheduled_from=NOON + 2 * MINUTE), [4, 3, 2]),
        (RunFilter(scheduled_until=NOON + 2 * MINUTE), [2, 1]),
        (RunFilter(scheduled_from=NOON + 2 * MINUTE, scheduled_until=NOON + 3 * MINUTE), [3, 2]),
        (RunFilter(statuses=[RunStatus.QUEUED], trigger_kind=TriggerKind.SCHEDULE), []),
    ],
)
async def test_runs_are_listed_by_what_is_asked(
    engine: AsyncEngine, add_cron: Any, database: Any, run_filter: RunFilter, minutes: list[int]
) -> None:
    cron = await add_cron()
    written = {
        write_run(database, cron, NOON + MINUTE, RunStatus.COMPLETED): 1,
        write_run(database, cron, NOON + 2 * MINUTE, RunStatus.ERROR): 2,
        write_run(database, cron, NOON + 3 * MINUTE, RunStatus.MISSED): 3,
        write_run(database, cron, NOON + 4 * MINUTE, RunStatus.QUEUED, TriggerKind.MANUAL): 4,
    }
    assert [written[run_id] for run_id in await listed(engine, cron, run_filter=run_filter)] == minutes


async def test_a_run_is_read_with_its_attempts_in_order(engine: AsyncEngine, add_cron: Any, database: Any) -> None:
    cron = await add_cron()
    run_id = write_run(database, cron, status=RunStatus.RUNNING)
    database.execute(
        """INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at, started_at,
                                                finished_at, outcome, reason, message, error, output)
           VALUES (%s, 2, gen_random_uuid(), 1, 'there', %s, %s, NULL, NULL, NULL, NULL, NULL, NULL),
                  (%s, 1, gen_random_uuid(), 1, 'here', %s, %s, %s, 'error', 'Raised', 'no', '{"type": "E"}', 'out')""",
        (run_id, NOON, NOON + 2 * MINUTE, run_id, NOON, NOON, NOON + MINUTE),
    )
    async with transaction(engine) as connection:
        found = await run_repository.get_run(
            connection, organization_id=cron.organization_id, cron_id=cron.id, run_id=run_id
        )
    assert found is not None
    assert found[0].id == run_id
    unfinished = dict.fromkeys(("finished_at", "outcome", "reason", "message", "error", "output"))
    assert found[1] == [
        Attempt(
            number=1,
            location="here",
            started_at=NOON,
            finished_at=NOON + MINUTE,
            outcome=RunStatus.ERROR,
            reason="Raised",
            message="no",
            error={"type": "E"},
            output="out",
        ),
        Attempt(number=2, location="there", started_at=NOON + 2 * MINUTE, **unfinished),
    ]


async def test_runs_are_absent_for_others_under_another_cron_and_once_their_cron_is_deleted(
    engine: AsyncEngine, add_cron: Any, database: Any, other_organization: Organization
) -> None:
    cron, neighbour = await add_cron("a"), await add_cron("b")
    run_id = write_run(database, cron)

    async def is_found(organization_id: UUID, cron_id: UUID) -> bool:
        async with transaction(engine) as connection:
            read = await run_repository.get_run(
                connection, organization_id=organization_id, cron_id=cron_id, run_id=run_id
            )
            page = await run_repository.list_runs(
                connection,
                organization_id=organization_id,
                cron_id=cron_id,
                run_filter=RunFilter(),
                after=None,
                limit=10,
            )
        assert (read is not None) == (run_id in [run.id for run in page])
        return read is not None

    assert await is_found(cron.organization_id, cron.id)
    assert not await is_found(other_organization.id, cron.id)
    assert not await is_found(cron.organization_id, neighbour.id)
    assert not await is_found(cron.organization_id, uuid4())
    await delete(engine, cron)
    assert not await is_found(cron.organization_id, cron.id)


async def test_the_last_runs_of_many_crons_are_read_in_one_query(
    engine: AsyncEngine, add_cron: Any, database: Any, other_organization: Organization, statements: list[Any]
) -> None:
    crons = [await add_cron(f"cron {n}") for n in range(4)]
    strangers = await add_cron(organization_id=other_organization.id)
    for cron in (*crons[:3], strangers):
        write_run(database, cron, NOON)
    newest = {crons[0].id: write_run(database, crons[0], NOON + MINUTE, RunStatus.RUNNING)}
    newest[crons[1].id] = write_run(database, crons[1], NOON + MINUTE, RunStatus.MISSED)
    asked = [crons[0].id, crons[1].id, crons[3].id, strangers.id]
    async with transaction(engine) as connection:
        statements.clear()
        found = await run_repository.latest_runs(connection, organization_id=crons[0].organization_id, cron_ids=asked)
        assert len(statements) == 1
        assert await run_repository.latest_runs(connection, organization_id=other_organization.id, cron_ids=[]) == {}
    assert {cron_id: run.id for cron_id, run in found.items()} == newest


async def test_a_hundred_thousand_runs_are_read_through_an_index(
    engine: AsyncEngine, add_cron: Any, database: Any, statements: list[Any]
) -> None:
    crons = [await add_cron(f"cron {n}") for n in range(10)]
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at)
           SELECT organization_id, id, %s + n * interval '1 minute', 'schedule', 'completed', 'Completed', '', 1, %s
           FROM scheduler.cron_jobs CROSS JOIN generate_series(1, 10000) AS n""",
        (NOON, NOON),
    )
    database.execute("ANALYZE scheduler.cron_runs, scheduler.cron_jobs")
    cron = crons[0]
    middle = (NOON + 5000 * MINUTE, UUID(int=0))
    between = RunFilter(scheduled_from=NOON + 10 * MINUTE, scheduled_until=NOON + 500 * MINUTE)
    async with transaction(engine) as connection:

        async def plan() -> str:
            statement, parameters = statements[-1]
            return "\n".join((await connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)).scalars())

        assert len(await page_of(connection, cron)) == 10
        plans = [await plan()]
        assert len(await page_of(connection, cron, after=middle, run_filter=between)) == 10
        plans.append(await plan())
        latest = await run_repository.latest_runs(
            connection, organization_id=cron.organization_id, cron_ids=[cron.id for cron in crons]
        )
        assert {run.scheduled_for for run in latest.values()} == {NOON + 10_000 * MINUTE}
        plans.append(await plan())
    for text in plans:
        assert "Backward using cron_runs_by_cron" in text
        assert "Seq Scan on cron_runs" not in text
        assert "Sort" not in text
