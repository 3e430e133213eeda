"""How uvicorn serves the API: with its own limits set, and with the one that it lacks.

uvicorn waits forever for the head of a request, and for the end of a body that nobody reads any more, so that anybody
could hold as many connections as they like. Here a connection on which nothing is being served is closed unless a whole
head arrives in time. The body of a request that is being served has a limit of its own (`guarded_route`).
"""

import asyncio
from datetime import timedelta
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cronplane_core.settings import ApiSettings


def server_options(settings: ApiSettings) -> dict[str, Any]:
    """Give what `uvicorn.Config` is made with, wherever the API is served."""
    return {
        "http": _protocol(settings.head_timeout),
        "limit_concurrency": settings.connection_limit,
        # A client that does not read its answer would keep the process from ending.
        "timeout_graceful_shutdown": round(settings.shutdown_grace.total_seconds()),
        "log_config": None,
        "access_log": False,
    }


def _protocol(limit: timedelta) -> type[H11Protocol]:
    class DeadlineProtocol(H11Protocol):
        """HTTP/1.1 that hangs up on those who keep a connection and ask for nothing."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_watching()

        def _watch(self) -> None:
            """Let the deadline run from the moment since which nothing is being served."""
            if self.conn.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY}:
                self._stop_watching()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(limit.total_seconds(), self.transport.abort)

        def _stop_watching(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return DeadlineProtocol
