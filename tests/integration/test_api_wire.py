"""What only a real server and a real socket can show: chunks, halves, and answers before the body has come."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import uvicorn

from cronplane_api.server import server_options

HANG_GUARD = 30.0
BODY = {
    "name": "my job",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """Sends bytes and reads what comes back."""

    port: int
    path: str
    key: str

    def head(self, *headers: str) -> bytes:
        """Give the head of a POST, which asks for no end of the connection."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: api", f"Authorization: Bearer {self.key}", *headers]
        return "\r\n".join([*lines, "", ""]).encode()

    async def exchange(self, sent: bytes) -> bytes:
        """Send bytes and read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(sent)
        async with asyncio.timeout(HANG_GUARD):
            answer = await reader.read()
        writer.close()
        return answer

    async def send(self, headers: list[str], *parts: bytes, finish: bool = True) -> bytes:
        """Send a POST in parts, and read until the server closes; `finish=False` hangs up after the parts."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = [f"POST {self.path} HTTP/1.1", "Host: api", f"Authorization: Bearer {self.key}", "Connection: close"]
        writer.write("\r\n".join([*head, *headers, "", ""]).encode())
        for part in parts:
            writer.write(part)
            await writer.drain()
        if not finish:
            writer.close()
            return b""
        async with asyncio.timeout(HANG_GUARD):
            answer = await reader.read()
        writer.close()
        return answer


Serve = Callable[..., Awaitable[Wire]]


