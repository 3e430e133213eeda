"""A burst: many no-op in-process crons due at the same minute, until every run is a terminal row.

The runner is a process of its own, as in an installation. Time is taken from the rows: from the minute itself to the
last `finished_at`, both by the database's clock.
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import URL

from bench import naive, postgresql_limit
from bench.role import CLOCK_LEAD, FINISHED, SCHEDULED, running, set_clock, wait_for
from bench.server import add_crons, connect, fresh_database, running_server

COUNT = 10_000
_MINUTE = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def measure(url: URL, *, count: int) -> float:
    """Let `count` crons come due at once; returns the seconds until all of their runs are terminal."""
    with connect(url) as connection:
        set_clock(connection, _MINUTE - timedelta(hours=1))
        add_crons(connection, count=count, cron_expr="0 12 * * *")
        with running("runner", url):
            wait_for(connection, SCHEDULED, count)
            set_clock(connection, _MINUTE - CLOCK_LEAD)
            wait_for(connection, FINISHED, count)
        row = connection.execute(
            """SELECT extract(epoch FROM max(finished_at) - min(scheduled_for)),
                      count(*) FILTER (WHERE status = 'completed')
               FROM scheduler.cron_runs"""
        ).fetchone()
    assert row is not None
    seconds, completed = row
    assert completed == count, f"only {completed} of {count} runs completed"
    return float(str(seconds))


def report() -> None:
    """Print the three figures of one run, and how they compare."""
    with running_server() as server:
        ours = COUNT / measure(fresh_database(server, "ours"), count=COUNT)
        limit = COUNT / postgresql_limit.measure(fresh_database(server, "postgresql_limit"), count=COUNT)
        stock = COUNT / naive.measure(fresh_database(server, "naive"), count=COUNT)
    print(f"Burst of {COUNT:,} due no-op crons, until every run is a terminal row (fsync on)")
    print(f"  cronplane                             {ours:>9,.0f} runs/s")
    print(f"  naive APScheduler, row by row         {stock:>9,.0f} runs/s   cronplane is {ours / stock:.1f} x this")
    print(f"  PostgreSQL alone, batched             {limit:>9,.0f} runs/s   cronplane is {ours / limit:.2f} of this")
