"""Where two things cross in the life of a run: a late word, a cut connection, an edit, an older replica."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import lease as leases
from cronplane_core import run_repository, run_transitions
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.cron_repository import Cron
from cronplane_core.database import connection_string, create_engine, transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.run_transitions import QueuedRun
from cronplane_core.signed_tokens import Purpose, TokenClaims, TokenSigner, parse_token_keys
from cronplane_core.tables import Execution
from cronplane_entries.registry import CronRegistry
from cronplane_operator.dispatcher import Dispatcher
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.worker_pool import WorkerPool
from cronplane_operator.worker_protocol import Outcome, Task

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
HANG_GUARD = 30.0
DISTRIBUTIONS = Path(__file__).parent.parent / "distributions"


@pytest.fixture
def signer(token_keys: str) -> TokenSigner:
    return parse_token_keys(token_keys)


class Process:
    """A process that runs an attempt, as a pod will."""

    def __init__(self, client: Any, run_id: UUID, token: str, *, number: int = 1) -> None:
        self.client, self.run_id, self.token, self.number = client, run_id, token, number
        self.nonce = str(uuid4())

    async def say(self, what: str, **body: Any) -> Any:
        return await self.client.post(
            f"/runs/{self.run_id}/attempts/{self.number}/{what}",
            headers={"Authorization": f"Bearer {self.token}"},
            json={"nonce": self.nonce, **body},
        )

    async def start(self) -> Any:
        return await self.say("start", location="a pod")


async def trigger(engine: AsyncEngine, cron: Cron) -> UUID:
    async with transaction(engine) as connection:
        run = await run_repository.insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
    return run.id


@pytest.fixture
def begin(api: Any, engine: AsyncEngine, add_cron: Any, database: Any, signer: TokenSigner) -> Callable[..., Any]:
    async def begin(*, entrypoint: str = "in_a_pod", **policy: Any) -> Process:
        database.set_clock(NOON, speed=0)
        policy = {"timeout": timedelta(minutes=10), **policy}
        cron = await add_cron(entrypoint=entrypoint, enabled=False, **policy)
        run_id = await trigger(engine, cron)
        return Process(api.client, run_id, token_of(signer, api, run_id))

    return begin


def token_of(signer: TokenSigner, api: Any, run_id: UUID, *, attempt: int = 1) -> str:
    claims = TokenClaims(
        purpose=Purpose.ATTEMPT,
        organization_id=api.organization_id,
        run_id=run_id,
        attempt=attempt,
        expires_at=NOON + timedelta(hours=1),
    )
    return signer.sign(claims)


def somebody_waits_for_a_lock(database: Any) -> None:
    """Ask until it is so; PostgreSQL tells nobody of it by itself."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    assert any(database.execute(waits) != [(0,)] for _ in range(2000))


async def violations(engine: AsyncEngine) -> list[str]:
    return [violation.message async for violation in find_violations(engine, grace=Grace())]


async def test_a_cancelled_run_whose_attempt_hands_its_work_on_leaves_no_attempt_open(
    begin: Any, api: Any, database: Any, engine: AsyncEngine
) -> None:
    process = await begin()
    await process.start()
    [[cron_id]] = database.execute("SELECT cron_id FROM scheduler.cron_runs")
    await api.call("POST", f"{cron_id}/runs/{process.run_id}/cancel")
    answer = await process.say("finish", outcome="accepted")
    assert answer.json()["status"] == "cancelled"
    assert database.execute("SELECT outcome FROM scheduler.cron_attempts") == [("cancelled",)]
    assert await violations(engine) == []


async def test_a_heartbeat_after_the_work_was_handed_on_does_not_cut_the_wait_short(
    begin: Any, database: Any, engine: AsyncEngine
) -> None:
    process = await begin()
    await process.start()
    await process.say("finish", outcome="accepted")
    late = await process.say("heartbeat")
    database.set_clock(NOON + timedelta(minutes=2), speed=0)
    assert await violations(engine) == []
    assert late.status_code == 409


