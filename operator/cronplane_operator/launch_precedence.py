"""Lets the launching of Jobs go before what can wait: what is due shares an API server with what is told of it.

Both would be slower together than one after the other, and nobody is late because a status was written afterwards.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds. Who launches without end does not keep the others waiting for longer than this.
_LONGEST = 5.0


class LaunchPrecedence:
    """Held by the launcher while it launches; who can wait gives way."""

    def __init__(self) -> None:
        self._is_free = asyncio.Event()
        self._is_free.set()
        self._gives_way_until = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Go before the others for as long as the block lasts, and for a few seconds at most."""
        self._gives_way_until = asyncio.get_running_loop().time() + _LONGEST
        self._is_free.clear()
        try:
            yield
        finally:
            self._is_free.set()

    async def give_way(self) -> None:
        """Return when nothing is launched, or has been waited for long enough."""
        left = self._gives_way_until - asyncio.get_running_loop().time()
        if self._is_free.is_set() or left <= 0:
            return
        try:
            async with asyncio.timeout(left):
                await self._is_free.wait()
        except TimeoutError:
            return
