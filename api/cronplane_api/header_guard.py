"""Refuses requests whose headers can be read in two ways, before anything is looked up.

Whoever stands before this API (a proxy, a cache, a firewall) reads the same headers. Where it would take one line of
two and we the other, or end the body elsewhere, a request could be smuggled past it (RFC 9112, section 11.2). Such a
connection is closed as well, since what comes next on it cannot be trusted to be a request.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from cronplane_api import problem_details
from cronplane_api.errors import MALFORMED

_SINGLE_HEADERS = frozenset(
    {b"authorization", b"content-type", b"content-encoding", b"content-length", b"idempotency-key", b"if-match"}
)


class HeaderGuard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request, or refuse it with 400."""
        ambiguity = _ambiguity([name for name, _ in scope["headers"]]) if scope["type"] == "http" else None
        if ambiguity is None:
            await self._app(scope, receive, send)
            return
        response = problem_details.respond(MALFORMED, ambiguity)
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


def _ambiguity(names: list[bytes]) -> str | None:
    """Say what is wrong with headers of these names (lower case), if anything is."""
    if b"transfer-encoding" in names and b"content-length" in names:
        return "Send Content-Length or Transfer-Encoding, not both"
    repeated = [name for name in _SINGLE_HEADERS.intersection(names) if names.count(name) > 1]
    return f"The header {repeated[0].decode()} comes more than once" if repeated else None
