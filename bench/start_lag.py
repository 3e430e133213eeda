"""How late runs start at 100 fires a minute: from the scheduled instant to the start gate, by the database's clock.

Schedules fall on whole minutes, so all 100 of a minute come due at one instant. The clock is set on to just before each
next minute; between that and the minute, time goes as fast as it does. The naive form beside it is stock APScheduler
with its store in PostgreSQL, which writes one row as each of its runs starts.
"""

import time
from datetime import UTC, datetime, timedelta
from statistics import quantiles

from sqlalchemy import URL

from bench import naive
from bench.role import CLOCK_LEAD, FINISHED, SCHEDULED, running, set_clock, wait_for
from bench.server import add_crons, connect, fresh_database, running_server

CRONS = 100
MINUTES = 15
AIM = 0.03
_START = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
_SETTLE = 2.0
_LAGS = """
    SELECT extract(epoch FROM started_at - scheduled_for) FROM scheduler.cron_runs
    WHERE status = 'completed' AND scheduled_for > %s
"""


def measure(url: URL) -> list[float]:
    """Give each run's lag in seconds; the first minute, whose workers are not warm, is left out."""
    with connect(url) as connection:
        set_clock(connection, _START)
        add_crons(connection, count=CRONS, cron_expr="* * * * *")
        with running("runner", url):
            wait_for(connection, SCHEDULED, CRONS)
            time.sleep(_SETTLE)
            for minute in range(1, MINUTES + 2):
                set_clock(connection, _START + timedelta(minutes=minute) - CLOCK_LEAD)
                wait_for(connection, FINISHED, CRONS * minute)
        lags = connection.execute(_LAGS, (_START + timedelta(minutes=1),)).fetchall()
    return [float(str(lag)) for (lag,) in lags]


def report() -> None:
    """Print the 99th percentile, ours and the naive form's."""
    with running_server() as server:
        ours = measure(fresh_database(server, "ours"))
        stock = naive.start_lags(fresh_database(server, "naive"), count=CRONS)
    print(f"Start lag, {CRONS} fires due at once each minute, {len(ours):,} runs")
    for name, lags in (("cronplane", ours), ("naive APScheduler, row by row", stock)):
        p50, p99 = quantiles(lags, n=100)[49], quantiles(lags, n=100)[98]
        print(f"  {name:<37} {1000 * p99:>9.1f} ms p99   (p50 {1000 * p50:.1f} ms, longest {1000 * max(lags):.1f} ms)")
    print(f"  at most {1000 * AIM:g} ms is the aim")