async def test_a_heartbeat_that_waited_for_its_attempts_end_is_told_of_it(begin: Any, database: Any) -> None:
    process = await begin(max_attempts=2)
    await process.start()
    address = connection_string(database.owner_url)
    async with await psycopg.AsyncConnection.connect(address) as reaper:
        await reaper.execute("SELECT FROM scheduler.cron_runs FOR UPDATE")
        await reaper.execute("UPDATE scheduler.cron_runs SET status = 'queued', reason = 'RetryScheduled'")
        await reaper.execute("UPDATE scheduler.cron_attempts SET outcome = 'lost', finished_at = scheduler.now()")
        beat = asyncio.create_task(process.say("heartbeat"))
        await asyncio.to_thread(somebody_waits_for_a_lock, database)
        await reaper.commit()
        answer = await beat
    assert (answer.status_code, answer.json().get("token")) == (409, None)


async def test_an_attempt_in_a_pod_with_a_short_timeout_does_not_outlive_its_deadline(
    begin: Any, engine: AsyncEngine
) -> None:
    process = await begin(timeout=timedelta(seconds=2))
    await process.start()
    async with transaction(engine) as connection:
        overdue = await run_transitions.lock_overdue(connection, now=NOON + timedelta(seconds=32), limit=10)
    assert [found.run.id for found in overdue] == [process.run_id]


async def test_an_attempt_cannot_be_completed_long_after_its_deadline(begin: Any, database: Any) -> None:
    process = await begin(timeout=timedelta(seconds=2))
    await process.start()
    database.set_clock(NOON + timedelta(minutes=30), speed=0)
    answer = await process.say("finish", outcome="completed")
    assert answer.status_code == 409 or answer.json()["status"] == "timed_out"


async def test_a_process_is_not_let_through_by_an_api_that_does_not_know_its_entry_with_an_internal_error(
    begin: Any, start_api: Any, entries: CronRegistry
) -> None:
    process = await begin()
    older = CronRegistry()
    for name, spec in entries.items():
        if str(name) != "in_a_pod":
            older[name] = spec
    _, process.client = await start_api(registry=older)
    assert (await process.start()).status_code in {200, 503}


async def test_a_nonce_of_another_run_does_not_spoil_that_runs_callback(
    engine: AsyncEngine, add_cron: Any, database: Any, organization: Any, other_organization: Any
) -> None:
    nonce, runs = uuid4(), []
    for owner in (organization, other_organization):
        cron = await add_cron(entrypoint="in_a_pod", enabled=False, organization_id=owner.id)
        runs.append(await trigger(engine, cron))
    for run_id, kept in zip(runs, (b"first", b"second"), strict=True):
        async with transaction(engine) as connection:
            now = database.execute("SELECT scheduler.now()")[0][0]
            how: dict[str, Any] = {
                "epoch": None,
                "location": "a pod",
                "execution": Execution.POD,
                "lease": timedelta(minutes=1),
            }
            await run_transitions.start(connection, nonces={run_id: nonce}, now=now, **how)
            await run_transitions.keep_callbacks(connection, hashes={(run_id, 1): kept})
    hashes = dict(database.execute("SELECT run_id, callback_hash FROM scheduler.cron_attempts"))
    assert [bytes(hashes[run_id]) for run_id in runs] == [b"first", b"second"]


async def test_what_is_completed_has_no_error(begin: Any, database: Any) -> None:
    process = await begin()
    await process.start()
    answer = await process.say("finish", outcome="completed", error={"type": "E", "message": "m"})
    [[error]] = database.execute("SELECT error FROM scheduler.cron_runs")
    assert answer.status_code == 422 or error is None


async def test_work_cannot_be_handed_on_for_an_entry_whose_end_nobody_can_tell(begin: Any, database: Any) -> None:
    process = await begin(entrypoint="no_op")
    started = (await process.start()).json()
    assert started["callback"] is None
    await process.say("finish", outcome="accepted")
    [[status]] = database.execute("SELECT status FROM scheduler.cron_runs")
    assert status != "waiting"


async def test_a_callback_of_failure_does_not_begin_another_attempt_while_the_body_runs(
    begin: Any, api: Any, signer: TokenSigner
) -> None:
    process = await begin(max_attempts=2)
    callback = (await process.start()).json()["callback"]
    body = {"outcome": "error", "error": {"type": "E", "message": "m"}, "retry_after": 0}
    await api.client.post(callback["path"], headers={"Authorization": f"Bearer {callback['token']}"}, json=body)
    second = Process(api.client, process.run_id, token_of(signer, api, process.run_id, attempt=2), number=2)
    assert (await second.start()).status_code == 409


