"""What only a real server and a real socket can show: chunks, halves, and answers before the body has come."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn

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


@pytest.fixture
async def wire(api: Any) -> AsyncIterator[Wire]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(api.application, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield Wire(port=listener.getsockname()[1], path=f"/crons/{api.organization_id}", key=api.keys["editor"])
    # At once, whatever a failed test has left open.
    server.should_exit = server.force_exit = True
    await serving


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
