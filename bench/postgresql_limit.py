"""What PostgreSQL itself can do with our rows: claim and finish in batches of 10,000, and nothing else.

The table is our own, with its keys, checks and indexes; one transaction inserts the runs, another ends them.
"""

import time
from uuid import uuid4

from sqlalchemy import URL

from bench.server import add_crons, connect

_CLAIM = """
    INSERT INTO scheduler.cron_runs (id, organization_id, cron_id, scheduled_for, trigger_kind, status, reason, message,
                                     generation)
    SELECT run.id, cron.organization_id, cron.id, %s, 'schedule', 'queued', 'Claimed', 'Claimed.', 1
    FROM unnest(%s::uuid[], %s::uuid[]) AS run (id, cron_id) JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    ON CONFLICT (cron_id, scheduled_for) WHERE trigger_kind = 'schedule' DO NOTHING
"""
_FINISH = """
    UPDATE scheduler.cron_runs run
    SET status = 'completed', reason = 'Completed', message = 'Done.', finished_at = clock_timestamp()
    FROM unnest(%s::uuid[]) AS done (id) WHERE run.id = done.id AND run.status = 'queued'
"""


def measure(url: URL, *, count: int) -> float:
    """Claim and finish `count` runs; returns the seconds that took."""
    with connect(url) as connection:
        add_crons(connection, count=count, cron_expr="* * * * *")
        crons = [row[0] for row in connection.execute("SELECT id FROM scheduler.cron_jobs").fetchall()]
        runs = [uuid4() for _ in crons]
        started = time.perf_counter()
        connection.execute(_CLAIM, ("2026-01-01T00:00:00Z", runs, crons))
        connection.execute(_FINISH, (runs,))
        return time.perf_counter() - started
