"""Registrations over HTTP, beside a bare FastAPI handler with one INSERT (`bare_fastapi`).

Both are processes of their own, started the same way, on databases of the same server. A few clients keep their
connections open and send one request after the other. The two take turns, so that whatever else the machine does
meets both alike. The clients speak no more HTTP than they need, or they would be what is measured.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from uuid import UUID

from sqlalchemy import URL

from bench.role import CRONPLANE, HOST, RunningRole, api_settings, running, wait_until_listening
from bench.server import fresh_database, make_key, running_server

CLIENTS = 8
TURNS = 5
AIM = 0.6
_TURN_SECONDS = 3.0
_WARM_UP_SECONDS = 1.0
_BARE = "bench.bare_fastapi"
_HEAD_END = b"\r\n\r\n"
_names = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server, and whose crons to register there with which key."""

    process: RunningRole
    port: int
    organization_id: UUID
    key: str

    def request(self) -> bytes:
        """Write the registration of one more cron."""
        cron = {
            "name": f"cron {next(_names)}",
            "cron_expr": "0 9 * * 1-5",
            "tz": "Europe/Paris",
            "entrypoint": "dummy_print",
            "payload": {"message": "hello"},
        }
        body = json.dumps(cron)
        return (
            f"POST /crons/{self.organization_id} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


@dataclass(slots=True)
class Figures:
    """What one server did in all of its turns; times are in seconds."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Give the registrations per second."""
        return len(self.latencies) / self.seconds

    def __str__(self) -> str:
        percentiles = quantiles(self.latencies, n=100)
        return (
            f"{self.rate:>7,.0f} requests/s   p50 {percentiles[49] * 1e3:.1f} ms, p99 {percentiles[98] * 1e3:.1f} ms   "
            f"CPU of the server {self.cpu_seconds / len(self.latencies) * 1e6:,.0f} µs per request"
        )


class _Client(asyncio.Protocol):
    """One connection: sends a request, waits for the answer, and sends the next until its time is over."""

    def __init__(self, server: Server, latencies: list[float], end: float) -> None:
        self.closed = asyncio.get_running_loop().create_future()
        self._server, self._latencies, self._end = server, latencies, end
        self._transport: asyncio.Transport
        self._received = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(_HEAD_END)
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0]):
            return
        self._latencies.append(time.perf_counter() - self._sent_at)
        if not head.startswith(b"HTTP/1.1 201 "):
            self.closed.set_exception(RuntimeError(self._received.decode()))
        if self.closed.done() or time.perf_counter() > self._end:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(exc)

    def _send(self) -> None:
        request, self._received = self._server.request(), b""
        self._sent_at = time.perf_counter()
        self._transport.write(request)


def measure(ours_url: URL, bare_url: URL) -> tuple[Figures, Figures]:
    """Let both servers register crons in turn; returns our figures and the bare handler's."""
    ours, bare = Figures(), Figures()
    with _serving(CRONPLANE, ours_url) as our_server, _serving(_BARE, bare_url) as bare_server:
        for server in (our_server, bare_server):
            asyncio.run(_turn(server, Figures(), seconds=_WARM_UP_SECONDS))
        for _ in range(TURNS):
            asyncio.run(_turn(our_server, ours, seconds=_TURN_SECONDS))
            asyncio.run(_turn(bare_server, bare, seconds=_TURN_SECONDS))
    return ours, bare


def report() -> None:
    """Print both figures of one run, and how they compare."""
    with running_server() as server:
        ours, bare = measure(fresh_database(server, "ours"), fresh_database(server, "bare"))
    print(f"Registrations by {CLIENTS} clients at once, one process of the API (fsync on)")
    print(f"  cronplane                             {ours}")
    print(f"  bare FastAPI handler, one INSERT      {bare}")
    print(f"  cronplane is {ours.rate / bare.rate:.2f} of the bare handler; the aim is {AIM:.2f}")


async def _turn(server: Server, figures: Figures, *, seconds: float) -> None:
    loop, started, cpu_seconds = asyncio.get_running_loop(), time.perf_counter(), server.process.cpu_seconds()
    clients = [_Client(server, figures.latencies, started + seconds) for _ in range(CLIENTS)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, HOST, server.port)  # type: ignore[misc]
    for client in clients:
        await client.closed
    figures.seconds += time.perf_counter() - started
    figures.cpu_seconds += server.process.cpu_seconds() - cpu_seconds


@contextmanager
def _serving(module: str, url: URL) -> Iterator[Server]:
    organization_id, key = make_key(url)
    settings = {**api_settings(), "CRONPLANE_LOG_LEVEL": "info"}
    port = int(settings["CRONPLANE_PORT"])
    with running("api", url, settings, module=module) as process:
        wait_until_listening(port)
        yield Server(process=process, port=port, organization_id=organization_id, key=key)
