"""Spreads writes over time, so that a cluster's API server and its etcd have them at a bounded rate."""

import asyncio


class WritePacer:
    """Lets `per_second` writes pass in a second, evenly; who was idle saves nothing up."""

    def __init__(self, *, per_second: float) -> None:
        self._gap = 1 / per_second
        self._next = 0.0

    async def wait(self) -> None:
        """Return when it is one's turn."""
        now = asyncio.get_running_loop().time()
        turn = max(self._next, now)
        self._next = turn + self._gap
        await asyncio.sleep(turn - now)
