"""What a part of the soak runs on: a PostgreSQL of its own whose clock runs fast, an organization, and crons to fire.

The server keeps every default of durability. Crons with more than one attempt, and such that fail at first, are written
as registrations would; the traffic registers others over the API.
"""

import json
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psycopg
from sqlalchemy import URL

from bench.server import connect, fresh_database, make_key, running_server
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_entries.registry import CRON_REGISTRY, load_entries

# A minute of the database's clock is two seconds, so that a leader's lease of half a minute is one.
SPEED = 30
_START = datetime(2026, 6, 1, tzinfo=UTC)
_CRONS = 180
SCHEDULES = ("* * * * *", "*/2 * * * *", "1-59/2 * * * *", "*/3 * * * *")
_SECONDS = (*[0.0] * 7, 0.02, 0.02, 0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where everything of a part is. `owner_url` is the owner's; `ledger`, `kills` and `log` are files."""

    server: EmbeddedPostgresql
    owner_url: URL
    organization_id: UUID
    key: str
    installation_key: str
    ledger: Path
    kills: Path
    log: Path


@contextmanager
def prepared(folder: Path, chance: random.Random) -> Iterator[Scene]:
    """Have a server with crons that are about to fire; its files go into `folder`, and the server goes at the end."""
    load_entries()
    assert "keep_ledger" in map(str, CRON_REGISTRY), "PYTHONPATH must name the folder of the entry that keeps a ledger"
    with running_server() as server:
        owner_url = fresh_database(server, "soak")
        organization_id, key = make_key(owner_url, organization="soak")
        scene = Scene(
            server=server,
            owner_url=owner_url,
            organization_id=organization_id,
            key=key,
            installation_key=secrets.token_urlsafe(32),
            ledger=folder / "ledger",
            kills=folder / "kills",
            log=folder / "log",
        )
        with connect(owner_url) as connection:
            set_clock(connection, _START, speed=SPEED)
            for number in range(_CRONS):
                _add_cron(connection, scene, f"seed {number}", chance)
        yield scene


def set_clock(connection: psycopg.Connection[tuple[object, ...]], now: datetime, *, speed: float) -> None:
    """Let `scheduler.now()` be `now` at this moment, and run at `speed` from there."""
    began = datetime.now(UTC)
    statement = f"""
        CREATE OR REPLACE FUNCTION scheduler.now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
        $$ SELECT timestamptz '{now.isoformat()}'
             + (clock_timestamp() - timestamptz '{began.isoformat()}') * {speed} $$
    """
    connection.execute(statement.encode())


def payload(ledger: Path, chance: random.Random) -> dict[str, object]:
    """Give a payload of the entry that keeps a ledger; a few bodies take their time, and a few fail at first."""
    failing_attempts = 1 if chance.random() < 0.1 else 0
    return {"ledger": str(ledger), "seconds": chance.choice(_SECONDS), "failing_attempts": failing_attempts}


def _add_cron(
    connection: psycopg.Connection[tuple[object, ...]], scene: Scene, name: str, chance: random.Random
) -> None:
    written = {"pipe": "", **payload(scene.ledger, chance)}
    connection.execute(
        """
        WITH cron AS (
            INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                             execution_payload, timeout, max_attempts, created_by, updated_by)
            VALUES (%s, %s, %s, 'UTC', 'keep_ledger', %s, %s, '10 minutes', %s, 'soak', 'soak')
            RETURNING *
        )
        INSERT INTO scheduler.cron_job_versions (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
        SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM cron
        """,
        (
            scene.organization_id,
            name,
            chance.choice(SCHEDULES),
            json.dumps(written),
            json.dumps(written),
            chance.choice((1, 3)),
        ),
    )
