"""Hints that something changed, sent after the commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.change_notifier import ChangeNotifier, Channel
from cronplane_core.database import connection_string

HANG_GUARD = 30.0


@pytest.fixture
async def hints(database: Any) -> AsyncIterator[AsyncIterator[str]]:
    """The channels on which something comes, one by one."""
    async with await psycopg.AsyncConnection.connect(connection_string(database.url), autocommit=True) as connection:
        for channel in Channel:
            await connection.execute(f'LISTEN "{channel.value}"')
        # It holds the connection's lock until it is closed.
        async with aclosing(connection.notifies(timeout=HANG_GUARD)) as notifications:
            yield (notification.channel async for notification in notifications)


@pytest.fixture
async def notifier(engine: AsyncEngine) -> AsyncIterator[ChangeNotifier]:
    notifier = ChangeNotifier(engine)
    task = asyncio.create_task(notifier.run())
    yield notifier
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_changes_that_come_together_are_told_once_for_each_channel(
    notifier: ChangeNotifier, hints: AsyncIterator[str], statements: list[Any]
) -> None:
    for _ in range(1000):
        notifier.notify(Channel.CRONS)
        notifier.notify(Channel.RUNS)
    assert {await anext(hints), await anext(hints)} == set(Channel)
    assert len(statements) == 2


async def test_a_change_after_another_is_told_too(notifier: ChangeNotifier, hints: AsyncIterator[str]) -> None:
    for _ in range(3):
        notifier.notify(Channel.CRONS)
        assert await anext(hints) == Channel.CRONS


async def test_a_hint_that_is_lost_ends_nothing(
    notifier: ChangeNotifier, engine: AsyncEngine, database: Any, hints: AsyncIterator[str]
) -> None:
    failed = asyncio.Event()
    event.listen(engine.sync_engine, "handle_error", lambda _: failed.set())
    async with engine.connect() as connection:
        pid = await connection.scalar(text("SELECT pg_backend_pid()"))
    database.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    notifier.notify(Channel.CRONS)
    async with asyncio.timeout(HANG_GUARD):
        await failed.wait()
    notifier.notify(Channel.RUNS)
    assert await anext(hints) == Channel.RUNS
