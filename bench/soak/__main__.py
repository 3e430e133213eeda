"""Runs one part of the soak and adds it to what the parts before it came to; parts of any length add up."""

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psycopg
from pydantic import BaseModel, TypeAdapter

from bench.server import connect
from bench.soak.fleet import ENTRIES, Fleet, free_port, name_kill
from bench.soak.scene import Scene, prepared, set_clock
from bench.soak.traffic import Traffic
from bench.soak.verdict import Verdict, judge, table
from cronplane_core.database import connection_string
from tests.distributions.fault_entries import SETTLED

_APIS = 2
_POLL = 0.2
_SETTLE_GUARD = 180.0
_DEFECT = "the leader failed and starts again"


async def soak(scene: Scene, chance: random.Random, *, seconds: float) -> Verdict:
    """Let everything go on for so long, with processes dying all the while, and judge what came of it."""
    ports = {f"api-{number}": free_port() for number in range(_APIS)}
    fleet = Fleet(scene, chance, ports=ports)
    traffic = Traffic(
        organization_id=scene.organization_id,
        key=scene.key,
        ports=list(ports.values()),
        ledger=scene.ledger,
        chance=chance,
    )
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        going = [group.create_task(fleet.run()), group.create_task(_watch_leader(scene, fleet))]
        calling = group.create_task(traffic.run())
        group.create_task(_show_progress(began, seconds, scene))
        await asyncio.sleep(seconds)
        traffic.is_over = True
        await calling
        for task in going:
            task.cancel()
    verdict = await _settle_and_judge(scene, fleet, traffic)
    verdict.seconds = time.monotonic() - began
    verdict.kills = _kills(scene, fleet)
    verdict.restarts, verdict.ends = fleet.restarts, fleet.ends
    verdict.defects = scene.log.read_text(encoding="utf-8", errors="replace").count(_DEFECT)
    return verdict


def _kills(scene: Scene, fleet: Fleet) -> Counter[str]:
    """Count by process and place; those that were not killed at a failpoint were killed by us, whatever they did."""
    kills = Counter(map(name_kill, scene.kills.read_text(encoding="ascii").splitlines()))
    for role, name in (("runner", "runner"), ("api", "API")):
        at_failpoints = sum(count for kill, count in kills.items() if kill.startswith(f"{name} "))
        kills[f"{name} at any moment"] = fleet.killed[role] - at_failpoints
    return kills


async def _watch_leader(scene: Scene, fleet: Fleet) -> None:
    """Tell the fleet who leads, as far as PostgreSQL says."""
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                connection_string(scene.owner_url), autocommit=True
            ) as connection:
                while True:
                    cursor = await connection.execute("SELECT holder FROM scheduler.leases")
                    row = await cursor.fetchone()
                    async with fleet.leader_changed:
                        fleet.leader = "" if row is None else row[0]
                        fleet.leader_changed.notify_all()
                    await asyncio.sleep(_POLL)
        except psycopg.OperationalError:
            await asyncio.sleep(_POLL)


async def _show_progress(began: float, seconds: float, scene: Scene) -> None:
    while (elapsed := time.monotonic() - began) < seconds:
        killed = scene.kills.read_text(encoding="ascii").count("\n") if scene.kills.exists() else 0
        print(f"  {elapsed / 60:6.1f} min   {killed:,} killed at a failpoint", flush=True)
        await asyncio.sleep(60)


async def _settle_and_judge(scene: Scene, fleet: Fleet, traffic: Traffic) -> Verdict:
    with connect(scene.owner_url) as connection, scene.log.open("ab") as log:
        [(now,)] = connection.execute("SELECT scheduler.now() + interval '1 minute'").fetchall()
        set_clock(connection, now, speed=1.0)  # type: ignore[arg-type]  # a row of unknown types
        runner = await fleet.start("runner", "", log.fileno(), port=0)
        try:
            is_settled = await _settled(connection)
        finally:
            runner.kill()
            await runner.wait()
        verdict = await judge(scene, traffic, connection)
        if not is_settled:
            verdict.violations.append("a runner that nobody disturbed did not bring everything to its end")
        return verdict


async def _settled(connection: psycopg.Connection[tuple[object, ...]]) -> bool:
    give_up = time.monotonic() + _SETTLE_GUARD
    while connection.execute(SETTLED.encode()).fetchone() != (True,):
        if time.monotonic() > give_up:
            return False
        await asyncio.sleep(_POLL)
    return True


class _Part(BaseModel):
    """What is kept of a part."""

    seed: str
    figures: Verdict


_PARTS = TypeAdapter(list[_Part])


def main() -> None:
    """Run a part, write its figures beside those of the others, and print all of them."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long this part takes")
    parser.add_argument("--seed", default=secrets.token_hex(4), help="what every choice of this part follows from")
    parser.add_argument("--state", type=Path, default=Path(".cronplane/soak"), help="folder in which results add up")
    chosen = parser.parse_args()
    chosen.state.mkdir(parents=True, exist_ok=True)
    results = chosen.state / "results.json"
    parts = _PARTS.validate_json(results.read_bytes()) if results.exists() else []
    print(f"part {len(parts) + 1}, {chosen.minutes:g} minutes, seed {chosen.seed}", flush=True)
    sys.path.insert(0, str(ENTRIES))
    chance = random.Random(chosen.seed)  # noqa: S311 - no secret
    folder = Path(tempfile.mkdtemp(prefix=f"part-{len(parts) + 1}-", dir=chosen.state)).resolve()
    with prepared(folder, chance) as scene:
        verdict = asyncio.run(soak(scene, chance, seconds=60 * chosen.minutes))
    parts.append(_Part(seed=chosen.seed, figures=verdict))
    results.write_bytes(_PARTS.dump_json(parts, indent=2))
    total = Verdict()
    for part in parts:
        total.add(part.figures)
    print(f"\n{len(parts)} part{'s' if len(parts) > 1 else ''}, of which the last had seed {chosen.seed}")
    print("\n".join(table(total)), flush=True)
    sys.exit(1 if total.violations or total.defects else 0)


main()
