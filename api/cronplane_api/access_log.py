"""One log line per request, and its place in the metrics: method, route, status and duration, and nothing more.

No query, body, key or path value is in either.

What nobody turned into an answer ends here too: it is logged with its traceback, once, and the client is told nothing
of it but that the error is ours.
"""

import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cronplane_api import problem_details
from cronplane_api.http_metrics import HttpMetrics

_log = structlog.get_logger("cronplane.api.access")


class AccessLog:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            _log.error("request failed", method=scope["method"], route=_template(scope), exc_info=error)
            if status:
                # Half an answer is out; the server has to hang up.
                raise
            await problem_details.defect()(scope, receive, watch)
        finally:
            method, route, seconds = scope["method"], _template(scope), time.perf_counter() - started
            _log.info("request", method=method, route=route, status=status, milliseconds=round(seconds * 1000, 1))
            self._metrics.answered(method=method, route=route, status=status, seconds=seconds)


def _template(scope: Scope) -> str:
    return getattr(scope.get("route"), "path_format", "(none)")
