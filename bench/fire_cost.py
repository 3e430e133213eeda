"""What a fire costs with 1,000, 10,000 and 100,000 crons in the table, of which 500 come due at once.

Bursts are repeated, a day apart by the database's clock, which is set on in between. Cost is the runner's own CPU, from
before a burst to after its last outcome is recorded, divided by its fires; workers and PostgreSQL are not in it.
"""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from statistics import median

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import URL

from bench.role import CLOCK_LEAD, FINISHED, SCHEDULED, running, set_clock, wait_for
from bench.server import add_crons, connect, fresh_database, running_server

SIZES = (1_000, 10_000, 100_000)
DUE = 500
BURSTS = 7
AIM = 1.3
_NOON = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
_SETTLE = 2.0


def measure(url: URL, *, size: int) -> float:
    """Give the microseconds of the runner's CPU per fire, the median of the bursts."""
    with connect(url) as connection:
        set_clock(connection, _NOON - timedelta(hours=1))
        add_crons(connection, count=DUE, cron_expr="0 12 * * *")
        if size > DUE:
            add_crons(connection, count=size - DUE, cron_expr="0 0 1 1 *", organization="the others")
        connection.execute("VACUUM ANALYZE")
        costs = []
        with running("runner", url) as runner:
            wait_for(connection, SCHEDULED, size)
            time.sleep(_SETTLE)
            for burst in range(BURSTS):
                set_clock(connection, _NOON + timedelta(days=burst) - CLOCK_LEAD)
                before = runner.cpu_seconds()
                wait_for(connection, FINISHED, DUE * (burst + 1))
                costs.append((runner.cpu_seconds() - before) / DUE * 1e6)
        # The first burst meets cold caches, and workers that are still to be forked.
        return median(costs[1:])


async def measure_stock(*, size: int) -> float:
    """Give the microseconds per fire of stock APScheduler with its store in memory, whose jobs do nothing."""
    scheduler = AsyncIOScheduler(
        jobstores={"default": MemoryJobStore()},
        executors={"default": AsyncIOExecutor()},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    loop = asyncio.get_running_loop()
    left, done = [DUE], loop.create_future()

    def on_executed(_: object) -> None:
        left[0] -= 1
        if not left[0]:
            done.set_result(None)

    async def do_nothing() -> None:
        pass

    scheduler.add_listener(on_executed, EVENT_JOB_EXECUTED)
    scheduler.start(paused=True)
    for number in range(size):
        due = {"next_run_time": datetime.now(UTC)} if number < DUE else {}
        scheduler.add_job(do_nothing, CronTrigger(month=1, day=1, hour=0, minute=0, timezone=UTC), **due)
    before = time.process_time()
    scheduler.resume()
    await done
    cost = (time.process_time() - before) / DUE * 1e6
    scheduler.shutdown()
    return cost


def report() -> None:
    """Print the cost at each size, beside stock APScheduler's."""
    print(f"The cost of a fire, by crons in the table, {DUE} due at once (CPU of the runner's process)")
    with running_server() as server:
        costs = [measure(fresh_database(server, f"crons_{size}"), size=size) for size in SIZES]
    stock = [asyncio.run(measure_stock(size=size)) for size in SIZES]
    for size, cost, stock_cost in zip(SIZES, costs, stock, strict=True):
        print(
            f"  {size:>9,} crons                       {cost:>9.0f} us       {cost / costs[0]:.2f} x the first"
            f"   stock APScheduler in memory, nothing recorded: {stock_cost:.0f} us, {stock_cost / stock[0]:.1f} x"
        )
    print(f"  at most {AIM} x from first to last is the aim")
