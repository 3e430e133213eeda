"""How uvicorn serves the API: with its own limits set, and with those that it lacks.

uvicorn waits forever for the head of a request, and parses a body to its end although the request was refused before,
so that anybody could hold as many connections as they like, and keep the process busy. Here a connection on which
nothing is being served is closed unless a whole head arrives in time, and of a body that nobody reads any more only as
much is parsed as an honest one has. The body of a request that is being served has limits of its own (`guarded_route`).
"""

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cronplane_core.settings import ApiSettings

# Bytes of one read: asyncio's own 256 KiB of chunks of one byte take 0.3 s to parse, in which nobody else is served,
# and in which no refusal can stop it.
_READ_SIZE = 16 * 1024


def server_options(settings: ApiSettings) -> dict[str, Any]:
    """Give what `uvicorn.Config` is made with, wherever the API is served."""
    limits = {"head_timeout": settings.head_timeout.total_seconds(), "most_unread": settings.body_limit}
    return {
        "http": type("LimitedProtocol", (BoundedProtocol,), limits),
        "limit_concurrency": settings.connection_limit,
        # A client that does not read its answer would keep the process from ending.
        "timeout_graceful_shutdown": round(settings.shutdown_grace.total_seconds()),
        "log_config": None,
        "access_log": False,
    }


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on those who keep a connection and ask for nothing.

    `head_timeout` is in seconds, `most_unread` in bytes as they come.
    """

    head_timeout: ClassVar[float]
    most_unread: ClassVar[int]
    _deadline: asyncio.TimerHandle | None = None
    _unread = 0
    _discards = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a request."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_SIZE
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what a client sent."""
        if self._discards:
            return
        super().data_received(data)
        self._watch()
        self._bound_unread(len(data))

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        super().connection_lost(exc)
        self._stop_watching()

    def _watch(self) -> None:
        """Let the deadline run from the moment since which nothing is being served."""
        if self._is_serving():
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_timeout, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _is_serving(self) -> bool:
        return self.conn.our_state in {h11.SEND_RESPONSE, h11.SEND_BODY}

    def _bound_unread(self, size: int) -> None:
        """Hang up on a body that goes on and on after its answer, but take what comes until the deadline.

        Closing at once would reset the connection, and the client might never see its answer (RFC 9112, section 9.6).
        """
        if self._is_serving() or self.conn.their_state is not h11.SEND_BODY:
            self._unread = 0
            return
        self._unread += size
        if self._unread > self.most_unread:
            self._discards = True
            self.transport.write_eof()
