"""The runner on a real PostgreSQL, with real workers, in the database's own time."""

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import cron_repository, run_repository
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.schedule import Schedule
from cronplane_core.tables import RunStatus

# The last Sunday of March 2026: Paris skips 02:00 to 03:00 local time at 01:00 UTC.
BEFORE_SPRING_FORWARD = datetime(2026, 3, 29, 0, 57, 30, tzinfo=UTC)
NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
FAST = 120.0
# At this speed half a second of a busy machine is a minute, so that a fire may be missed or skipped besides.
ATTEMPTED = "status NOT IN ('missed', 'skipped')"


def rows(database: Any, statement: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(statement)
    return found


@pytest.mark.parametrize(
    ("expression", "zone"),
    [("* * * * *", "Europe/Paris"), ("*/2 * * * *", "UTC"), ("0-59 2,3 29 3 *", "Europe/Paris")],
)
async def test_the_runs_that_happen_are_the_fires_that_the_preview_promised(
    database: Any, add_cron: Any, start_runner: Any, expression: str, zone: str
) -> None:
    database.set_clock(BEFORE_SPRING_FORWARD, speed=FAST)
    cron = await add_cron(cron_expr=expression, tz=zone)
    schedule = Schedule.parse(expression, zone)
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(cron.id)) >= 4)
    happened = [
        fire
        for first, last in rows(
            database,
            "SELECT scheduled_for, coalesce(missed_until, scheduled_for) FROM scheduler.cron_runs ORDER BY 1",
        )
        for fire in schedule.fires(after=first - timedelta(microseconds=1), until=last)
    ]
    promised = list(schedule.fires(after=cron.created_at, until=happened[-1]))
    assert happened == promised


async def test_nothing_starts_before_its_time_and_each_attempt_is_recorded(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron()
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.of(cron.id)) >= 3)
    early = rows(database, "SELECT count(*) FROM scheduler.cron_runs WHERE created_at < scheduled_for")
    attempts = rows(
        database,
        """SELECT run.status, attempt.number, attempt.outcome, attempt.started_at >= run.scheduled_for
           FROM scheduler.cron_runs run JOIN scheduler.cron_attempts attempt ON attempt.run_id = run.id
           WHERE run.status = 'completed'""",
    )
    assert early == [(0,)]
    assert set(attempts) == {("completed", 1, "completed", True)}


async def test_after_an_outage_the_latest_fire_runs_and_the_others_are_one_missed_range(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON)
    cron = await add_cron(cron_expr="*/10 * * * *")
    first = await start_runner()
    await first.stop()
    database.set_clock(NOON + timedelta(hours=1))
    second = await start_runner()
    await second.journal.until(lambda: len(second.journal.of(cron.id)) == 1)
    assert rows(
        database,
        """SELECT status, reason, scheduled_for, missed_until, missed_count
           FROM scheduler.cron_runs ORDER BY scheduled_for""",
    ) == [
        ("missed", "Superseded", NOON.replace(minute=10, second=0), NOON.replace(minute=50, second=0), 5),
        ("completed", "Completed", NOON.replace(hour=13, second=0), None, None),
    ]


async def test_fires_older_than_the_catch_up_window_are_missed(database: Any, add_cron: Any, start_runner: Any) -> None:
    database.set_clock(NOON)
    await add_cron(cron_expr="30 12 * * *", catchup_window=timedelta(minutes=5))
    first = await start_runner()
    await first.stop()
    database.set_clock(NOON + timedelta(hours=1))
    second = await start_runner()
    await second.journal.until(lambda: len(second.journal.claims) == 1)
    assert rows(database, "SELECT status, reason, missed_count FROM scheduler.cron_runs") == [
        ("missed", "OutsideCatchupWindow", 1)
    ]


async def test_a_fire_while_a_run_is_not_over_is_skipped_and_says_which_run(
    database: Any, add_cron: Any, start_runner: Any, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron(entrypoint="block", payload={"path": str(pipe)}, timeout=timedelta(days=1))
    running = await start_runner()
    await running.journal.until(lambda: any(run.status is RunStatus.SKIPPED for run in running.journal.claims))
    active = rows(database, "SELECT id FROM scheduler.cron_runs WHERE status = 'running'")
    skipped = [run for run in running.journal.claims if run.status is RunStatus.SKIPPED]
    assert skipped[0].reason == "OverlapSkip"
    assert str(active[0][0]) in skipped[0].message
    pipe.write_bytes(b"")
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))


