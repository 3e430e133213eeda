"""Clients of the API that register, change, pause, trigger and delete crons, and that repeat what got no answer.

A registration and a trigger carry an Idempotency-Key, and are repeated until an answer settles them, so that each of
them must have happened exactly once.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2

from bench.role import HOST
from bench.soak.scene import SCHEDULES, payload

CLIENTS = 3
_MOST_CRONS = 60
_PAUSE = 0.1
_TIMEOUT = 20.0
# What an honest client may be told for good, besides success: it is gone, or others are changing it.
_EXPECTED = {404, 409}


class Traffic:
    """What the clients did. `registered` and `triggered` are what the API has said yes to.

    `surprises` are answers that no client should ever get, and how often one got them.
    """

    def __init__(
        self, *, organization_id: UUID, key: str, ports: Sequence[int], ledger: Path, chance: random.Random
    ) -> None:
        self._path = f"/crons/{organization_id}"
        self._headers = {"Authorization": f"Bearer {key}"}
        self._ports = ports
        self._ledger = ledger
        self._chance = chance
        self._crons: list[str] = []
        self.registered: dict[str, str] = {}
        self.triggered: set[str] = set()
        self.answers: Counter[int] = Counter()
        self.surprises: Counter[str] = Counter()
        self.is_over = False

    async def run(self) -> None:
        """Call until `is_over`; what is under way then is settled first."""
        async with httpx2.AsyncClient(timeout=_TIMEOUT) as client, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._call(client))

    async def _call(self, client: httpx2.AsyncClient) -> None:
        while not self.is_over:
            await self._act(client)
            await asyncio.sleep(_PAUSE)

    async def _act(self, client: httpx2.AsyncClient) -> None:
        action = self._chance.random()
        if len(self._crons) < _MOST_CRONS or action < 0.1:
            await self._register(client)
            return
        cron_id = self._chance.choice(self._crons)
        if action < 0.4:
            await self._settled(client, "PATCH", cron_id, {"cron_expr": self._chance.choice(SCHEDULES)})
        elif action < 0.65:
            await self._settled(client, "POST", f"{cron_id}/{self._chance.choice(('pause', 'resume'))}")
        elif action < 0.9:
            await self._trigger(client, cron_id)
        else:
            self._crons.remove(cron_id)
            await self._settled(client, "DELETE", cron_id)

    async def _register(self, client: httpx2.AsyncClient) -> None:
        name = f"registered {uuid4()}"
        body = {
            "name": name,
            "cron_expr": self._chance.choice(SCHEDULES),
            "tz": "UTC",
            "entrypoint": "keep_ledger",
            "payload": payload(self._ledger, self._chance),
        }
        answer = await self._settled(client, "POST", "", body)
        self.registered[name] = answer.json()["id"]
        self._crons.append(answer.json()["id"])

    async def _trigger(self, client: httpx2.AsyncClient, cron_id: str) -> None:
        answer = await self._settled(client, "POST", f"{cron_id}/trigger")
        if answer.status_code == 202:
            self.triggered.add(answer.json()["id"])

    async def _settled(
        self, client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None
    ) -> httpx2.Response:
        """Ask one API or another, the same each time, until there is an answer other than that it cannot say."""
        headers = {**self._headers, "Idempotency-Key": str(uuid4())}
        while True:
            url = f"http://{HOST}:{self._chance.choice(self._ports)}{self._path}{'/' if path else ''}{path}"
            try:
                answer = await client.request(method, url, json=body, headers=headers)
            except httpx2.TransportError:
                await asyncio.sleep(_PAUSE)
                continue
            self.answers[answer.status_code] += 1
            if answer.is_success or answer.status_code in _EXPECTED:
                return answer
            if answer.status_code != 503:
                self.surprises[f"{answer.status_code} {answer.text}"] += 1
            await asyncio.sleep(_PAUSE)
