"""Attempts over HTTP, and ends that somebody else tells: who may say what, once, and what a late word is told."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_repository
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.database import transaction
from cronplane_core.signed_tokens import Purpose, TokenClaims, TokenSigner, parse_token_keys

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def signer(token_keys: str) -> TokenSigner:
    return parse_token_keys(token_keys)


class Attempt:
    """A process that runs an attempt, as a pod will."""

    def __init__(self, api: Any, run_id: UUID, token: str, *, number: int = 1) -> None:
        self.api, self.run_id, self.token, self.number = api, run_id, token, number
        self.nonce = str(uuid4())

    async def say(self, what: str, **body: Any) -> Any:
        return await self.api.client.post(
            f"/runs/{self.run_id}/attempts/{self.number}/{what}",
            headers={"Authorization": f"Bearer {self.token}"},
            json={"nonce": self.nonce, **body},
        )

    async def start(self) -> Any:
        return await self.say("start", location="a pod")


@pytest.fixture
def begin(api: Any, engine: AsyncEngine, add_cron: Any, database: Any, signer: TokenSigner) -> Callable[..., Any]:
    async def begin(*, payload: dict[str, Any] | None = None, number: int = 1, **policy: Any) -> Attempt:
        database.set_clock(NOON, speed=0)
        policy = {"timeout": timedelta(minutes=10), **policy}
        cron = await add_cron(entrypoint="in_a_pod", payload=payload or {}, enabled=False, **policy)
        async with transaction(engine) as connection:
            run = await run_repository.insert_manual_run(
                connection, cron=cron, created_by="test", execution_payload=None
            )
        token = signer.sign(claims(run.id, api.organization_id, attempt=number))
        return Attempt(api, run.id, token, number=number)

    return begin


def claims(run_id: UUID, organization_id: UUID, **changes: Any) -> TokenClaims:
    values: dict[str, Any] = {
        "purpose": Purpose.ATTEMPT,
        "organization_id": organization_id,
        "run_id": run_id,
        "attempt": 1,
        "expires_at": NOON + timedelta(minutes=5),
    }
    return TokenClaims(**(values | changes))


def row(database: Any, columns: str = "status, reason, attempts") -> tuple[Any, ...]:
    [found] = database.execute(f"SELECT {columns} FROM scheduler.cron_runs")
    row: tuple[Any, ...] = found
    return row


async def test_an_attempt_lives_from_its_start_over_heartbeats_to_its_end(
    begin: Any, api: Any, database: Any, engine: AsyncEngine
) -> None:
    attempt = await begin(payload={"delay": 3.0})
    started = (await attempt.start()).json()
    assert (started["payload"], started["attempt"], started["lease"]) == ({"delay": 3.0}, 1, 60.0)
    assert started["deadline"] == "2026-06-01T12:10:00Z"
    assert row(database) == ("running", "Started", 1)
    database.set_clock(NOON + timedelta(seconds=50), speed=0)
    beat = (await attempt.say("heartbeat")).json()
    assert (beat["is_cancel_requested"], beat["deadline"]) == (False, "2026-06-01T12:10:00Z")
    [[lease]] = database.execute("SELECT lease_expires_at FROM scheduler.cron_attempts")
    assert lease == NOON + timedelta(seconds=110)
    # The token that came with the heartbeat is good when the first one is not any more.
    database.set_clock(NOON + timedelta(minutes=5), speed=0)
    assert (await attempt.say("heartbeat")).status_code == 401
    attempt.token = beat["token"]
    finished = await attempt.say("finish", outcome="completed", result={"rows": 3}, output="done\n")
    assert (finished.status_code, finished.json()) == (200, {"status": "completed", "reason": "Completed"})
    assert row(database, "status, result, finished_at") == ("completed", {"rows": 3}, NOON + timedelta(minutes=5))
    assert database.execute("SELECT outcome, output, execution, location FROM scheduler.cron_attempts") == [
        ("completed", "done\n", "pod", "a pod")
    ]
    assert [violation async for violation in find_violations(engine, grace=Grace())] == []


async def test_the_same_process_may_ask_again_whether_it_passed_the_gate(begin: Any, database: Any) -> None:
    attempt = await begin()
    first, again = await attempt.start(), await attempt.start()
    assert (again.status_code, again.json()) == (200, first.json())
    assert database.execute("SELECT count(*) FROM scheduler.cron_attempts") == [(1,)]


async def test_another_process_does_not_pass_the_gate_again(begin: Any, api: Any, database: Any) -> None:
    attempt = await begin()
    await attempt.start()
    other = Attempt(api, attempt.run_id, attempt.token)
    refused = await other.start()
    assert (refused.status_code, refused.json()["type"]) == (409, "https://cronplane.dev/problems/attempt-over")
    for what, body in {"heartbeat": {}, "finish": {"outcome": "completed"}}.items():
        answer = await other.say(what, **body)
        assert (answer.status_code, answer.json()["detail"]) == (
            409,
            "Attempt 1 is over, or another process's, or its token was used; the run is running (Started)",
        )
    assert row(database) == ("running", "Started", 1)


async def test_of_many_that_come_at_once_one_passes_the_gate(begin: Any, api: Any, database: Any) -> None:
    attempt = await begin()
    others = [Attempt(api, attempt.run_id, attempt.token) for _ in range(10)]
    statuses = [answer.status_code for answer in await asyncio.gather(*(other.start() for other in others))]
    assert sorted(statuses) == [200] + [409] * 9
    assert row(database) == ("running", "Started", 1)


async def test_an_end_is_told_once(begin: Any, database: Any) -> None:
    attempt = await begin()
    await attempt.start()
    await attempt.say("finish", outcome="completed", result={"n": 1})
    late = await attempt.say("finish", outcome="error", error={"type": "E", "message": "m"})
    assert late.status_code == 409
    assert "the run is completed (Completed)" in late.json()["detail"]
    assert row(database, "status, result, error") == ("completed", {"n": 1}, None)


async def test_an_attempt_that_was_superseded_is_told_so(begin: Any, api: Any, database: Any, signer: Any) -> None:
    attempt = await begin(max_attempts=2, backoff_initial=timedelta(seconds=1))
    await attempt.start()
    failed = await attempt.say("finish", outcome="error", error={"type": "E", "message": "m"}, retry_after=5)
    assert failed.json() == {"status": "queued", "reason": "RetryScheduled"}
    second = Attempt(api, attempt.run_id, signer.sign(claims(attempt.run_id, api.organization_id, attempt=2)), number=2)
    assert (await second.start()).status_code == 409
    database.set_clock(NOON + timedelta(seconds=5), speed=0)
    assert (await second.start()).status_code == 200
    late = await attempt.say("finish", outcome="completed")
    assert late.json()["detail"] == "Attempt 1 was superseded by attempt 2; the run is running (Started)"
    assert row(database) == ("running", "Started", 2)


async def test_an_attempt_learns_that_it_is_not_wanted_any_more(begin: Any, api: Any, database: Any) -> None:
    attempt = await begin()
    await attempt.start()
    [[cron_id]] = database.execute("SELECT cron_id FROM scheduler.cron_runs")
    await api.call("POST", f"{cron_id}/runs/{attempt.run_id}/cancel")
    assert (await attempt.say("heartbeat")).json()["is_cancel_requested"] is True
    ended = await attempt.say("finish", outcome="error", error={"type": "E", "message": "stopped"})
    assert ended.json() == {"status": "cancelled", "reason": "CancelRequested"}


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": uuid4()},
        {"attempt": 2},
        {"purpose": Purpose.CALLBACK},
        {"expires_at": NOON},
        {"organization_id": uuid4()},
    ],
)
async def test_a_token_for_something_else_proves_nothing(
    begin: Any, api: Any, database: Any, signer: TokenSigner, changes: dict[str, Any]
) -> None:
    attempt = await begin()
    attempt.token = signer.sign(claims(**{"run_id": attempt.run_id, "organization_id": api.organization_id} | changes))
    answer = await attempt.start()
    assert answer.status_code == (409 if "organization_id" in changes else 401)
    assert row(database) == ("queued", "Triggered", 0)


async def test_a_token_of_a_key_that_is_not_ours_proves_nothing(begin: Any, api: Any, database: Any) -> None:
    attempt = await begin()
    for keys in (f"tests:{uuid4().hex}{uuid4().hex}", f"other:{uuid4().hex}{uuid4().hex}"):
        attempt.token = parse_token_keys(keys).sign(claims(attempt.run_id, api.organization_id))
        assert (await attempt.start()).status_code == 401
    assert row(database) == ("queued", "Triggered", 0)


async def hand_on(api: Any, start_runner: Any, token_keys: str, **policy: Any) -> tuple[Any, str, str]:
    """Let a run be handed on; gives the runner, and the path and token that whoever has the work was given."""
    cron = await api.register(entrypoint="handing_on", payload={}, enabled=False, **policy)
    running = await start_runner(token_keys=SecretStr(token_keys))
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    await running.journal.until(lambda: running.journal.waiting_runs != [])
    shown = (await api.call("GET", f"{cron['id']}/runs/{run['id']}")).json()
    assert (shown["status"], shown["reason"], shown["message"]) == ("waiting", "Accepted", "The batch was sent away.")
    path, token = shown["attempt_list"][0]["output"].split()
    return running, path, token


async def call_back(api: Any, path: str, token: str, **body: Any) -> Any:
    return await api.client.post(path, headers={"Authorization": f"Bearer {token}"}, json=body)


async def test_work_that_was_handed_on_is_completed_by_its_callback_once(
    api: Any, start_runner: Any, token_keys: str, database: Any, engine: AsyncEngine
) -> None:
    _, path, token = await hand_on(api, start_runner, token_keys)
    [[kept]] = database.execute("SELECT callback_hash FROM scheduler.cron_attempts")
    assert token.encode() not in bytes(kept)
    answer = await call_back(api, path, token, outcome="completed", result={"rows": 7})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert row(database, "status, result") == ("completed", {"rows": 7})
    again = await call_back(api, path, token, outcome="error", error={"type": "E", "message": "m"})
    assert again.status_code == 409
    assert row(database, "status, result") == ("completed", {"rows": 7})
    assert [violation async for violation in find_violations(engine, grace=Grace())] == []


async def test_a_callback_of_failure_lets_the_run_be_tried_again(
    api: Any, start_runner: Any, token_keys: str, database: Any
) -> None:
    _, path, token = await hand_on(api, start_runner, token_keys, max_attempts=2)
    answer = await call_back(api, path, token, outcome="error", error={"type": "E", "message": "no"}, retry_after=3600)
    assert answer.json() == {"status": "queued", "reason": "RetryScheduled"}
    assert row(database) == ("queued", "RetryScheduled", 1)
    late = await call_back(api, path, token, outcome="completed")
    assert late.status_code == 409


async def test_a_run_that_waits_is_cancelled_at_once_and_its_token_is_worthless(
    api: Any, start_runner: Any, token_keys: str, database: Any
) -> None:
    _, path, token = await hand_on(api, start_runner, token_keys)
    [[cron_id, run_id]] = database.execute("SELECT cron_id, id FROM scheduler.cron_runs")
    answer = await api.call("POST", f"{cron_id}/runs/{run_id}/cancel")
    assert answer.json()["status"] == "cancelled"
    assert (await call_back(api, path, token, outcome="completed")).status_code == 409
    assert database.execute("SELECT outcome FROM scheduler.cron_attempts") == [("cancelled",)]


async def test_a_run_that_waits_ends_at_its_deadline(
    api: Any, start_runner: Any, token_keys: str, database: Any, engine: AsyncEngine
) -> None:
    database.set_clock(NOON, speed=60.0)
    running, _, _ = await hand_on(api, start_runner, token_keys, timeout=120)
    await running.journal.until(lambda: running.journal.runs != [])
    assert row(database) == ("timed_out", "DeadlinePassed", 1)
    assert database.execute("SELECT outcome FROM scheduler.cron_attempts") == [("timed_out",)]
    assert [violation async for violation in find_violations(engine, grace=Grace())] == []


async def test_a_token_of_another_organizations_run_tells_nothing(
    api: Any, start_runner: Any, token_keys: str, database: Any, signer: TokenSigner
) -> None:
    _, path, _ = await hand_on(api, start_runner, token_keys)
    [[run_id]] = database.execute("SELECT id FROM scheduler.cron_runs")
    forged = claims(run_id, api.stranger_id, purpose=Purpose.CALLBACK, expires_at=NOON + timedelta(days=900))
    answer = await call_back(api, path, signer.sign(forged), outcome="completed")
    assert (answer.status_code, answer.json()["detail"]) == (409, "There is no such run any more")
    assert row(database)[0] == "waiting"


async def test_without_keys_an_entry_that_hands_on_its_work_is_told_what_lacks(
    api: Any, start_runner: Any, database: Any
) -> None:
    cron = await api.register(entrypoint="handing_on", payload={}, enabled=False)
    running = await start_runner()
    await api.call("POST", f"{cron['id']}/trigger")
    await running.journal.until(lambda: running.journal.of(UUID(cron["id"])) != [])
    assert row(database)[:2] == ("error", "ExecutorFailed")


@pytest.mark.parametrize(
    "body",
    [
        {"outcome": "skipped"},
        {"outcome": "completed", "result": [1]},
        {"outcome": "completed", "result": {"text": "\0"}},
        {"outcome": "completed", "result": {"big": "x" * 70_000}},
        {"outcome": "error", "error": {"type": "E", "message": "\0"}},
        {"outcome": "error", "retry_after": -1},
        {"outcome": "completed", "unknown": 1},
    ],
)
async def test_an_end_that_cannot_be_kept_is_refused_and_may_be_told_again(
    begin: Any, database: Any, body: dict[str, Any]
) -> None:
    attempt = await begin()
    await attempt.start()
    answer = await attempt.say("finish", **body)
    assert answer.status_code in {413, 422}
    assert row(database) == ("running", "Started", 1)
    assert (await attempt.say("finish", outcome="completed")).status_code == 200
