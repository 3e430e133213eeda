"""Runners and APIs that die at random places and are started again at once, and a PostgreSQL that restarts at times.

Each process is armed with one order (see `fault_entries`) when it starts. One that does not come to its place in time
is killed, stopped for a while, or told to drain, whichever chance says.
"""

import asyncio
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bench.role import HOST
from bench.server import SERVICE_ROLE
from bench.soak.scene import SPEED, Scene
from cronplane_core.database import connection_string
from cronplane_core.failpoints import Failpoint

ROOT = Path(__file__).parents[2]
ENTRIES = ROOT / "tests" / "distributions"
_PROGRAM = ROOT / "tests" / "programs" / "cronplane_with_faults.py"
RUNNERS = 3
_API_PLACES = (Failpoint.API_COMMITTED, Failpoint.NOTIFY)
_WORKER_PLACES = (Failpoint.BODY, "mid-body", Failpoint.RESULT)
_DRAIN_PLACES = (Failpoint.LEASE_RELEASE, Failpoint.HAND_BACK_COMMIT)
_RUNNER_PLACES = (
    Failpoint.CLAIM_COMMIT,
    Failpoint.CLAIM_COMMITTED,
    Failpoint.START_COMMIT,
    Failpoint.START_COMMITTED,
    Failpoint.FINISH_COMMIT,
    Failpoint.FINISH_COMMITTED,
    Failpoint.LEASE_RENEWAL,
)
_BREAKABLE = (Failpoint.CLAIM_COMMIT, Failpoint.START_COMMIT, Failpoint.FINISH_COMMIT, Failpoint.LEASE_RENEWAL)
_LEASE_SECONDS = 1.0
# How long a process may live, in seconds, before chance ends it; a standby lives as long as it stands by.
_LIFE = (4.0, 9.0)
_API_LIFE = (6.0, 15.0)
_POSTGRESQL_LIFE = (35.0, 60.0)
_POSTGRESQL_AWAY = (0.0, 2.0)
# What PostgreSQL makes of a signal (section "Shutting Down the Server" of its manual).
_SHUTDOWNS = {signal.SIGINT: "fast", signal.SIGQUIT: "immediate"}
_DRAINED = 0.15
_STOPPED = 0.25
_STOPPED_FOR = (1.5, 3.0)
_DRAIN_GUARD = 60.0


def _order(role: str, chance: random.Random) -> str:
    if role == "api":
        return f"{chance.choice(_API_PLACES)} {chance.randint(1, 15)} kill"
    kind = chance.random()
    if kind < 0.1:
        return f"{chance.choice(_WORKER_PLACES)} 0.05 kill"
    if kind < 0.35:
        return f"{chance.choice(_WORKER_PLACES)} {chance.randint(1, 6)} kill-runner"
    if kind < 0.5:
        return f"{chance.choice(_DRAIN_PLACES)} 1 kill"
    if kind < 0.6:
        return f"{chance.choice(_BREAKABLE)} 0.1 break"
    return f"{chance.choice(_RUNNER_PLACES)} {chance.randint(1, 4)} kill"


def _drains(order: str) -> bool:
    """Tell whether the place of an order is come to only by a runner that is told to end."""
    return order.partition(" ")[0] in _DRAIN_PLACES


def name_kill(line: str) -> str:
    """Say which process a line of the file of kills tells of, and where it was killed."""
    place, action = line.split()
    if place in _API_PLACES:
        return f"API at {place}"
    return f"worker at {place}" if place in _WORKER_PLACES and action == "kill" else f"runner at {place}"


