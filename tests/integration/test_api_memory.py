"""Many attackers at once, each with a body of its own kind: how much memory the API takes, and whom it still serves."""

import asyncio
import gzip
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

COMMAND = Path(sys.executable).with_name("cronplane")
HANG_GUARD = 120.0
LIMIT = 64 * 1024
STREAM = 20 * 1024 * 1024
BLOCK = b" " * LIMIT
ATTACKERS = 50
# 50 attackers times 20 MB would be a gigabyte. A connection holds at most the limit of its body, as much again that the
# socket gave meanwhile, and one read of a quarter of a megabyte.
MOST_KILOBYTES = 32 * 1024
BODY = {"cron_expr": "0 9 * * 1-5", "tz": "UTC", "entrypoint": "no_op", "payload": {}}


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def filled(start: str, item: str, end: str) -> bytes:
    """Give a body of nearly the limit: `start`, as many `item`s as fit, each with its number, and `end`."""
    items: list[str] = []
    size = len(start) + len(end)
    while (size := size + len(item.format(len(items))) + 1) < LIMIT:
        items.append(item.format(len(items)))
    return (start + ",".join(items) + end).encode()


def streamed(block: bytes) -> Iterator[bytes]:
    return (block for _ in range(STREAM // len(block)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of attack: the header that says how long the body is, or how it is written, and the body in parts."""

    header: str
    parts: Callable[[], Iterator[bytes]]
    status: int
    key: str = "editor"


def whole(body: bytes, status: int, *, header: str = "X-Kind: whole") -> Kind:
    return Kind(header=f"Content-Length: {len(body)}\r\n{header}", parts=lambda: iter([body]), status=status)


CHUNKED = "Transfer-Encoding: chunked"
KINDS = {
    "endless, in chunks": Kind(header=CHUNKED, parts=lambda: streamed(chunk(BLOCK)), status=413),
    "endless, from a stranger": Kind(header=CHUNKED, parts=lambda: streamed(chunk(BLOCK)), status=404, key="stranger"),
    "endless, in small chunks": Kind(header=CHUNKED, parts=lambda: streamed(chunk(b"[" * 256) * 256), status=413),
    "long, and says so": Kind(header=f"Content-Length: {STREAM}", parts=lambda: streamed(BLOCK), status=413),
    "never whole": Kind(header=f"Content-Length: {LIMIT}", parts=lambda: iter([BLOCK[:-1]]), status=408),
    "nested lists": whole(b"[" * LIMIT, 400),
    "nested objects": whole(b'{"a":' * (LIMIT // 5), 400),
    "many lists": whole(filled("[", "[]", "]"), 422),
    "many names that are not known": whole(filled("{", '"{:x}":0', "}"), 422),
    "many NULs": whole(filled('{"payload":{"value":[', '"\\u0000"', "]}}"), 422),
    "NULs below a long name": whole(filled('{"payload":{"' + "n" * (LIMIT // 2) + '":[', '"\\u0000"', "]}}"), 422),
    "a long text of escapes": whole(b'{"name":"' + b"\\ud83d\\ude00" * (LIMIT // 12 - 2) + b'"}', 422),
    "many numbers": whole(filled('{"payload":{"value":[', "9{}", "]}}"), 422),
    "compressed": whole(gzip.compress(b" " * STREAM), 415, header="Content-Encoding: gzip"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The API as a process of its own."""

    process: Process
    port: int

    def peak(self) -> int:
        """Give the most memory that it has had in RAM since `forget_peak`, in kilobytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1])

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")


@pytest.fixture
async def server(api_settings: Any) -> AsyncIterator[Server]:
    settings = api_settings()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRONPLANE_")} | {
        "CRONPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
        "CRONPLANE_INSTALLATION_KEY": settings.installation_key.get_secret_value(),
        "CRONPLANE_PORT": str(port),
        "CRONPLANE_BODY_TIMEOUT": "PT3S",
    }
    process = await asyncio.create_subprocess_exec(COMMAND, "api", env=environment, stderr=PIPE)
    assert process.stderr is not None
    said: list[bytes] = []
    while not said or b"Uvicorn running on" not in said[-1]:
        said.append(await process.stderr.readline())
        assert said[-1], f"the API ended before it served: {said}"
    reading = asyncio.create_task(process.stderr.read())
    yield Server(process=process, port=port)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(HANG_GUARD):
        await reading
        await process.wait()


async def attack(server: Server, head: str, parts: Iterator[bytes]) -> bytes:
    """Send as much of a body as the server takes, and give the first line of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode())
    for part in parts:
        writer.write(part)
        await writer.drain()
    line = await reader.readline()
    writer.close()
    return line


async def test_attackers_with_bodies_of_every_kind_get_a_refusal_and_little_memory(api: Any, server: Server) -> None:
    path = f"/crons/{api.organization_id}"
    url, headers = f"http://127.0.0.1:{server.port}{path}", {"Authorization": f"Bearer {api.keys['editor']}"}
    async with asyncio.timeout(HANG_GUARD), httpx2.AsyncClient(headers=headers, timeout=HANG_GUARD) as honest:
        for number in range(5):
            await honest.post(url, json=BODY | {"name": f"before {number}"})
        server.forget_peak()
        before = server.peak()
        for name, kind in KINDS.items():
            key = f"Authorization: Bearer {api.keys[kind.key]}"
            head = (
                f"POST {path} HTTP/1.1\r\nHost: api\r\n{key}\r\nContent-Type: application/json\r\n{kind.header}\r\n\r\n"
            )
            async with asyncio.TaskGroup() as group:
                attackers = [group.create_task(attack(server, head, kind.parts())) for _ in range(ATTACKERS)]
                answer = await honest.post(url, json=BODY | {"name": name})
                assert answer.status_code == 201, answer.text
            assert {attacker.result().split(b" ")[1] for attacker in attackers} == {str(kind.status).encode()}, name
            assert server.peak() - before <= MOST_KILOBYTES, name
