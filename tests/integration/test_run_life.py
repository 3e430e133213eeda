"""The life of a run on a real PostgreSQL with real workers: retries, deadlines, cancellation, and what is lost."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_repository
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.cron_repository import Cron
from cronplane_core.database import transaction

NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
FAST = 60.0


async def trigger(engine: AsyncEngine, cron: Cron) -> UUID:
    async with transaction(engine) as connection:
        run = await run_repository.insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
    return run.id


@pytest.fixture
def run_of(database: Any) -> Callable[[UUID], tuple[Any, ...]]:
    def read(run_id: UUID) -> tuple[Any, ...]:
        [row] = database.execute("SELECT status, reason, attempts FROM scheduler.cron_runs WHERE id = %s", [run_id])
        found: tuple[Any, ...] = row
        return found

    return read


def attempts(database: Any, run_id: UUID) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(
        "SELECT outcome, reason FROM scheduler.cron_attempts WHERE run_id = %s ORDER BY number", [run_id]
    )
    return found


async def nothing_is_wrong(engine: AsyncEngine) -> bool:
    return [violation async for violation in find_violations(engine, grace=Grace())] == []


@pytest.fixture
def add_flaky(add_cron: Any) -> Any:
    async def add(*how: str, max_attempts: int = 3, **policy: Any) -> Cron:
        policy = {"backoff_initial": timedelta(seconds=1), "timeout": timedelta(seconds=60), **policy}
        cron: Cron = await add_cron(
            entrypoint="flaky", payload={"attempts": how}, enabled=False, max_attempts=max_attempts, **policy
        )
        return cron

    return add


@pytest.mark.parametrize(
    ("how", "max_attempts", "status", "reason", "outcomes"),
    [
        (("plain", "plain"), 3, "completed", "Completed", ["error", "error", "completed"]),
        (("temporary",), 3, "completed", "Completed", ["error", "completed"]),
        (("plain", "plain", "plain"), 3, "error", "ExecutorFailed", ["error"] * 3),
        (("permanent",), 3, "error", "ExecutorFailed", ["error"]),
        (("plain",), 1, "error", "ExecutorFailed", ["error"]),
        (("killed",), 2, "completed", "Completed", ["error", "completed"]),
        (("late",), 2, "completed", "Completed", ["timed_out", "completed"]),
        (("late", "late"), 2, "timed_out", "AttemptTimeout", ["timed_out"] * 2),
    ],
)
async def test_a_run_is_tried_again_as_its_cron_says_and_its_entry_allows(
    *,
    database: Any,
    engine: AsyncEngine,
    add_flaky: Any,
    start_runner: Any,
    run_of: Any,
    how: tuple[str, ...],
    max_attempts: int,
    status: str,
    reason: str,
    outcomes: list[str],
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_flaky(*how, max_attempts=max_attempts)
    run_id = await trigger(engine, cron)
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == (status, reason, len(outcomes))
    assert [outcome for outcome, _ in attempts(database, run_id)] == outcomes
    assert await nothing_is_wrong(engine)


async def test_a_retry_waits_as_long_as_the_entry_asked_for(
    database: Any, engine: AsyncEngine, add_flaky: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_flaky("temporary")
    run_id = await trigger(engine, cron)
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    [[waited]] = database.execute(
        """SELECT later.started_at - earlier.finished_at FROM scheduler.cron_attempts earlier
           JOIN scheduler.cron_attempts later USING (run_id) WHERE run_id = %s AND earlier.number < later.number""",
        [run_id],
    )
    assert waited >= timedelta(seconds=60)


async def test_no_attempt_begins_or_goes_on_after_the_runs_deadline(
    database: Any, engine: AsyncEngine, add_flaky: Any, start_runner: Any, run_of: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_flaky(
        "plain", "late", max_attempts=5, timeout=timedelta(hours=1), run_timeout=timedelta(minutes=5)
    )
    run_id = await trigger(engine, cron)
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == ("timed_out", "AttemptTimeout", 2)
    [[length, message]] = database.execute("SELECT finished_at - created_at, message FROM scheduler.cron_runs")
    assert length < timedelta(minutes=10)
    assert message.endswith("A retry would begin after the run's deadline.")


async def test_a_queued_run_ends_at_its_deadline(
    database: Any, engine: AsyncEngine, add_cron: Any, start_runner: Any, run_of: Any
) -> None:
    # Nothing here takes runs of an entry that runs in pods.
    cron = await add_cron(entrypoint="in_a_pod", enabled=False, run_timeout=timedelta(minutes=1))
    database.set_clock(NOON, speed=FAST)
    run_id = await trigger(engine, cron)
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == ("timed_out", "DeadlinePassed", 0)
    assert await nothing_is_wrong(engine)


async def test_what_a_dead_runner_was_running_is_lost_and_then_tried_again_in_the_same_row(
    database: Any, engine: AsyncEngine, add_flaky: Any, start_runner: Any, run_of: Any
) -> None:
    retried = await add_flaky()
    run_id = await trigger(engine, retried)
    database.execute(
        "INSERT INTO scheduler.leases (name, holder, epoch, expires_at) VALUES ('runner', 'dead', 7, scheduler.now())"
    )
    database.execute(
        "UPDATE scheduler.cron_runs SET status = 'running', attempts = 1, started_at = scheduler.now(), epoch = 7"
    )
    database.execute(
        """INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at)
           VALUES (%s, 1, gen_random_uuid(), 7, 'dead', scheduler.now() + interval '1 hour')""",
        [run_id],
    )
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(retried.id) != [])
    assert run_of(run_id) == ("completed", "Completed", 2)
    assert attempts(database, run_id) == [("lost", "RunnerGone"), ("completed", "Completed")]
    assert await nothing_is_wrong(engine)


async def test_a_remote_attempt_whose_heartbeats_stop_is_lost(
    database: Any, engine: AsyncEngine, add_cron: Any, start_runner: Any, run_of: Any
) -> None:
    cron = await add_cron(entrypoint="in_a_pod", enabled=False)
    run_id = await trigger(engine, cron)
    database.execute("UPDATE scheduler.cron_runs SET status = 'running', attempts = 1, started_at = scheduler.now()")
    database.execute(
        """INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at, execution)
           VALUES (%s, 1, gen_random_uuid(), 0, 'a pod', scheduler.now(), 'pod')""",
        [run_id],
    )
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == ("lost", "HeartbeatsStopped", 1)


async def until_started(running: Any, database: Any, run_id: UUID) -> None:
    await running.journal.until(lambda: running.journal.started_runs.count(run_id) > 0)


async def test_a_running_run_is_cancelled_by_stopping_its_worker(
    database: Any, api: Any, start_runner: Any, run_of: Any, engine: AsyncEngine
) -> None:
    cron = await api.register(
        entrypoint="flaky", payload={"attempts": ["late"]}, enabled=False, max_attempts=3, timeout=3600
    )
    running = await start_runner()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    await until_started(running, database, UUID(run["id"]))
    answer = await api.call("POST", f"{cron['id']}/runs/{run['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert answer.json()["cancel_requested_by"].startswith("key:")
    await running.journal.until(lambda: running.journal.of(UUID(cron["id"])) != [])
    assert run_of(UUID(run["id"])) == ("cancelled", "CancelRequested", 1)
    assert attempts(database, UUID(run["id"])) == [("cancelled", "CancelRequested")]
    again = await api.call("POST", f"{cron['id']}/runs/{run['id']}/cancel")
    assert (again.status_code, again.json()["detail"]) == (409, "The run is over: cancelled (CancelRequested)")
    assert await nothing_is_wrong(engine)


async def test_a_queued_run_is_cancelled_at_once(api: Any, run_of: Any) -> None:
    cron = await api.register()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    answer = await api.call("POST", f"{cron['id']}/runs/{run['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert run_of(UUID(run["id"])) == ("cancelled", "CancelRequested", 0)


async def test_a_finished_run_is_run_again_with_the_payload_that_it_had(
    api: Any, database: Any, start_runner: Any
) -> None:
    cron = await api.register(enabled=False)
    body = {"payload": {"message": "only this once"}}
    run = (await api.call("POST", f"{cron['id']}/trigger", json=body)).json()
    refused = await api.call("POST", f"{cron['id']}/runs/{run['id']}/rerun")
    assert refused.status_code == 409
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(UUID(cron["id"]))) == 1)
    again = await api.call("POST", f"{cron['id']}/runs/{run['id']}/rerun", headers={"Idempotency-Key": "once"})
    assert (again.status_code, again.json()["rerun_of"]) == (202, run["id"])
    replayed = await api.call("POST", f"{cron['id']}/runs/{run['id']}/rerun", headers={"Idempotency-Key": "once"})
    assert replayed.json() == again.json()
    await running.journal.until(lambda: len(running.journal.of(UUID(cron["id"]))) == 2)
    shown = (await api.call("GET", f"{cron['id']}/runs/{again.json()['id']}")).json()
    assert (shown["status"], "only this once" in shown["output"]) == ("completed", True)
    absent = await api.call("POST", f"{cron['id']}/runs/{uuid4()}/rerun")
    assert absent.status_code == 404


async def test_a_cancelled_retry_never_comes(api: Any, database: Any, start_runner: Any, run_of: Any) -> None:
    cron = await api.register(
        entrypoint="flaky", payload={"attempts": ["temporary"], "delay": 3600.0}, enabled=False, max_attempts=2
    )
    running = await start_runner()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    await running.journal.until(lambda: running.journal.retries != [])
    shown = (await api.call("GET", f"{cron['id']}/runs/{run['id']}")).json()
    assert (shown["status"], shown["reason"], shown["attempts"]) == ("queued", "RetryScheduled", 1)
    assert shown["not_before"] > shown["started_at"]
    assert shown["error"]["message"] == "come back later"
    await api.call("POST", f"{cron['id']}/runs/{run['id']}/cancel")
    assert run_of(UUID(run["id"])) == ("cancelled", "CancelRequested", 1)


async def test_a_draining_runner_hands_back_no_run_that_somebody_cancelled(
    database: Any, engine: AsyncEngine, add_cron: Any, start_runner: Any, run_of: Any
) -> None:
    cron = await add_cron(enabled=False)
    run_id = await trigger(engine, cron)
    # As a hand-back leaves it.
    database.execute("UPDATE scheduler.cron_runs SET cancel_requested_at = scheduler.now()")
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == ("cancelled", "CancelRequested", 0)


async def test_an_outcome_that_comes_after_a_cancel_request_is_judged_again(
    database: Any, engine: AsyncEngine, add_flaky: Any, start_runner: Any, run_of: Any
) -> None:
    """The dispatcher decides by what it knew at the start; the table has the last word."""
    cron = await add_flaky("plain", max_attempts=3)
    run_id = await trigger(engine, cron)
    database.execute(
        """CREATE FUNCTION scheduler.want_no_more() RETURNS trigger LANGUAGE plpgsql AS $$
           BEGIN NEW.cancel_requested_at := scheduler.now(); RETURN NEW; END $$"""
    )
    database.execute(
        """CREATE TRIGGER want_no_more BEFORE UPDATE ON scheduler.cron_runs FOR EACH ROW
           WHEN (OLD.status = 'queued' AND NEW.status = 'running') EXECUTE FUNCTION scheduler.want_no_more()"""
    )
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(cron.id) != [])
    assert run_of(run_id) == ("cancelled", "CancelRequested", 1)


async def test_a_runner_leaves_a_run_alone_whose_entry_is_none_of_its_workers(
    database: Any, engine: AsyncEngine, add_cron: Any, start_runner: Any
) -> None:
    """Not even one that it has claimed itself: it belongs to a pod, or to a newer version."""
    database.set_clock(NOON, speed=FAST)
    await add_cron("in a pod", entrypoint="in_a_pod")
    ours = await add_cron("ours")
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(ours.id)) >= 2)
    found = database.execute(
        "SELECT DISTINCT status FROM scheduler.cron_runs WHERE attempts > 0 AND cron_id <> %s", [ours.id]
    )
    assert found == []
