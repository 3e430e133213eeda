"""Hints to the runner that something changed, so that it looks at once and not at its next resync.

A NOTIFY inside a transaction makes commits wait for each other, so hints are sent afterwards, on a connection of their
own, and those that come close together are sent as one. A hint that is lost costs a resync, nothing more.
"""

import asyncio
import enum

import structlog
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import failpoints
from cronplane_core.database import DatabaseUnavailableError, autocommit
from cronplane_core.failpoints import Failpoint

_GATHER = 0.02
_NOTIFY = text("SELECT pg_notify(:channel, '')")


class Channel(enum.StrEnum):
    """What changed."""

    CRONS = "cronplane_crons"
    RUNS = "cronplane_runs"


class ChangeNotifier:
    """Collects hints and sends them while `run` runs."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._changed: set[Channel] = set()
        self._pending = asyncio.Event()
        self._log = structlog.get_logger("cronplane.changes")

    def notify(self, channel: Channel) -> None:
        """Note a change that has been committed; returns at once."""
        self._changed.add(channel)
        self._pending.set()

    async def run(self) -> None:
        """Send what was noted, until cancelled."""
        while True:
            await self._pending.wait()
            await self._send()
            await asyncio.sleep(_GATHER)

    async def _send(self) -> None:
        self._pending.clear()
        changed, self._changed = self._changed, set()
        failpoints.reach(Failpoint.NOTIFY)
        try:
            async with autocommit(self._engine) as connection:
                for channel in changed:
                    await connection.execute(_NOTIFY, {"channel": channel.value})
        except (DatabaseUnavailableError, DBAPIError) as error:
            # PostgreSQL also refuses when its queue of notifications is full.
            self._log.debug("hint lost", error=str(error))
