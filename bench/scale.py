"""100,000 enabled crons: how long a new runner takes until all are scheduled, and what they cost while none is due.

Most of them share their schedule with others, as crons do, and there are thousands of different ones. Time is taken
from the start of the process, with nothing computed before, to the last row in `apscheduler_jobs`.
"""

import time
from datetime import UTC, datetime

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from psycopg import Connection
from sqlalchemy import URL

from bench.role import SCHEDULED, running, set_clock, wait_for
from bench.server import add_crons, connect, fresh_database, running_server

COUNT = 100_000
STOCK_COUNT = 5_000
START_AIM, MEMORY_AIM, IDLE_AIM = 10.0, 400.0, 3.0
_SETTLE = 5.0
_IDLE_SECONDS = 30.0
# A March in which none of the crons below comes due.
_NOW = datetime(2026, 3, 10, 12, 0, 30, tzinfo=UTC)


def measure(url: URL, *, count: int) -> tuple[float, float, float]:
    """Give the seconds from start to all scheduled, the megabytes of the runner, and percent of a core while idle."""
    with connect(url) as connection:
        set_clock(connection, _NOW)
        add_crons(connection, count=count, cron_expr="0 0 1 1 *")
        _spread(connection)
        started = time.perf_counter()
        with running("runner", url) as runner:
            wait_for(connection, SCHEDULED, count)
            seconds = time.perf_counter() - started
            time.sleep(_SETTLE)
            before, since = runner.cpu_seconds(), time.perf_counter()
            time.sleep(_IDLE_SECONDS)
            idle = 100 * (runner.cpu_seconds() - before) / (time.perf_counter() - since)
            return seconds, runner.resident_megabytes(), idle


def measure_stock(url: URL, *, count: int) -> float:
    """Give the seconds in which stock APScheduler adds so many jobs to its store of SQLAlchemy."""
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=url.render_as_string(hide_password=False))}, timezone=UTC
    )
    scheduler.start(paused=True)
    started = time.perf_counter()
    for minute in range(count):
        trigger = CronTrigger(minute=minute % 60, hour=minute // 60 % 24, day=1, month=1, timezone=UTC)
        scheduler.add_job(print, trigger)
    elapsed = time.perf_counter() - started
    scheduler.shutdown()
    return elapsed


def _spread(connection: Connection[tuple[object, ...]]) -> None:
    """Give the crons 1,440 times of day on 28 days of January: 40,320 schedules, each of two or three crons."""
    connection.execute(
        """
        UPDATE scheduler.cron_jobs SET cron_expr = format('%s %s %s 1 *', n % 60, n / 60 % 24, 1 + n % 28)
        FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM scheduler.cron_jobs) AS numbered
        WHERE numbered.id = cron_jobs.id
        """
    )
    connection.execute(
        """
        UPDATE scheduler.cron_job_versions version SET cron_expr = cron.cron_expr
        FROM scheduler.cron_jobs cron WHERE cron.id = version.cron_id
        """
    )
    connection.execute("VACUUM ANALYZE")


def report() -> None:
    """Print the figures of one run, and how they compare."""
    with running_server() as server:
        seconds, megabytes, idle = measure(fresh_database(server, "ours"), count=COUNT)
        stock = measure_stock(fresh_database(server, "stock"), count=STOCK_COUNT) * COUNT / STOCK_COUNT
    print(f"{COUNT:,} enabled crons, none computed before, none due")
    print(f"  from start to all scheduled           {seconds:>9.1f} s        at most {START_AIM:g} s is the aim")
    print(f"  stock APScheduler, {STOCK_COUNT:,} jobs, scaled   {stock:>9.1f} s        {stock / seconds:.1f} x ours")
    print(f"  the runner's resident memory          {megabytes:>9.0f} MB       at most {MEMORY_AIM:g} MB is the aim")
    print(f"  its CPU while idle                    {idle:>9.1f} %        at most {IDLE_AIM:g} % of a core is the aim")
