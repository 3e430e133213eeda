"""What an entry leaves going in its worker when its body ends: asyncio tasks, threads and processes.

It would use memory and processors, and hold the interpreter, while the next run is charged for it. So a worker in which
something is left is replaced, and the run says so. Daemon threads may stay, up to a bound: clients of services keep one
each, and would lose what it has yet to send. Nothing is killed here: what is left ends with the worker.
"""

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

from cronplane_operator.process_tree import is_alive, tree
from cronplane_operator.worker_protocol import Outcome

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Seconds that tasks which the body has left in the event loop have to end when they are cancelled.
_CANCEL_GRACE = 0.5
_MOST_THREADS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftovers:
    """How many of each kind were going when the body had ended; all zero if only a process's exit code is left."""

    tasks: int
    threads: int
    processes: int

    def note(self, outcome: Outcome) -> Outcome:
        """Say in an outcome what was left; the reason of a failure stays, since that is what has to be mended first."""
        kinds = {"Task": self.tasks, "Thread": self.threads, "Process": self.processes}
        left = {kind: count for kind, count in kinds.items() if count}
        if not left:
            return outcome
        words = " and ".join(f"{count} {_noun(kind, count).lower()}" for kind, count in left.items())
        if outcome.status != "completed":
            return replace(outcome, message=f"{outcome.message} It left {words} running, which ended with its worker.")
        return replace(
            outcome,
            reason=f"{_noun(next(iter(left)), 2)}Left",
            message=f"The entry finished, but left {words} running, which ended with its worker; "
            "let an entry wait for what it starts.",
        )


class Housekeeping:
    """Looks, after each run, at what it has left in this worker.

    `memory` is how many bytes the worker may take; one that came near to it goes, so that no other run is blamed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, memory: int) -> None:
        self._loop = loop
        self._executor = _DefaultExecutor()
        loop.set_default_executor(self._executor)
        self._stubborn_tasks = 0
        self._most_memory = _peak_memory() + memory // 2 if memory else 0

    def end_tasks(self) -> None:
        """Cancel what is left in the event loop, and wait a moment for it to end."""
        if not (tasks := asyncio.all_tasks(self._loop)):
            return
        for task in tasks:
            task.cancel()
        ended, stubborn = self._loop.run_until_complete(asyncio.wait(tasks, timeout=_CANCEL_GRACE))
        self._stubborn_tasks += len(stubborn)
        for task in ended:
            # Or it would be told as never retrieved, in the output of some later run.
            _ = task.cancelled() or task.exception()

    def look(self) -> Leftovers | None:
        """Tell what is left; None if there is nothing, and the worker can go on."""
        # An alarm that was set and not taken back would kill the worker in somebody else's run.
        signal.setitimer(signal.ITIMER_REAL, 0)
        threads = self._threads() if threading.active_count() > 1 else 0
        has_processes = _has_child()
        if not (self._stubborn_tasks or threads or has_processes):
            return None
        processes = sum(map(is_alive, tree(os.getpid())[1:])) if has_processes else 0
        return Leftovers(tasks=self._stubborn_tasks, threads=threads, processes=processes)

    def is_worn(self) -> bool:
        """Tell whether the worker holds more than the next run should find: memory, or daemon threads."""
        if threading.active_count() > _MOST_THREADS:
            return True
        return bool(self._most_memory) and _peak_memory() > self._most_memory

    def _threads(self) -> int:
        idle = self._executor.threads
        others = [each for each in threading.enumerate() if each is not threading.main_thread() and each not in idle]
        return sum(1 for each in others if not each.daemon) + len(self._executor.unfinished)


class _DefaultExecutor(ThreadPoolExecutor):
    """The event loop's own threads, which stay from run to run, and what they are still at."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()
        self.unfinished: set[Future[Any]] = set()
        super().__init__(initializer=lambda: self.threads.add(threading.current_thread()))

    def submit(self, function: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future = super().submit(function, *args, **kwargs)
        self.unfinished.add(future)
        future.add_done_callback(self.unfinished.discard)
        return future


def _has_child() -> bool:
    """Tell whether this process has a child, alive or dead, which is left as it is (waitid(2))."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _peak_memory() -> int:
    """Give the most bytes that this process has held since it was forked (getrusage(2))."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _noun(kind: str, count: int) -> str:
    plural = {"Task": "Tasks", "Thread": "Threads", "Process": "Processes"}
    return kind if count == 1 else plural[kind]