async def test_an_attempt_that_outlives_its_timeout_is_killed_and_keeps_its_output(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron(entrypoint="spin", timeout=timedelta(seconds=30))
    running = await start_runner()
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    assert rows(
        database, "SELECT outcome, reason, output FROM scheduler.cron_attempts ORDER BY started_at LIMIT 1"
    ) == [("timed_out", "AttemptTimeout", "spinning\n")]


@pytest.mark.parametrize("culprit", ["exit_hard", "segfault", "block", "spin"])
async def test_an_entry_that_breaks_its_worker_holds_up_nobody_else(
    database: Any, add_cron: Any, start_runner: Any, tmp_path: Path, culprit: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    database.set_clock(NOON, speed=FAST)
    for number in range(4):
        await add_cron(f"culprit {number}", entrypoint=culprit, payload={"path": str(pipe)})
    neighbour = await add_cron("neighbour")
    running = await start_runner(workers=2)
    await running.journal.until(lambda: len(running.journal.of(neighbour.id)) >= 3)
    late = rows(
        database,
        f"""SELECT count(*) FROM scheduler.cron_runs run JOIN scheduler.cron_attempts attempt ON attempt.run_id = run.id
            WHERE run.cron_id = '{neighbour.id}'
              AND attempt.started_at > run.scheduled_for + interval '{FAST} seconds'""",
    )
    assert late == [(0,)]


async def test_an_error_is_recorded_with_its_type_message_and_place_and_without_the_payload(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron(entrypoint="fail", payload={"text": "broken", "value": "a secret"})
    running = await start_runner()
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    found = rows(database, f"SELECT status, reason, error FROM scheduler.cron_runs WHERE {ATTEMPTED} LIMIT 1")
    status, reason, error = found[0]
    assert (status, reason) == ("error", "ExecutorFailed")
    assert error["type"] == "builtins.RuntimeError"
    assert error["message"] == "broken"
    assert "trial_entries.py" in error["traceback"]
    assert "a secret" not in str(error)


async def test_a_validator_that_refuses_keeps_the_executor_from_running(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron(entrypoint="refuse_to_run")
    running = await start_runner()
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    ended = f"SELECT DISTINCT status, reason FROM scheduler.cron_runs WHERE finished_at IS NOT NULL AND {ATTEMPTED}"
    assert rows(database, ended) == [("error", "ValidatorFailed")]


async def test_a_change_that_nobody_told_of_is_found_by_the_resync(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    running = await start_runner()
    cron = await add_cron()
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))


async def test_a_change_by_hand_in_the_table_is_taken_up(database: Any, add_cron: Any, start_runner: Any) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron(cron_expr="0 0 1 1 *")
    running = await start_runner()
    database.execute(
        """WITH changed AS (UPDATE scheduler.cron_jobs SET cron_expr = '* * * * *', generation = generation + 1,
                                   effective_from = scheduler.now() RETURNING *)
           INSERT INTO scheduler.cron_job_versions
                  (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
           SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM changed"""
    )
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))


async def test_a_paused_cron_does_not_fire_and_a_resumed_one_does_not_fire_into_the_past(
    database: Any, add_cron: Any, start_runner: Any, engine: AsyncEngine, organization: Organization
) -> None:
    database.set_clock(NOON)
    cron = await add_cron(enabled=False)
    running = await start_runner()
    database.set_clock(NOON + timedelta(hours=1))
    async with transaction(engine) as connection:
        locked = await cron_repository.lock_cron(connection, organization_id=organization.id, cron_id=cron.id)
        assert locked is not None
        resumed = await cron_repository.update_cron(
            connection, cron=locked, definition=replace(locked.definition, enabled=True), updated_by="test"
        )
    database.set_clock(NOON + timedelta(hours=1), speed=FAST)
    await running.journal.until(lambda: len(running.journal.of(cron.id)) >= 2)
    assert rows(database, "SELECT min(scheduled_for) FROM scheduler.cron_runs")[0][0] > resumed.effective_from


async def test_a_run_triggered_by_hand_starts_at_once_even_while_paused(
    database: Any, add_cron: Any, start_runner: Any, engine: AsyncEngine
) -> None:
    cron = await add_cron(entrypoint="my_entry", payload={"greeting": "stored"}, enabled=False)
    running = await start_runner()
    async with transaction(engine) as connection:
        await run_repository.insert_manual_run(
            connection, cron=cron, created_by="test", execution_payload={"greeting": "overridden"}
        )
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    assert rows(database, "SELECT trigger_kind, status, result FROM scheduler.cron_runs") == [
        ("manual", "completed", {"ok": True, "greeting": "overridden"})
    ]


async def test_a_second_runner_stands_by_and_takes_over_when_the_first_ends(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON, speed=FAST)
    cron = await add_cron()
    first = await start_runner()
    second = await start_runner(wait=False)
    await first.journal.until(lambda: bool(first.journal.of(cron.id)))
    assert second.journal.runs == []
    await first.stop()
    await second.journal.until(lambda: bool(second.journal.of(cron.id)))
    assert second.journal.epochs == [first.journal.epochs[0] + 1]
    doubled = rows(database, "SELECT scheduled_for FROM scheduler.cron_runs GROUP BY 1 HAVING count(*) > 1")
    assert doubled == []


async def test_what_a_dead_leader_left_running_is_lost_and_what_it_left_queued_runs(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON)
    running_cron, queued_cron = await add_cron("running"), await add_cron("queued")
    database.execute("INSERT INTO scheduler.leases VALUES ('runner', 'gone', 7, scheduler.now())")
    for cron, status, attempts in ((running_cron, "running", 1), (queued_cron, "queued", 0)):
        database.execute(
            """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                                message, generation, epoch, attempts)
               VALUES (%s, %s, scheduler.now(), 'manual', %s, 'Test', 'Test.', 1, 7, %s)""",
            (cron.organization_id, cron.id, status, attempts),
        )
    database.execute(
        """INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at)
           SELECT id, 1, gen_random_uuid(), 7, 'gone', scheduler.now() + interval '1 hour'
           FROM scheduler.cron_runs WHERE status = 'running'"""
    )
    successor = await start_runner()
    await successor.journal.until(lambda: len(successor.journal.runs) == 2)
    assert rows(database, "SELECT epoch, status, reason FROM scheduler.cron_runs ORDER BY status") == [
        (8, "completed", "Completed"),
        (8, "lost", "RunnerGone"),
    ]


async def test_a_leader_that_was_replaced_changes_nothing_and_steps_down(
    database: Any, add_cron: Any, start_runner: Any
) -> None:
    database.set_clock(NOON)
    await add_cron()
    running = await start_runner()
    database.execute("UPDATE scheduler.leases SET holder = 'usurper', epoch = epoch + 1, expires_at = 'infinity'")
    database.set_clock(NOON + timedelta(minutes=1))
    await running.journal.until(lambda: not running.runner.leading.is_set())
    assert rows(database, "SELECT count(*) FROM scheduler.cron_runs") == [(0,)]


async def test_stopping_lets_running_entries_end_and_gives_up_on_those_that_do_not(
    database: Any, add_cron: Any, start_runner: Any, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    database.set_clock(NOON, speed=FAST)
    await add_cron(entrypoint="block", payload={"path": str(pipe)}, timeout=timedelta(days=1))
    running = await start_runner(drain_grace=timedelta(seconds=0.2))
    await running.journal.until(lambda: any(run.status is RunStatus.SKIPPED for run in running.journal.claims))
    await running.stop()
    assert rows(database, f"SELECT status, reason FROM scheduler.cron_runs WHERE {ATTEMPTED}") == [("lost", "Shutdown")]
    assert rows(database, "SELECT output FROM scheduler.cron_attempts") == [("blocking\n",)]
    assert rows(database, "SELECT expires_at <= scheduler.now() FROM scheduler.leases") == [(True,)]


async def test_a_runner_whose_entry_the_database_does_not_know_is_not_ready(
    create_database: Callable[[str], Any], start_runner: Any, database: Any, template: str
) -> None:
    database.execute("ALTER TYPE scheduler.entrypoint RENAME VALUE 'no_op' TO 'renamed'")
    running = await start_runner(wait=False)
    await running.journal.until(lambda: bool(running.journal.obstacles))
    assert "no_op" in running.journal.obstacles[0]
    assert "cronplane migrate" in running.journal.obstacles[0]
    assert not running.runner.leading.is_set()