async def test_a_run_that_is_handed_back_keeps_the_deadline_it_was_claimed_with(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    cron = await add_cron(enabled=False, run_timeout=timedelta(hours=2))
    run_id, nonce = await trigger(engine, cron), uuid4()
    [[promised]] = database.execute("SELECT deadline FROM scheduler.cron_runs")
    now = database.execute("SELECT scheduler.now()")[0][0]
    async with transaction(engine) as connection:
        how: dict[str, Any] = {
            "epoch": 1,
            "location": "a runner",
            "execution": Execution.IN_PROCESS,
            "lease": timedelta(minutes=1),
        }
        await run_transitions.start(connection, nonces={run_id: nonce}, now=now, **how)
    database.execute("UPDATE scheduler.cron_jobs SET run_timeout = NULL, generation = generation + 1")
    async with transaction(engine) as connection:
        await run_transitions.hand_back(connection, nonces={run_id: nonce}, epoch=1)
    assert database.execute("SELECT deadline FROM scheduler.cron_runs") == [(promised,)]


async def test_the_generation_of_a_run_is_that_of_what_its_process_was_told_last(begin: Any, database: Any) -> None:
    process = await begin()
    await process.start()
    database.execute(
        """UPDATE scheduler.cron_jobs SET execution_payload = '{"delay": 9.0}', generation = generation + 1"""
    )
    assert (await process.start()).json()["payload"] == {"delay": 9.0}
    assert database.execute("SELECT generation FROM scheduler.cron_runs") == [(2,)]


@pytest.mark.parametrize("header", [b"[" * 15_000, b"[]", b'{"kid": [], "alg": "HS256"}', b'{"kid": "tests"}', b"\xff"])
async def test_a_malformed_token_is_refused_and_no_internal_error(api: Any, header: bytes) -> None:
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, b"{}", b"x"))
    process = Process(api.client, uuid4(), token)
    assert (await process.start()).status_code == 401


def task(entrypoint: str = "no_op", **payload: object) -> Task:
    return Task(
        attempt_id=uuid4(),
        entrypoint=entrypoint,
        payload_json=json.dumps(payload),
        cron_id=uuid4(),
        cron_name="a cron",
        organization_id=uuid4(),
        run_id=uuid4(),
        trigger="schedule",
        attempt=1,
        scheduled_for=NOON,
        deadline=NOON,
        timeout=86_400.0,
    )


@pytest.fixture
async def pool(entries: CronRegistry) -> AsyncIterator[tuple[WorkerPool, dict[UUID, Outcome], asyncio.Event]]:
    outcomes: dict[UUID, Outcome] = {}
    changed = asyncio.Event()

    def note(reported: Sequence[Outcome]) -> None:
        outcomes.update((outcome.attempt_id, outcome) for outcome in reported)
        changed.set()

    pool = WorkerPool(
        workers=1,
        max_workers=1,
        memory=2**30,
        real_seconds=lambda seconds: seconds,
        on_outcomes=note,
        on_appetite=lambda: None,
        environment={"PYTHONPATH": str(DISTRIBUTIONS)},
    )
    await pool.start()
    yield pool, outcomes, changed
    await pool.stop()


async def test_cancelling_what_has_just_ended_kills_nobody_elses_run(pool: Any, tmp_path: Path) -> None:
    """The worker has told the end of the first, which nobody has read yet, and is at the second."""
    workers, outcomes, changed = pool
    path = tmp_path / "pipe"
    os.mkfifo(path)
    wanted_no_more, innocent = task(), task("block", path=str(path))
    workers.submit([wanted_no_more, innocent])
    # The event loop stands still until the second body runs: opening the pipe waits for its reader.
    writer = os.open(path, os.O_WRONLY)
    workers.cancel({wanted_no_more.attempt_id})
    asyncio.get_running_loop().call_later(0.5, os.close, writer)
    async with asyncio.timeout(HANG_GUARD):
        while innocent.attempt_id not in outcomes:
            changed.clear()
            await changed.wait()
    assert outcomes[wanted_no_more.attempt_id].status == "completed"
    assert (outcomes[innocent.attempt_id].status, outcomes[innocent.attempt_id].reason) == ("completed", "Completed")


