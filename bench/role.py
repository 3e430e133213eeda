"""A role of Cronplane as a process of its own, and what it costs: CPU and memory as the kernel counts them."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from psycopg import Connection
from sqlalchemy import URL

from bench.server import SERVICE_ROLE
from cronplane_core.database import connection_string

_DISTRIBUTIONS = Path(__file__).parent / "distributions"
_TICKS = os.sysconf("SC_CLK_TCK")
# Seldom enough that asking costs the measured nothing.
_POLL = 0.1
_PATIENCE = 30.0
HOST = "127.0.0.1"
# The runner looks at the clock each second, and needs to have seen that it was set.
CLOCK_LEAD = timedelta(seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRole:
    """A running process; its workers are processes of their own and are not counted."""

    process_id: int

    def cpu_seconds(self) -> float:
        """Give the seconds of CPU that it has used so far (proc(5), utime and stime)."""
        fields = Path(f"/proc/{self.process_id}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_megabytes(self) -> float:
        """Give how much of its memory is resident, shared libraries included (proc(5), VmRSS)."""
        [line] = [line for line in self._status() if line.startswith("VmRSS:")]
        return int(line.split()[1]) / 1024

    def _status(self) -> list[str]:
        return Path(f"/proc/{self.process_id}/status").read_text(encoding="ascii").splitlines()


CRONPLANE = "cronplane_cli.main"


@contextmanager
def running(
    role: str, url: URL, environment: Mapping[str, str] | None = None, *, module: str = CRONPLANE
) -> Iterator[RunningRole]:
    """Run a role of a module on a database, as the service's user, until the block ends."""
    settings = {
        "CRONPLANE_DATABASE_URL": connection_string(url.set(username=SERVICE_ROLE)),
        "CRONPLANE_LOG_LEVEL": "warning",
        "CRONPLANE_METRICS_PORT": "0",
        "PYTHONPATH": str(_DISTRIBUTIONS),
    }
    with subprocess.Popen(
        [sys.executable, "-m", module, role],
        env={**os.environ, **settings, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield RunningRole(process_id=process.pid)
        finally:
            process.terminate()


def api_settings() -> dict[str, str]:
    """Give what an API needs besides its database: a free port, a key, and room for more crons than a default quota."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    return {
        "CRONPLANE_PORT": str(port),
        "CRONPLANE_INSTALLATION_KEY": secrets.token_urlsafe(32),
        "CRONPLANE_CRON_QUOTA": "1000000",
    }


def wait_until_listening(port: int) -> None:
    """Return when somebody listens on a port."""
    give_up = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection((HOST, port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < give_up, f"nobody listens on port {port}"
            time.sleep(_POLL)
        else:
            return


def set_clock(connection: Connection[Any], now: datetime) -> None:
    """Let `scheduler.now()` be `now` (aware) at this moment, and go on from there as fast as time does."""
    statement = f"""
        CREATE OR REPLACE FUNCTION scheduler.now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
        $$ SELECT clock_timestamp() + interval '{(now - datetime.now(UTC)).total_seconds()} seconds' $$
    """
    connection.execute(statement.encode())


def wait_for(connection: Connection[Any], query: str, count: int) -> None:
    """Return when a query for a number gives `count`."""
    while connection.execute(query.encode()).fetchone() != (count,):
        time.sleep(_POLL)


SCHEDULED = "SELECT count(*) FROM scheduler.apscheduler_jobs"
FINISHED = "SELECT count(*) FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
