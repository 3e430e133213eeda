"""Listens for the hints that something changed, so that a change is taken up at once and not at the next resync.

A hint carries nothing and may be lost; whoever is told looks at the table.
"""

import asyncio
from collections.abc import Callable, Mapping

import psycopg
from sqlalchemy import URL

from cronplane_core.database import connection_string
from cronplane_operator.run_recorder import RunRecorder

_RECONNECT_PAUSE = 1.0


class ChangeListener:
    """Holds one connection that listens on the channels of `callbacks` and calls back on each hint."""

    def __init__(self, *, url: URL, callbacks: Mapping[str, Callable[[], None]], recorder: RunRecorder) -> None:
        self._address = connection_string(url)
        self._callbacks = callbacks
        self._recorder = recorder

    async def run(self) -> None:
        """Listen until cancelled; after a broken connection everything counts as changed."""
        while True:
            try:
                await self._listen()
            except psycopg.Error as error:
                self._recorder.database_away(doing="listening for changes", error=error)
                await asyncio.sleep(_RECONNECT_PAUSE)

    async def _listen(self) -> None:
        connection = await psycopg.AsyncConnection.connect(
            self._address, autocommit=True, application_name="cronplane-listener", connect_timeout=5
        )
        async with connection:
            for channel in self._callbacks:
                await connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(channel)))
            for callback in self._callbacks.values():
                callback()
            async for hint in connection.notifies():
                self._callbacks[hint.channel]()
