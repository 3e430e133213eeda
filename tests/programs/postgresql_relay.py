"""Stands between Cronplane and PostgreSQL, both on Unix sockets, and breaks connections as it is told to.

    python postgresql_relay.py DIRECTORY UPSTREAM_SOCKET SEED

It listens in DIRECTORY under PostgreSQL's name for a socket. An order is a line of JSON on standard input, answered by
the line `ordered`; it sets the probability of each fault (those that it does not name are 0):

- `refuse`: a new connection is closed at once;
- `cut_before_commit`: a connection is closed when a COMMIT is to be sent to the server, which never sees it;
- `cut_after_commit`: the server carries the COMMIT out, and the connection is closed before its answer comes through;
- `stall`: a COMMIT is held back for `stall_seconds`.

A statement outside a transaction that writes counts as a commit. `only` spares transactions in which no statement has
that text; `limit` is how many faults there may be in all. Each fault is told in a line of standard output.
"""

import asyncio
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CANCEL_REQUEST = 80877102
_WRITES = (b"INSERT", b"UPDATE", b"DELETE", b"WITH")


def tell(line: str) -> None:
    """Say something to whoever started us."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass(slots=True)
class Orders:
    """What is to be broken, and how often."""

    generator: random.Random
    rates: dict[str, Any] = field(default_factory=dict)

    def draws(self, fault: str) -> bool:
        """Decide whether to break something, and tell if so."""
        limit = self.rates.get("limit")
        if limit == 0 or self.generator.random() >= self.rates.get(fault, 0.0):
            return False
        if limit is not None:
            self.rates["limit"] = limit - 1
        tell(fault)
        return True

    def concerns(self, statements: list[bytes]) -> bool:
        only = self.rates.get("only", "").encode()
        return any(only in statement for statement in statements)


class Session:
    """One connection. It follows the protocol just far enough to see where transactions end."""

    def __init__(self, orders: Orders, client: "Stream", server: "Stream") -> None:
        self._orders = orders
        self._client = client
        self._server = server
        self._prepared: dict[bytes, bytes] = {}
        self._statements: list[bytes] = []
        self._is_in_transaction = False
        # From here on nothing of what the server says gets through, and at its next pause the connection ends.
        self._is_answer_lost = False

    async def run(self) -> None:
        """Relay until one side hangs up or a fault ends it."""
        pumps = [asyncio.create_task(self._to_server()), asyncio.create_task(self._to_client())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._client.close()
            self._server.close()

    async def _to_server(self) -> None:
        startup = await self._client.read_startup()
        await self._server.write(startup)
        if int.from_bytes(startup[4:8]) == _CANCEL_REQUEST:
            return
        while True:
            kind, body = await self._client.read_message()
            statement = self._statement(kind, body)
            if statement is not None and not await self._passes(statement):
                return
            await self._server.write_message(kind, body)

    def _statement(self, kind: bytes, body: bytes) -> bytes | None:
        """Give the text of the statement that a message has the server carry out, if it has."""
        if kind == b"Q":
            return body.rstrip(b"\0")
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text
        if kind == b"B":
            return self._prepared.get(body.split(b"\0", 2)[1], b"")
        return None

    async def _passes(self, statement: bytes) -> bool:
        word = statement.lstrip()[:8].upper()
        if word.startswith(b"BEGIN"):
            self._statements = []
        self._statements.append(statement)
        is_commit = word.startswith(b"COMMIT") or (not self._is_in_transaction and word.startswith(_WRITES))
        if not is_commit or not self._orders.concerns(self._statements):
            return True
        if self._orders.draws("cut_before_commit"):
            return False
        if self._orders.draws("stall"):
            await asyncio.sleep(self._orders.rates["stall_seconds"])
        self._is_answer_lost = self._orders.draws("cut_after_commit")
        return True

    async def _to_client(self) -> None:
        while True:
            kind, body = await self._server.read_message()
            if kind == b"Z":
                if self._is_answer_lost:
                    return
                self._is_in_transaction = body != b"I"
                if not self._is_in_transaction:
                    self._statements = []
            if not self._is_answer_lost:
                await self._client.write_message(kind, body)


@dataclass(slots=True)
class Stream:
    """Messages of PostgreSQL's protocol, version 3, on one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def read_startup(self) -> bytes:
        length = await self.reader.readexactly(4)
        return length + await self.reader.readexactly(int.from_bytes(length) - 4)

    async def read_message(self) -> tuple[bytes, bytes]:
        kind = await self.reader.readexactly(1)
        length = int.from_bytes(await self.reader.readexactly(4))
        return kind, await self.reader.readexactly(length - 4)

    async def write_message(self, kind: bytes, body: bytes) -> None:
        await self.write(kind + (len(body) + 4).to_bytes(4) + body)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()


async def _serve(directory: Path, upstream: str, orders: Orders) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Stream(reader, writer)
        try:
            if orders.draws("refuse"):
                return
            server = Stream(*await asyncio.open_unix_connection(upstream))
            await Session(orders, client, server).run()
        except OSError:
            return
        finally:
            client.close()

    async with await asyncio.start_unix_server(accept, directory / ".s.PGSQL.5432"):
        tell("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            orders.rates = json.loads(line)
            tell("ordered")


def main(directory: str, upstream: str, seed: str) -> None:
    """Serve until standard input ends."""
    asyncio.run(_serve(Path(directory), upstream, Orders(random.Random(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
