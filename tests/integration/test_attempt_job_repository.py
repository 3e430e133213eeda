"""Which Jobs are noted for attempts, and which of those that are not may still be wanted."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import attempt_job_repository as attempt_jobs
from cronplane_core import lease, run_transitions
from cronplane_core.attempt_job_repository import AttemptJob
from cronplane_core.database import transaction
from cronplane_core.run_repository import Run, insert_manual_run
from cronplane_core.tables import Execution, RunStatus

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def job_of(run_id: UUID, *, uid: str = "a uid") -> AttemptJob:
    return AttemptJob(run_id=run_id, number=1, namespace="runs", name="a-job", uid=uid, service_account="run")


@pytest.fixture
def queue(engine: AsyncEngine, add_cron: Any) -> Callable[[], Any]:
    """Queue a run by hand."""

    async def queue() -> Run:
        cron = await add_cron(enabled=False)
        async with transaction(engine) as connection:
            return await insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)

    return queue


async def wanted(engine: AsyncEngine, run: Run) -> bool:
    async with transaction(engine) as connection:
        return bool(await attempt_jobs.read_wanted(connection, attempts=[(run.id, 1)]))


async def test_the_job_of_an_attempt_that_has_yet_to_begin_is_wanted(engine: AsyncEngine, queue: Any) -> None:
    assert await wanted(engine, await queue())


async def test_a_job_that_was_noted_a_moment_ago_is_wanted_though_its_attempt_has_begun(
    engine: AsyncEngine, queue: Any, database: Any
) -> None:
    run = await queue()
    async with transaction(engine) as connection:
        await attempt_jobs.keep(connection, jobs=[job_of(run.id)])
    database.execute("UPDATE scheduler.cron_runs SET status = 'running', attempts = 1")
    assert await wanted(engine, run)


async def test_a_job_that_nobody_noted_of_an_attempt_that_cannot_begin_is_not_wanted(
    engine: AsyncEngine, queue: Any, database: Any
) -> None:
    run = await queue()
    database.execute("UPDATE scheduler.cron_runs SET status = 'cancelled', finished_at = scheduler.now()")
    assert not await wanted(engine, run)


async def test_an_attempt_that_went_another_way_is_not_the_jobs(engine: AsyncEngine, queue: Any, database: Any) -> None:
    run = await queue()
    async with transaction(engine) as connection:
        await attempt_jobs.keep(connection, jobs=[job_of(run.id)])
        await run_transitions.start(
            connection,
            nonces={run.id: uuid4()},
            epoch=1,
            location="a runner",
            execution=Execution.IN_PROCESS,
            now=await lease.database_time(connection),
            lease=timedelta(0),
        )
        [found] = await attempt_jobs.read_unsettled(connection)
    assert (found.status, found.is_waiting) == (RunStatus.RUNNING, False)
    assert (found.has_begun, found.under_way, found.deadline) == (False, None, None)


async def test_a_pod_is_awaited_since_its_job_was_noted_or_since_its_attempt_passed_the_gate(
    engine: AsyncEngine, queue: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    run = await queue()
    async with transaction(engine) as connection:
        await attempt_jobs.keep(connection, jobs=[job_of(run.id)])
        [noted] = await attempt_jobs.read_unsettled(connection)
        await run_transitions.start(
            connection,
            nonces={run.id: uuid4()},
            epoch=1,
            location="a-job",
            execution=Execution.POD,
            now=NOON + timedelta(hours=1),
            lease=timedelta(0),
            is_observed=True,
        )
        [let_in] = await attempt_jobs.read_unsettled(connection)
    assert (noted.awaited_since, let_in.awaited_since) == (NOON, NOON + timedelta(hours=1))


async def test_the_log_that_was_kept_of_a_pod_stays_when_there_is_no_other(
    engine: AsyncEngine, queue: Any, database: Any
) -> None:
    run = await queue()
    async with transaction(engine) as connection:
        await attempt_jobs.keep(connection, jobs=[job_of(run.id)])
        await attempt_jobs.keep_log(connection, job=job_of(run.id), log="so far")
        await attempt_jobs.settle(connection, job=job_of(run.id), log=None)
    assert database.execute("SELECT log FROM scheduler.attempt_jobs") == [("so far",)]


async def test_the_job_that_was_noted_first_stays_until_it_is_forgotten(engine: AsyncEngine, queue: Any) -> None:
    run = await queue()
    for uid in ("first", "second"):
        async with transaction(engine) as connection:
            await attempt_jobs.keep(connection, jobs=[job_of(run.id, uid=uid)])
    async with transaction(engine) as connection:
        assert await attempt_jobs.read(connection, run_id=run.id, number=1) == job_of(run.id, uid="first")
        await attempt_jobs.forget(connection, job=job_of(run.id, uid="second"))
        assert await attempt_jobs.read(connection, run_id=run.id, number=1) is not None
        await attempt_jobs.forget(connection, job=job_of(run.id, uid="first"))
        assert await attempt_jobs.read(connection, run_id=run.id, number=1) is None
