"""A queue that gives its owners turns, so that whoever has much to do delays nobody who has little.

Round robin over the owners that have something waiting (J. Nagle, RFC 970); within one owner first come, first
served.
"""

from collections import deque
from typing import Generic, TypeVar
from uuid import UUID

ItemT = TypeVar("ItemT")


class FairQueue(Generic[ItemT]):
    """Items that wait, each for its owner's next turn. `len` is of all of them."""

    def __init__(self) -> None:
        self._waiting: dict[UUID, deque[ItemT]] = {}
        self._turns: deque[UUID] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, owner: UUID, item: ItemT) -> None:
        """Let an item wait behind those of its owner."""
        waiting = self._waiting.get(owner)
        if waiting is None:
            waiting = self._waiting[owner] = deque()
            self._turns.append(owner)
        waiting.append(item)
        self._size += 1

    def take(self, limit: int) -> list[ItemT]:
        """Hand over up to `limit` items, one of each owner in turn; where it stopped, the next call goes on."""
        taken: list[ItemT] = []
        while self._turns and len(taken) < limit:
            owner = self._turns.popleft()
            waiting = self._waiting[owner]
            taken.append(waiting.popleft())
            if waiting:
                self._turns.append(owner)
            else:
                del self._waiting[owner]
        self._size -= len(taken)
        return taken

    def owners_with(self, least: int) -> dict[UUID, int]:
        """Give the owners that have at least so many items waiting, with how many."""
        return {owner: len(waiting) for owner, waiting in self._waiting.items() if len(waiting) >= least}
