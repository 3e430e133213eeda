"""Stands before an HTTP API, such as Kubernetes' or ours, and breaks requests as it is told to.

    python http_relay.py HOST UPSTREAM [CA_FILE]

It serves plain HTTP at a port of HOST that it tells in its first line, `ready PORT`. An order is a line of JSON on
standard input, answered by the line `ordered`; it replaces the one before. Its `fault` is one of

- `refuse`: the request is answered with `status`, and with `retry_after` seconds if there are any; nobody else sees it;
- `lose`: the request is carried out, and the connection is closed before its answer comes through;
- `cut`: the connection is closed instead; what is being answered just now is closed as well;
- `silence`: nothing comes back, neither of a new request nor of what is being answered, until the next order.

It concerns requests whose method and path (with the query) have the text `only`, and `limit` of them if that is given.
Each fault is told in a line of standard output, with the method and the path.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

_OF_THE_CONNECTION = frozenset({"connection", "content-length", "host", "transfer-encoding"})


def tell(line: str) -> None:
    """Say something to whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass(slots=True)
class Orders:
    """What is to be broken; `changed` is set, and replaced, with each order."""

    now: dict[str, Any] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def follow(self, order: dict[str, Any]) -> None:
        self.now = order
        self.changed.set()
        self.changed = asyncio.Event()

    def fault(self, what: str) -> str | None:
        """Give the fault that a request is to meet, and tell of it."""
        limit = self.now.get("limit")
        if "fault" not in self.now or limit == 0 or self.now.get("only", "") not in what:
            return None
        if limit is not None:
            self.now["limit"] = limit - 1
        tell(f"{self.now['fault']} {what}")
        return str(self.now["fault"])


class Relay:
    """One way to an upstream."""

    def __init__(self, *, upstream: str, session: aiohttp.ClientSession, orders: Orders) -> None:
        self._upstream = upstream
        self._session = session
        self._orders = orders

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass one request on, or break it."""
        what = f"{request.method} {request.path_qs}"
        body = await request.read()
        fault = await self._held_fault(what)
        if fault == "refuse":
            return self._refusal()
        if fault == "cut":
            return _close(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_CONNECTION}
        url = f"{self._upstream}{request.path_qs}"
        async with self._session.request(request.method, url, headers=headers, data=body or None) as found:
            if fault == "lose":
                await found.read()
                return _close(request)
            return await self._pass_back(request, found, what)

    async def _pass_back(
        self, request: web.BaseRequest, found: aiohttp.ClientResponse, what: str
    ) -> web.StreamResponse:
        headers = {name: value for name, value in found.headers.items() if name.lower() not in _OF_THE_CONNECTION}
        answer = web.StreamResponse(status=found.status, headers=headers)
        # Whoever asked may be gone by now.
        with suppress(ConnectionResetError):
            await answer.prepare(request)
            async for chunk in self._unbroken(request, found, what):
                await answer.write(chunk)
            await answer.write_eof()
        return answer

    async def _unbroken(
        self, request: web.BaseRequest, found: aiohttp.ClientResponse, what: str
    ) -> AsyncIterator[bytes]:
        """Give what comes from upstream, held up or broken off by an order, even while nothing comes, as in a watch."""
        coming = asyncio.create_task(_next(found))
        try:
            while True:
                changed = asyncio.create_task(self._orders.changed.wait())
                await asyncio.wait({coming, changed}, return_when=asyncio.FIRST_COMPLETED)
                if changed.done() and await self._held_fault(what) == "cut":
                    _close(request)
                    return
                changed.cancel()
                if coming.done():
                    if not (chunk := coming.result()):
                        return
                    coming = asyncio.create_task(_next(found))
                    yield chunk
        finally:
            coming.cancel()

    async def _held_fault(self, what: str) -> str | None:
        """Give the fault that a request is to meet, once it is not silence any more."""
        while (fault := self._orders.fault(what)) == "silence":
            await self._orders.changed.wait()
        return fault

    def _refusal(self) -> web.Response:
        order = self._orders.now
        headers = {"Retry-After": str(order["retry_after"])} if "retry_after" in order else {}
        return web.json_response({"message": "refused on purpose"}, status=order["status"], headers=headers)


async def _next(found: aiohttp.ClientResponse) -> bytes:
    """Give what comes next, nothing at the end, and nothing if the upstream breaks off."""
    with suppress(aiohttp.ClientError):
        return await found.content.readany()
    return b""


def _close(request: web.BaseRequest) -> web.Response:
    """Close the connection; what is returned goes nowhere."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _serve(host: str, upstream: str, ca_file: str | None) -> None:
    context = ssl.create_default_context(cafile=ca_file)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, auto_decompress=False, trust_env=False
    ) as session:
        orders = Orders()
        runner = web.ServerRunner(web.Server(Relay(upstream=upstream, session=session, orders=orders).handle))
        await runner.setup()
        await web.TCPSite(runner, host, 0).start()
        tell(f"ready {runner.addresses[0][1]}")
        while line := await asyncio.to_thread(sys.stdin.readline):
            orders.follow(json.loads(line))
            tell("ordered")


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))