class Taker:
    """Wants one task, and never begins it."""

    def __init__(self) -> None:
        self.appetite, self.tasks, self.has_taken = 1, list[Task](), asyncio.Event()

    def submit(self, tasks: Sequence[Task]) -> None:
        self.tasks.extend(tasks)
        if self.tasks:
            self.appetite = 0
            self.has_taken.set()


async def a_dispatcher(engine: AsyncEngine) -> Dispatcher:
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="a runner", duration=timedelta(hours=1))
    assert lease is not None
    return Dispatcher(
        engine=engine,
        lease=lease,
        entrypoints=["no_op"],
        recorder=RunRecorder(),
        signer=None,
        callback_entrypoints=(),
    )


async def test_what_was_never_begun_is_handed_back_although_a_connection_has_been_cut(
    engine: AsyncEngine, add_cron: Any, database: Any
) -> None:
    cron = await add_cron(enabled=False)
    run_id = await trigger(engine, cron)
    dispatcher = await a_dispatcher(engine)
    taker: Any = Taker()
    dispatcher.enqueue([QueuedRun(run_id, cron.organization_id, cron.definition.entrypoint)])
    starting = asyncio.create_task(dispatcher.start_runs(taker))
    async with asyncio.timeout(HANG_GUARD):
        await taker.has_taken.wait()
    starting.cancel()
    database.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
    await dispatcher.hand_back(taker.tasks)
    assert database.execute("SELECT status, attempts FROM scheduler.cron_runs") == [("queued", 0)]


async def test_a_trigger_is_found_and_begins_beside_the_thousands_of_runs_that_wait_for_another_organization(
    *, engine: AsyncEngine, add_cron: Any, database: Any, other_organization: Organization
) -> None:
    busy = await add_cron(enabled=False)
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation)
           SELECT %s, %s, scheduler.now(), 'manual', 'queued', 'Triggered', 'It waits.', 1
           FROM generate_series(1, 6000)""",
        [busy.organization_id, busy.id],
    )
    dispatcher = await a_dispatcher(engine)
    taker: Any = Taker()
    await dispatcher.sweep()
    assert dispatcher.queued >= 5000
    run_id = await trigger(engine, await add_cron(enabled=False, organization_id=other_organization.id))
    await dispatcher.sweep()
    taker.appetite = 2
    starting = asyncio.create_task(dispatcher.start_runs(taker))
    async with asyncio.timeout(HANG_GUARD):
        await taker.has_taken.wait()
    starting.cancel()
    assert run_id in {task.run_id for task in taker.tasks}


async def test_no_body_is_entered_after_its_attempts_deadline_when_the_gates_answer_came_late(
    engine: AsyncEngine, add_cron: Any, database: Any, relay: Any
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron(enabled=False, timeout=timedelta(minutes=1))
    run_id = await trigger(engine, cron)
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="a runner", duration=timedelta(days=1))
    assert lease is not None

    class LongOutage(RunRecorder):
        def database_away(self, *, doing: str, error: Exception) -> None:
            super().database_away(doing=doing, error=error)
            database.set_clock(NOON + timedelta(hours=1), speed=0)

    flaky = create_engine(relay.url, pool_size=2, application_name="flaky")
    dispatcher = Dispatcher(
        engine=flaky,
        lease=lease,
        entrypoints=["no_op"],
        recorder=LongOutage(),
        signer=None,
        callback_entrypoints=(),
    )
    taker: Any = Taker()
    taker.submitted = asyncio.Event()
    submit = taker.submit

    def note(tasks: Sequence[Task]) -> None:
        taker.appetite = 0
        submit(tasks)
        taker.submitted.set()

    taker.submit = note
    dispatcher.enqueue([QueuedRun(run_id, cron.organization_id, cron.definition.entrypoint)])
    relay.order(cut_after_commit=1.0, only="cron_attempts", limit=1)
    starting = asyncio.create_task(dispatcher.start_runs(taker))
    async with asyncio.timeout(HANG_GUARD):
        await taker.submitted.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await flaky.dispose()
    [[deadline]] = database.execute("SELECT deadline FROM scheduler.cron_attempts")
    assert deadline == NOON + timedelta(minutes=1)
    assert taker.tasks == []
