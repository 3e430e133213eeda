"""What a claim does with a job that is not as it is stored, or whose time has come by our reckoning alone."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import job_state_repository
from cronplane_core import lease as leases
from cronplane_core.database import transaction
from cronplane_core.job_state_repository import JobState
from cronplane_core.schedule import Schedule
from cronplane_operator.claimer import Claimer
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.fire_trigger import FireTrigger
from cronplane_operator.job_store import CronJob
from cronplane_operator.run_recorder import RunRecorder
from tests.conftest import HANG_GUARD

DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TRIGGER = FireTrigger(source=Schedule.parse("* * * * *", "UTC"), clock=DatabaseClock())


@pytest.mark.parametrize(
    ("now", "stored", "reckoned", "is_claimed"),
    [
        (DUE, DUE, DUE + MINUTE, True),
        # It was claimed before, and the answer was lost.
        (DUE + MINUTE, DUE + MINUTE, DUE + 2 * MINUTE, False),
        # This process was ahead of the database when it looked what is due.
        (DUE, DUE, DUE + 50 * MINUTE, False),
        (DUE - MINUTE, DUE, DUE + MINUTE, False),
    ],
)
async def test_what_cannot_be_claimed_as_it_was_reckoned_is_made_anew_and_nothing_of_it_is_recorded(
    *,
    engine: AsyncEngine,
    add_cron: Any,
    database: Any,
    now: datetime,
    stored: datetime,
    reckoned: datetime,
    is_claimed: bool,
) -> None:
    cron = await add_cron()
    database.set_clock(now, speed=0)
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="a runner", duration=MINUTE)
        jobs = [JobState(id=cron.id, generation=cron.generation, next_run_time=stored)]
        await job_state_repository.store(connection, jobs=jobs)
    assert lease is not None
    told: asyncio.Queue[tuple[bool, list[UUID]]] = asyncio.Queue()
    claimer = Claimer(
        engine=engine,
        lease=lease,
        settled=asyncio.Lock(),
        recorder=RunRecorder(),
        on_queued=lambda runs: told.put_nowait((True, [run.id for run in runs])),
        on_outdated=lambda cron_ids: told.put_nowait((False, list(cron_ids))),
    )
    due = CronJob(
        cron_id=cron.id,
        organization_id=cron.organization_id,
        generation=cron.generation,
        trigger=TRIGGER,
        next_run_time=reckoned,
    )
    claimer.executor.submit_job(due, [DUE])
    claiming = asyncio.create_task(claimer.run())
    async with asyncio.timeout(HANG_GUARD):
        answer = await told.get()
    claiming.cancel()
    with suppress(asyncio.CancelledError):
        await claiming
    runs = [run_id for (run_id,) in database.execute("SELECT id FROM scheduler.cron_runs")]
    assert answer == ((True, runs) if is_claimed else (False, [cron.id]))
    assert len(runs) == int(is_claimed)
    assert len(claimer.executor) == 0
