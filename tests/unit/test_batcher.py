"""Calls that are made together: who is answered with what, in which groups, and what happens to those left over."""

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar

import pytest

from cronplane_core.batcher import Batcher


class Backend:
    """Something to call that answers when told to, and remembers the groups."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, list[int]]] = []
        self.begun = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def double(self, key: str, items: Sequence[int]) -> list[int | Exception]:
        self.groups.append((key, list(items)))
        self.begun.set()
        await self.may_answer.wait()
        return [ValueError(f"{item} is odd") if item % 2 else item * 2 for item in items]


async def test_what_comes_while_a_call_is_under_way_goes_together_with_the_next_one() -> None:
    backend = Backend()
    batcher = Batcher(backend.double, most=10)
    first = asyncio.create_task(batcher.call("a", 2))
    await backend.begun.wait()
    others = [asyncio.create_task(batcher.call("a", number)) for number in (4, 6, 8)]
    await asyncio.sleep(0)
    backend.may_answer.set()
    assert [await first, *[await other for other in others]] == [4, 8, 12, 16]
    assert backend.groups == [("a", [2]), ("a", [4, 6, 8])]


async def test_a_group_has_no_more_items_than_it_may() -> None:
    backend = Backend()
    backend.may_answer.set()
    batcher = Batcher(backend.double, most=2)
    assert await asyncio.gather(*(batcher.call("a", number) for number in (2, 4, 6, 8, 10))) == [4, 8, 12, 16, 20]
    assert [items for _, items in backend.groups] == [[2, 4], [6, 8], [10]]


async def test_keys_do_not_wait_for_each_other() -> None:
    both_are_under_way = asyncio.Barrier(2)

    async def meet(_: str, items: Sequence[int]) -> list[int]:
        await both_are_under_way.wait()
        return list(items)

    batcher = Batcher(meet, most=10)
    assert [*await asyncio.gather(batcher.call("a", 1), batcher.call("b", 2))] == [1, 2]


async def test_an_outcome_that_is_an_exception_is_raised_to_its_own_caller_only() -> None:
    backend = Backend()
    backend.may_answer.set()
    batcher = Batcher(backend.double, most=10)
    even, odd = await asyncio.gather(batcher.call("a", 2), batcher.call("a", 3), return_exceptions=True)
    assert even == 4
    assert isinstance(odd, ValueError)
    assert str(odd) == "3 is odd"


async def test_what_the_call_raises_is_raised_to_all_and_the_next_call_is_made() -> None:
    async def fail(_: str, items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise ConnectionError("gone")
        return list(items)

    batcher = Batcher(fail, most=2)
    outcomes = await asyncio.gather(*(batcher.call("a", number) for number in (1, 2, 3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConnectionError, ConnectionError, int]


async def test_a_caller_that_gives_up_takes_nobody_along() -> None:
    backend = Backend()
    batcher = Batcher(backend.double, most=10)
    leaving, staying = (asyncio.create_task(batcher.call("a", number)) for number in (2, 4))
    await backend.begun.wait()
    leaving.cancel()
    backend.may_answer.set()
    assert await staying == 8
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_a_call_that_is_cancelled_leaves_nobody_waiting() -> None:
    backend = Backend()
    batcher = Batcher(backend.double, most=1)
    calls = [asyncio.create_task(batcher.call("a", number)) for number in (2, 4)]
    await backend.begun.wait()
    for task in asyncio.all_tasks() - {asyncio.current_task(), *calls}:
        task.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2


async def test_a_call_knows_nothing_of_the_context_of_who_came_first() -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def look(_: str, items: Sequence[int]) -> list[int]:
        seen.append(request.get())
        return list(items)

    batcher = Batcher(look, most=1)
    request.set("the first one's")
    await batcher.call("a", 1)
    assert seen == ["none"]
