"""What became of a part: everything is brought to its end by a runner that nobody kills, and then held to account."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
from pydantic import BaseModel

from bench.soak.scene import Scene
from bench.soak.traffic import Traffic
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.database import create_engine
from tests.distributions.fault_entries import ATTEMPTS, discrepancies, read_ledger

_MOST_NAMED = 20


class Verdict(BaseModel):
    """The figures of one part, or of several added up; `violations` are sentences."""

    seconds: float = 0.0
    fires: int = 0
    runs: Counter[str] = Counter()
    attempts: Counter[str] = Counter()
    bodies: int = 0
    effects: int = 0
    kills: Counter[str] = Counter()
    restarts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    epochs: int = 0
    defects: int = 0
    violations: list[str] = []

    def add(self, other: "Verdict") -> None:
        """Add the figures of another part to these."""
        for name in Verdict.model_fields:
            setattr(self, name, getattr(self, name) + getattr(other, name))


async def judge(scene: Scene, traffic: Traffic, connection: psycopg.Connection[tuple[Any, ...]]) -> Verdict:
    """Count, and find everything that the guarantee rules out."""
    lines = read_ledger(scene.ledger)
    verdict = Verdict(
        fires=_number(connection, _FIRES),
        runs=_counted(connection, _RUNS),
        attempts=_counted(connection, _OUTCOMES),
        bodies=sum(1 for line in lines if line.what == "entered"),
        effects=sum(1 for line in lines if line.what == "effect"),
        epochs=_number(connection, "SELECT epoch FROM scheduler.leases"),
        answers=Counter({str(status): count for status, count in traffic.answers.items()}),
    )
    engine = create_engine(scene.owner_url, pool_size=1, application_name="soak")
    verdict.violations += [str(violation) async for violation in find_violations(engine, grace=Grace())]
    await engine.dispose()
    outcomes = {(row[0], row[1]): row[2] for row in connection.execute(ATTEMPTS.encode())}
    verdict.violations += discrepancies(lines, outcomes)
    verdict.violations += _unkept_promises(traffic, connection)
    verdict.violations += (f"answered {count} times: {answer}" for answer, count in traffic.surprises.items())
    return verdict


_FIRES = "SELECT coalesce(sum(coalesce(missed_count, 1)), 0) FROM scheduler.cron_runs WHERE trigger_kind = 'schedule'"
_RUNS = "SELECT status || ' ' || reason, count(*) FROM scheduler.cron_runs GROUP BY 1 ORDER BY 1"
_OUTCOMES = "SELECT coalesce(outcome, 'open'), count(*) FROM scheduler.cron_attempts GROUP BY 1 ORDER BY 1"
_OPEN = "SELECT id::text FROM scheduler.cron_runs WHERE finished_at IS NULL"


def _number(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return 0 if row is None else int(row[0])


def _counted(connection: psycopg.Connection[tuple[Any, ...]], query: str) -> Counter[str]:
    return Counter({row[0]: row[1] for row in connection.execute(query.encode())})


def _unkept_promises(traffic: Traffic, connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    """Find what the API said yes to and what is not there exactly once, and runs that nobody will end any more."""
    crons = connection.execute("SELECT name, id::text FROM scheduler.cron_jobs WHERE name LIKE 'registered %'")
    if sorted(crons.fetchall()) != sorted(traffic.registered.items()):
        yield "the crons that were registered are not those that are there, each of them once"
    runs = connection.execute("SELECT id::text FROM scheduler.cron_runs WHERE trigger_kind = 'manual'")
    if {row[0] for row in runs} != traffic.triggered:
        yield "the runs that were triggered are not those that are there"
    for row in connection.execute(_OPEN.encode()):
        yield f"run {row[0]} is not over, and nothing is going on any more"


def table(verdict: Verdict) -> Iterator[str]:
    """Put the figures in words, a line each."""
    yield f"  {'time':<42} {verdict.seconds / 60:>12,.1f} min"
    yield f"  {'fires':<42} {verdict.fires:>12,}   {verdict.fires / max(verdict.seconds, 1):.1f} a second"
    kills = sum(verdict.kills.values())
    yield f"  {'processes killed':<42} {kills:>12,}   {60 * kills / max(verdict.seconds, 1):.1f} a minute"
    for title, counter in (("killed:", verdict.kills), ("PostgreSQL restarted:", verdict.restarts)):
        yield from (f"    {f'{title} {name}':<40} {count:>12,}" for name, count in sorted(counter.items()))
    yield from (f"    {name:<40} {count:>12,}" for name, count in sorted(verdict.ends.items()))
    yield f"  {'terms of a leader':<42} {verdict.epochs:>12,}"
    for title, counter in (("run", verdict.runs), ("attempt", verdict.attempts), ("answer", verdict.answers)):
        yield from (f"    {f'{title} {name}':<40} {count:>12,}" for name, count in sorted(counter.items()))
    yield f"  {'bodies entered':<42} {verdict.bodies:>12,}"
    yield f"  {'effects':<42} {verdict.effects:>12,}"
    yield f"  {'defects logged':<42} {verdict.defects:>12,}"
    yield f"  {'violations':<42} {len(verdict.violations):>12,}"
    yield from (f"    {sentence}" for sentence in verdict.violations[:_MOST_NAMED])
