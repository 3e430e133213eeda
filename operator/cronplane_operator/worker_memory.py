"""How much memory a worker holds, together with whatever it has started, and which workers hold too much.

What counts is memory that is in use and that the kernel could not simply take back: anonymous and shared pages, those
in swap included. Address space that is only reserved, and pages of files, cost nobody anything. What the zygote had
imported before it forked does not count either. Only memory that no process has mapped, such as a file in /dev/shm,
goes unseen. Nobody is killed here.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cronplane_operator.process_tree import tree

# Seconds between two looks: a process that does nothing else fills some 50 MB in that time.
_PAUSE = 0.025
# A look at memory that is shared is dear, so that looking takes at most one part in so many of the time.
_REST = 10
_RESIDENT = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_PROPORTIONAL = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


class MemoryWatch:
    """Looks at workers every now and then, while it is told to. Times are seconds of any one clock.

    `limit` is in bytes, for a worker and its descendants together; `own` is what the process that forks them holds.
    """

    def __init__(self, *, limit: int, own: int) -> None:
        self._bound = limit + own
        self._until = 0.0
        self._next = 0.0

    def keep_on(self, *, until: float) -> None:
        """Look until then at least."""
        self._until = max(self._until, until)

    def pause(self, now: float) -> float | None:
        """How long until the next look; None for ever."""
        return max(self._next - now, 0.0) if now < self._until else None

    def look(self, workers: Iterable[int]) -> list[int]:
        """Name the workers, by pid, that hold too much."""
        return [pid for pid in workers if self._is_over(pid)]

    def rest(self, *, since: float, now: float) -> None:
        """Put the next look off, the more so the longer the last one took."""
        self._next = now + max(_PAUSE, _REST * (now - since))

    def _is_over(self, pid: int) -> bool:
        processes = tree(pid)
        # Processes that have forked from each other share most of it, which this sum counts once for each of them.
        if sum(map(resident, processes)) <= self._bound:
            return False
        return len(processes) == 1 or sum(map(_proportional, processes)) > self._bound


def resident(pid: int) -> int:
    """Give the bytes that a process holds, shared or not; none if it is gone."""
    return _sum(f"/proc/{pid}/status", _RESIDENT)


def own_memory() -> int:
    """Give the bytes that this process holds."""
    return resident(os.getpid())


def _proportional(pid: int) -> int:
    """Give the bytes that a process holds, of shared ones its part; all of them if we may not look so closely."""
    try:
        return _sum(f"/proc/{pid}/smaps_rollup", _PROPORTIONAL)
    except PermissionError:
        return resident(pid)


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(path).read_bytes().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(names)) * 1024
    return 0