@pytest.fixture
async def serve(api: Any, api_settings: Any, start_api: Any) -> AsyncIterator[Serve]:
    """Serve the API as `cronplane api` does, with settings of the test's own."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Wire:
            listener = socket.create_server(("127.0.0.1", 0))
            application, _ = await start_api(api_settings(**settings))
            options = server_options(api_settings(**settings))
            server = uvicorn.Server(uvicorn.Config(application, lifespan="off", **options))
            serving = asyncio.create_task(server.serve(sockets=[listener]))

            async def stop() -> None:
                # At once, whatever a failed test has left open.
                server.should_exit = server.force_exit = True
                await serving

            stack.push_async_callback(stop)
            return Wire(port=listener.getsockname()[1], path=f"/crons/{api.organization_id}", key=api.keys["editor"])

        yield start


@pytest.fixture
async def wire(serve: Serve) -> Wire:
    return await serve()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def problem(answer: bytes) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return body


CHUNKED = ["Content-Type: application/json", "Transfer-Encoding: chunked"]


async def test_a_body_in_chunks_is_read_whole(wire: Wire) -> None:
    text = json.dumps(BODY).encode()
    answer = await wire.send(CHUNKED, *(chunk(text[place : place + 7]) for place in range(0, len(text), 7)), chunk(b""))
    assert status(answer) == 201


async def test_a_body_in_chunks_over_the_limit_is_answered_before_its_end(wire: Wire, database: Any) -> None:
    answer = await wire.send(CHUNKED, *(chunk(b" " * 8192) for _ in range(9)))
    assert (status(answer), problem(answer)["status"]) == (413, 413)
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_a_body_that_says_it_is_over_the_limit_is_not_waited_for(wire: Wire) -> None:
    answer = await wire.send(["Content-Type: application/json", "Content-Length: 10000000000"])
    assert status(answer) == 413


async def test_a_body_that_ends_early_leaves_nothing_and_the_server_serves_on(wire: Wire, database: Any) -> None:
    text = json.dumps(BODY).encode()
    await wire.send(["Content-Type: application/json", f"Content-Length: {len(text)}"], text[:-1], finish=False)
    await wire.send(CHUNKED, chunk(text), finish=False)
    answer = await wire.send(["Content-Type: application/json", f"Content-Length: {len(text)}"], text)
    assert status(answer) == 201
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(1,)]


async def test_a_strangers_body_is_not_waited_for(api: Any, wire: Wire) -> None:
    stranger = Wire(port=wire.port, path=wire.path, key=api.keys["stranger"])
    answer = await stranger.send(["Content-Type: application/json", "Content-Length: 1000"])
    assert status(answer) == 404


async def test_one_who_sends_slowly_holds_nobody_up(api: Any, wire: Wire) -> None:
    text = json.dumps(BODY).encode()
    slow = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(20)]
    for _, writer in slow:
        head = f"POST {wire.path} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {wire.key}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text[:9])
        await writer.drain()
    # There are more of them than connections to the database.
    answer = await wire.send(["Content-Type: application/json", f"Content-Length: {len(text)}"], text)
    assert status(answer) == 201
    for reader, writer in slow:
        writer.write(text[9:])
        async with asyncio.timeout(HANG_GUARD):
            assert b"409" in await reader.readline()
        writer.close()


@pytest.mark.parametrize("target", ["/crons/%00", "/crons/%ff%fe", "/%2e%2e/%2e%2e/etc/passwd", "//", "/crons//x"])
async def test_odd_paths_are_refused_in_the_usual_form(api: Any, wire: Wire, target: str) -> None:
    answer = await Wire(port=wire.port, path=target, key=api.keys["admin"]).send([])
    assert status(answer) in {404, 405, 422}
    assert problem(answer)["type"].startswith("https://cronplane.dev/problems/")


def refuses_and_closes(answer: bytes, expected: int) -> bool:
    head = answer.partition(b"\r\n\r\n")[0].lower()
    return status(answer) == expected and b"\r\nconnection: close" in head and answer.count(b"HTTP/1.1 ") == 1


LENGTH = "Content-Length: 100"
JSON = "Content-Type: application/json"


@pytest.mark.parametrize("part", [b"", b'{"name":'])
async def test_a_body_that_does_not_come_in_time_is_refused_and_its_connection_let_go(
    serve: Serve, part: bytes
) -> None:
    wire = await serve(body_timeout=timedelta(seconds=0.1))
    answer = await wire.exchange(wire.head(JSON, LENGTH) + part)
    assert refuses_and_closes(answer, 408)
    assert problem(answer)["type"] == "https://cronplane.dev/problems/body-too-slow"
    assert "0.1 seconds" in problem(answer)["detail"]


async def test_a_body_that_trickles_is_not_given_more_time_for_each_byte(serve: Serve) -> None:
    wire = await serve(body_timeout=timedelta(seconds=0.3))
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(wire.head(JSON, "Transfer-Encoding: chunked"))
    answering = asyncio.create_task(reader.read())
    async with asyncio.timeout(HANG_GUARD):
        while not answering.done():
            writer.write(chunk(b" "))
            await asyncio.wait([answering], timeout=0.02)
    assert refuses_and_closes(answering.result(), 408)
    writer.close()


async def test_a_body_in_time_is_read_however_long_the_rest_takes(serve: Serve) -> None:
    wire = await serve(body_timeout=timedelta(seconds=5), head_timeout=timedelta(seconds=0.1))
    text = json.dumps(BODY).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(wire.head(JSON, f"Content-Length: {len(text)}") + text[:-1])
    answering = asyncio.create_task(reader.readline())
    # Longer than a connection may stay without a request; but there is one.
    assert await asyncio.wait([answering], timeout=0.3) == (set(), {answering})
    writer.write(text[-1:])
    async with asyncio.timeout(HANG_GUARD):
        assert status(await answering) == 201
    writer.close()


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: api\r\nX: y\r\n"])
async def test_a_connection_without_a_whole_request_is_let_go(serve: Serve, begun: bytes) -> None:
    wire = await serve(head_timeout=timedelta(seconds=0.1))
    assert await wire.exchange(begun) == b""


async def test_a_second_request_has_as_long_as_the_first_and_no_longer(serve: Serve) -> None:
    wire = await serve(head_timeout=timedelta(seconds=0.1))
    answer = await wire.exchange(b"GET /healthz HTTP/1.1\r\nHost: api\r\n\r\nGET /healthz HTTP/1.1\r\nHo")
    assert (status(answer), answer.count(b"HTTP/1.1 ")) == (200, 1)


async def test_a_body_that_goes_on_after_its_refusal_is_not_read_for_ever(serve: Serve) -> None:
    wire = await serve(head_timeout=timedelta(seconds=0.5))
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(wire.head(JSON, "Transfer-Encoding: chunked"))
    answering = asyncio.create_task(reader.read())
    async with asyncio.timeout(HANG_GUARD):
        while not writer.is_closing():
            writer.write(chunk(b" " * 65536))
            with suppress(ConnectionError):
                await writer.drain()
        assert status(await answering) == 413


async def test_a_client_that_sends_all_of_a_large_body_before_it_reads_sees_the_refusal(serve: Serve) -> None:
    wire = await serve()
    answer = await wire.exchange(wire.head(JSON, "Content-Length: 5000000") + b" " * 5_000_000)
    assert status(answer) == 413


async def test_after_a_refusal_without_its_body_the_connection_serves_on(serve: Serve) -> None:
    wire = await serve(body_limit=1024)
    again = b"GET /healthz HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
    answer = await wire.exchange(wire.head(JSON, "Content-Length: 1025") + b" " * 1025 + again)
    assert status(answer) == 413
    assert status(answer[answer.rindex(b"HTTP/1.1 ") :]) == 200


SMUGGLED = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: api\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 6"],
        ["Content-Length: -1"],
        ["Content-Length: +1"],
        ["Content-Length: 0x5"],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length : 5"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: xchunked"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Content-Length: 5", "Host: another"],
        ["X: \0"],
    ],
    ids=str,
)
async def test_a_request_that_could_be_read_in_two_ways_ends_its_connection(wire: Wire, headers: list[str]) -> None:
    assert refuses_and_closes(await wire.exchange(wire.head(JSON, *headers) + SMUGGLED), 400)


@pytest.mark.parametrize("path", ["/crons/x", "/nowhere"])
async def test_it_is_so_on_every_path(wire: Wire, path: str) -> None:
    other = replace(wire, path=path)
    headers = ["Content-Length: 5", "Transfer-Encoding: chunked"]
    assert refuses_and_closes(await wire.exchange(other.head(*headers) + SMUGGLED), 400)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Authorization", ["Bearer x", "Bearer y"]),
        ("Idempotency-Key", ["a", "b"]),
        ("If-Match", ['"1"', "*"]),
        ("Content-Type", ["application/json", "text/plain"]),
        ("Content-Encoding", ["identity", "gzip"]),
    ],
)
async def test_a_header_that_comes_twice_is_refused(api: Any, name: str, values: list[str]) -> None:
    answer = await api.client.get("/healthz", headers=[(name, value) for value in values])
    assert (answer.status_code, answer.headers["connection"]) == (400, "close")
    assert name.lower() in answer.json()["detail"]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get"])
async def test_other_methods_are_told_which_are_served(wire: Wire, method: str) -> None:
    answer = await wire.exchange(f"{method} {wire.path} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n".encode())
    assert status(answer) == 405
    assert b"\r\nallow: GET, POST\r\n" in answer


async def test_an_endless_head_is_cut_off(wire: Wire) -> None:
    answer = await wire.exchange(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000)
    assert status(answer) == 400


async def test_no_more_connections_are_served_than_the_limit(serve: Serve) -> None:
    wire = await serve(connection_limit=3)
    held = [await asyncio.open_connection("127.0.0.1", wire.port) for _ in range(3)]
    request = b"GET /healthz HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"
    assert status(await wire.exchange(request)) == 503
    for _, writer in held:
        writer.close()