class Fleet:
    """The processes of a part. `killed` counts those that died of SIGKILL, `ends` says how the others ended."""

    def __init__(self, scene: Scene, chance: random.Random, *, ports: Mapping[str, int]) -> None:
        self._scene = scene
        self._chance = chance
        self._ports = ports
        self.killed: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.leader = ""
        self.leader_changed = asyncio.Condition()

    async def run(self) -> None:
        """Keep everything going until cancelled; then nothing of it is left."""
        log = os.open(self._scene.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._restart_postgresql())
                for _ in range(RUNNERS):
                    group.create_task(self._keep("runner", log))
                for name in self._ports:
                    group.create_task(self._keep(name, log))
        finally:
            os.close(log)

    async def _keep(self, name: str, log: int) -> None:
        role = name.partition("-")[0]
        while True:
            order = _order(role, self._chance)
            process = await self.start(role, order, log, port=self._ports.get(name, 0))
            ending = asyncio.create_task(self._end_some_time(role, order, process))
            try:
                await process.wait()
                self._count(role, process.returncode)
            finally:
                ending.cancel()
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def start(self, role: str, order: str, log: int, *, port: int) -> asyncio.subprocess.Process:
        """Start a process; `order` may be empty."""
        settings = {
            "DATABASE_URL": connection_string(self._scene.owner_url.set(username=SERVICE_ROLE)),
            "INSTALLATION_KEY": self._scene.installation_key,
            "PORT": str(port),
            "METRICS_PORT": "0",
            "LOG_LEVEL": "error",
            "LEASE_DURATION": str(_LEASE_SECONDS * SPEED),
            "DRAIN_GRACE": "1",
            # One is not enough for all that is due, so that something waits in it when it is told to drain.
            "WORKERS": "1" if _drains(order) else "3",
            "MAX_WORKERS": "1" if _drains(order) else "16",
            "TRIGGERS_PER_MINUTE": "1000000",
            "TEST_FAILPOINT": order,
            "TEST_SEED": str(self._chance.random()),
            "TEST_KILLS": str(self._scene.kills),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            str(_PROGRAM),
            role,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=log,
            env={
                **os.environ,
                **{f"CRONPLANE_{name}": value for name, value in settings.items()},
                "PYTHONPATH": os.pathsep.join([str(ENTRIES), *filter(None, [os.environ.get("PYTHONPATH")])]),
            },
        )

    async def _end_some_time(self, role: str, order: str, process: asyncio.subprocess.Process) -> None:
        if role == "runner":
            await self._until_leading(process.pid)
        await self._live(role)
        with suppress(ProcessLookupError):
            if _drains(order) or self._chance.random() < _DRAINED:
                process.terminate()
                await asyncio.sleep(_DRAIN_GUARD)
            elif role == "runner" and self._chance.random() < _STOPPED:
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(self._chance.uniform(*_STOPPED_FOR))
                process.send_signal(signal.SIGCONT)
                self.ends["runner stopped for a while"] += 1
                await self._live(role)
            process.kill()

    async def _live(self, role: str) -> None:
        await asyncio.sleep(self._chance.uniform(*(_LIFE if role == "runner" else _API_LIFE)))

    async def _until_leading(self, pid: int) -> None:
        async with self.leader_changed:
            await self.leader_changed.wait_for(lambda: f"-{pid}-" in self.leader)

    def _count(self, role: str, code: int | None) -> None:
        if code == -signal.SIGKILL:
            self.killed[role] += 1
        else:
            self.ends[f"{role} ended with status {code}"] += 1

    async def _restart_postgresql(self) -> None:
        """Restart the server now and then, from this very thread, which it dies with."""
        server = self._scene.server
        while True:
            await asyncio.sleep(self._chance.uniform(*_POSTGRESQL_LIFE))
            shutdown = self._chance.choice((signal.SIGINT, signal.SIGQUIT))
            os.kill(server.pid, shutdown)
            server.stop()
            try:
                await asyncio.sleep(self._chance.uniform(*_POSTGRESQL_AWAY))
            finally:
                server.start()
            self.restarts[_SHUTDOWNS[shutdown]] += 1


def free_port() -> int:
    """Give a port on which nobody listens."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
