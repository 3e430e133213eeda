"""Who gives way to the launching of Jobs, and for how long."""

import asyncio

import pytest

from cronplane_operator import launch_precedence
from cronplane_operator.launch_precedence import LaunchPrecedence
from tests.conftest import HANG_GUARD


async def test_while_nothing_is_launched_nobody_waits() -> None:
    precedence = LaunchPrecedence()
    waiting = asyncio.create_task(precedence.give_way())
    await asyncio.sleep(0)
    assert waiting.done()


async def test_who_gives_way_goes_on_when_the_launching_is_over() -> None:
    precedence = LaunchPrecedence()
    with precedence.held():
        waiting = asyncio.create_task(precedence.give_way())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(HANG_GUARD):
        await waiting


async def test_a_launch_that_fails_keeps_nobody_waiting() -> None:
    precedence = LaunchPrecedence()
    with pytest.raises(RuntimeError), precedence.held():
        raise RuntimeError
    async with asyncio.timeout(HANG_GUARD):
        await precedence.give_way()


async def test_launching_without_end_keeps_the_others_waiting_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_precedence, "_LONGEST", 0.01)
    precedence = LaunchPrecedence()
    with precedence.held():
        async with asyncio.timeout(HANG_GUARD):
            await precedence.give_way()
            await precedence.give_way()
