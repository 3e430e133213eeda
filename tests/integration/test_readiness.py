"""Whether a process may serve with a database as it is, asked as the role that it would serve as."""

from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL

from cronplane_core.database import create_engine, transaction
from cronplane_core.readiness import find_readiness
from cronplane_core.schema_revision import Readiness


async def readiness(url: URL, *, entries: tuple[str, ...] = ("no_op",)) -> Readiness:
    engine = create_engine(url, pool_size=1, application_name="test")
    try:
        async with transaction(engine) as connection:
            return await find_readiness(connection, entries=entries)
    finally:
        await engine.dispose()


async def test_with_the_schema_of_this_version_nothing_is_in_the_way(database: Any) -> None:
    assert await readiness(database.url) == Readiness()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DROP SCHEMA scheduler CASCADE", "no schema yet"),
        (
            "UPDATE scheduler.alembic_version SET version_num = '0006'; DROP TABLE scheduler.schema_compatibility",
            "0006",
        ),
        ("UPDATE scheduler.schema_compatibility SET oldest_code_revision = '9999'", "install a newer version"),
    ],
)
async def test_what_is_in_the_way_is_said(database: Any, change: str, words: str) -> None:
    database.execute(change)
    found = await readiness(database.url)
    assert found.obstacle is not None
    assert words in found.obstacle


async def test_an_entry_that_the_database_does_not_know_is_in_the_way(database: Any) -> None:
    found = await readiness(database.url, entries=("no_op", "unheard_of"))
    assert found.obstacle is not None
    assert "unheard_of" in found.obstacle


async def test_a_newer_schema_is_told_of(database: Any) -> None:
    database.execute("UPDATE scheduler.alembic_version SET version_num = '9999'")
    found = await readiness(database.url)
    assert (found.obstacle, found.notice is not None) == (None, True)


async def test_a_role_that_was_not_let_in_is_told_how_it_would_be(database: Any, request: Any) -> None:
    role = f"stranger_{uuid4().hex}"
    database.execute(f"CREATE ROLE {role} LOGIN")
    request.addfinalizer(partial(database.execute, f"DROP ROLE {role}"))
    found = await readiness(database.url.set(username=role))
    assert found.obstacle is not None
    assert "CRONPLANE_SERVICE_ROLE" in found.obstacle
