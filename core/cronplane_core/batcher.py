"""Group commit for calls: those that come while one is under way are made together, as the next one.

One call is under way per key, so the busier it is, the larger the groups and the less each costs. It holds nothing back
and waits for nobody: an item that comes alone is called for alone, at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
OutcomeT = TypeVar("OutcomeT")


class Batcher(Generic[KeyT, ItemT, OutcomeT]):
    """Makes one call of many.

    `act` is given a key and up to `most` items, and gives an outcome for each, in their order; an outcome that is an
    exception is raised to whoever brought the item, and what `act` itself raises, to all of them. An item joins only a
    call that has not begun, so whatever a call reads is no older than the items that it is made for.
    """

    def __init__(
        self, act: Callable[[KeyT, Sequence[ItemT]], Awaitable[Sequence[OutcomeT | Exception]]], *, most: int
    ) -> None:
        self._act = act
        self._most = most
        self._waiting: dict[KeyT, list[tuple[ItemT, asyncio.Future[OutcomeT]]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, key: KeyT, item: ItemT) -> OutcomeT:
        """Give the outcome of `item`; raises what became of it."""
        outcome: asyncio.Future[OutcomeT] = asyncio.get_running_loop().create_future()
        if (waiting := self._waiting.get(key)) is not None:
            waiting.append((item, outcome))
        else:
            self._waiting[key] = [(item, outcome)]
            # In a context of its own, since it serves many: what the first one's request set is none of theirs.
            task = asyncio.create_task(self._serve(key), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await outcome

    async def _serve(self, key: KeyT) -> None:
        try:
            while waiting := self._waiting[key]:
                group, self._waiting[key] = waiting[: self._most], waiting[self._most :]
                await self._serve_group(key, group)
        finally:
            _cancel(self._waiting.pop(key))

    async def _serve_group(self, key: KeyT, group: Sequence[tuple[ItemT, asyncio.Future[OutcomeT]]]) -> None:
        call = self._act(key, [item for item, _ in group])
        try:
            [returned] = await asyncio.gather(call, return_exceptions=True)
            outcomes = [returned] * len(group) if isinstance(returned, BaseException) else returned
            for (_, future), outcome in zip(group, outcomes, strict=True):
                _settle(future, outcome)
        finally:
            _cancel(group)


def _cancel(group: Sequence[tuple[ItemT, asyncio.Future[OutcomeT]]]) -> None:
    """Leave nobody waiting for what will not come; what has come already stays."""
    for _, outcome in group:
        outcome.cancel()


def _settle(future: asyncio.Future[OutcomeT], outcome: OutcomeT | BaseException) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
