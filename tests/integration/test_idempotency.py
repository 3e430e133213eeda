"""Answers that are kept for a day under an Idempotency-Key."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core import idempotency_repository
from cronplane_core.database import transaction
from cronplane_core.idempotency_repository import IdempotencyKeyReusedError, StoredResponse

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
ANSWER = StoredResponse(
    status=201,
    headers={"Location": "/crons/1", "ETag": '"1"'},
    body={"n": 2**53 + 1, "text": "é 🚀 \u2028", "half": 0.5, "nothing": None, "list": [True, 1]},
)
HANG_GUARD = 30.0


async def begin(
    connection: AsyncConnection, key: str = "k", *, scope: str = "acme", fingerprint: bytes = b"1"
) -> StoredResponse | None:
    return await idempotency_repository.begin(connection, scope=scope, key=key, fingerprint=fingerprint)


async def complete(connection: AsyncConnection, key: str = "k", answer: StoredResponse = ANSWER) -> None:
    await idempotency_repository.complete(
        connection, scope="acme", key=key, status=answer.status, headers=answer.headers, body=answer.body
    )


async def answer_once(engine: AsyncEngine, key: str = "k", answer: StoredResponse = ANSWER) -> None:
    async with transaction(engine) as connection:
        assert await begin(connection, key) is None
        await complete(connection, key, answer)


async def until_blocked(connection: AsyncConnection, waiting_pid: int) -> None:
    """Return once the backend waits for a lock."""
    async with asyncio.timeout(HANG_GUARD):
        while not await connection.scalar(text("SELECT cardinality(pg_blocking_pids(:pid))"), {"pid": waiting_pid}):
            pass


@pytest.mark.parametrize("answer", [ANSWER, StoredResponse(status=204, headers={}, body=None)])
async def test_a_request_that_comes_again_gets_the_first_answer(engine: AsyncEngine, answer: StoredResponse) -> None:
    await answer_once(engine, answer=answer)
    async with transaction(engine) as connection:
        assert await begin(connection) == answer
        assert await idempotency_repository.find(connection, scope="acme", key="k", fingerprint=b"1") == answer


async def test_a_key_that_comes_again_with_another_request_is_refused(engine: AsyncEngine) -> None:
    await answer_once(engine)
    async with transaction(engine) as connection:
        with pytest.raises(IdempotencyKeyReusedError, match="new key"):
            await begin(connection, fingerprint=b"2")
        with pytest.raises(IdempotencyKeyReusedError, match="new key"):
            await idempotency_repository.find(connection, scope="acme", key="k", fingerprint=b"2")


async def test_one_organizations_keys_mean_nothing_to_another(engine: AsyncEngine) -> None:
    await answer_once(engine)
    async with transaction(engine) as connection:
        assert await begin(connection, scope="the competition", fingerprint=b"2") is None


async def test_a_request_that_failed_leaves_its_key_free(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        assert await begin(connection) is None
        await connection.rollback()
    await answer_once(engine)


async def test_looking_for_an_answer_takes_no_key(engine: AsyncEngine) -> None:
    async with transaction(engine) as connection:
        assert await idempotency_repository.find(connection, scope="acme", key="k", fingerprint=b"1") is None
    await answer_once(engine)


@pytest.mark.parametrize("first_succeeds", [True, False])
async def test_a_twin_waits_for_the_first_to_end(engine: AsyncEngine, *, first_succeeds: bool) -> None:
    async with engine.connect() as first, engine.connect() as twin, engine.connect() as watcher:
        await begin(first)
        twin_pid = await twin.scalar(text("SELECT pg_backend_pid()"))
        waiting = asyncio.create_task(begin(twin))
        await until_blocked(watcher, twin_pid)
        await complete(first)
        await (first.commit() if first_succeeds else first.rollback())
        async with asyncio.timeout(HANG_GUARD):
            assert await waiting == (ANSWER if first_succeeds else None)


async def test_an_answer_is_kept_for_a_day(engine: AsyncEngine, database: Any) -> None:
    database.set_clock(NOON, speed=0)
    await answer_once(engine)
    database.set_clock(NOON + DAY, speed=0)
    async with transaction(engine) as connection:
        assert await begin(connection) == ANSWER
    database.set_clock(NOON + DAY + timedelta(microseconds=1), speed=0)
    async with transaction(engine) as connection:
        assert await idempotency_repository.find(connection, scope="acme", key="k", fingerprint=b"1") is None
        assert await begin(connection, fingerprint=b"2") is None
        await complete(connection, answer=StoredResponse(status=200, headers={}, body={}))
    async with transaction(engine) as connection:
        assert await begin(connection, fingerprint=b"2") == StoredResponse(status=200, headers={}, body={})


async def test_only_answers_of_more_than_a_day_ago_are_forgotten_and_no_more_at_once_than_asked(
    engine: AsyncEngine, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    for key in ("a", "b", "c"):
        await answer_once(engine, key)
    database.set_clock(NOON + DAY + timedelta(seconds=1), speed=0)
    await answer_once(engine, "today")
    async with transaction(engine) as connection:
        assert await idempotency_repository.delete_expired(connection, limit=2) == 2
        assert await idempotency_repository.delete_expired(connection, limit=2) == 1
        assert await idempotency_repository.delete_expired(connection, limit=2) == 0
    assert database.execute("SELECT key FROM scheduler.idempotency_keys") == [("today",)]
