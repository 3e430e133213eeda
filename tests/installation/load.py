"""Work for an installation while it is disturbed: crons that are triggered, besides those that fire."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from types import TracebackType
from typing import Self

from tests.installation.rest_client import RestClient

# Seconds between two triggers.
_GAP = 1.5


class Triggers:
    """Triggers crons, one after the other and again, from a thread of its own."""

    def __init__(self, api: RestClient, paths: list[str]) -> None:
        self._api = api
        self._paths = cycle(paths)
        self._is_over = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self._run_ids = self._thread.submit(self._trigger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.shutdown()

    def stop(self) -> list[str]:
        """Trigger no more; gives the ids of the runs that were taken on."""
        self._is_over.set()
        return self._run_ids.result()

    def _trigger(self) -> list[str]:
        run_ids = []
        while not self._is_over.wait(_GAP):
            run_ids.append(self._api.post(f"{next(self._paths)}/trigger")["id"])
        return run_ids
