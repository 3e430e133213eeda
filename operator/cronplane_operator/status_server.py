"""The runner's own small HTTP server: `/metrics`, `/livez` and `/readyz`, in a thread.

It answers also while the event loop hangs, which is when one wants to know. It reads what the loop has left for it, and
never what the loop is changing. It has nothing that belongs to a tenant, and asks nobody for a key: bind it where only
those come who may know how busy the installation is.
"""

import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, NamedTuple

from cronplane_operator.errors import RunnerError

# Seconds that a client may keep a thread waiting.
_CLIENT_TIMEOUT = 10
# Seconds between two looks at whether to end.
_POLL = 0.1
_TEXT = "text/plain; charset=utf-8"


class StatusServerError(RunnerError):
    """Metrics and probes cannot be served where they should be; choose another address or port."""


class Page(NamedTuple):
    """What is answered to a GET."""

    status: HTTPStatus
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]


def probe(check: Callable[[], bool], *, otherwise: str) -> Callable[[], Page]:
    """Make a page that is 200 while `check` holds, and else 503 with the reason `otherwise`."""

    def page() -> Page:
        if check():
            return Page(HTTPStatus.OK, _TEXT, b"ok\n")
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{otherwise}\n".encode())

    return page


@contextmanager
def status_server(*, host: str, port: int, pages: Pages) -> Iterator[str]:
    """Serve `pages`, by their paths, as long as the block lasts; gives the address, such as http://127.0.0.1:8081.

    Raises:
        StatusServerError: nobody can listen there.

    """
    try:
        server = _server(host, port, _handler(pages))
    except OSError as error:
        raise StatusServerError(
            f"Metrics cannot be served on {host}:{port} ({error.strerror}); "
            "set CRONPLANE_METRICS_HOST and CRONPLANE_METRICS_PORT"
        ) from error
    with server:
        thread = Thread(target=server.serve_forever, args=(_POLL,), name="status", daemon=True)
        thread.start()
        bound_host, bound_port = server.socket.getsockname()[:2]
        try:
            yield f"http://[{bound_host}]:{bound_port}" if ":" in bound_host else f"http://{bound_host}:{bound_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *client: Any) -> None:  # noqa: ANN401 - socketserver's own signature
        """Let a client go that hung up, and tell of anything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(*client)


def _server(host: str, port: int, handler: type[BaseRequestHandler]) -> _Server:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    of_family = type("StatusServer", (_Server,), {"address_family": family})
    server: _Server = of_family(address, handler)
    return server


def _handler(pages: Pages) -> type[BaseRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT
        server_version = "cronplane"
        sys_version = ""

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            status, content_type, body = page() if page else Page(HTTPStatus.NOT_FOUND, _TEXT, b"not found\n")
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: it is asked every few seconds."""

    return Handler
