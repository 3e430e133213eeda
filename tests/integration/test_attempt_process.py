"""`cronplane attempt` as the process of a pod, against a real API: the ends and words that the runner has, too."""

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cronplane_core.run_repository import Run
from cronplane_core.signed_tokens import Purpose, TokenClaims, parse_token_keys

HANG_GUARD = 60.0
IS_OVER = "SELECT finished_at IS NOT NULL FROM scheduler.cron_runs"


@pytest.fixture
def start_attempt(start_process: Any, token_keys: str, tmp_path: Path) -> Callable[..., Any]:
    """Start the process of a run's first attempt, with an API for it."""

    def start(run: Run, *, entrypoint: str = "no_op", **settings: object) -> Any:
        claims = TokenClaims(
            purpose=Purpose.ATTEMPT,
            organization_id=run.organization_id,
            run_id=run.id,
            attempt=1,
            expires_at=datetime.now(UTC) + timedelta(minutes=5),
        )
        token_file = tmp_path / "token"
        token_file.write_text(parse_token_keys(token_keys).sign(claims), encoding="ascii")
        api = start_process("api", token_keys=token_keys)
        return start_process(
            "attempt",
            run_api_url=api.address,
            run_id=run.id,
            attempt=1,
            attempt_token_file=token_file,
            attempt_location="a-pod",
            attempt_entrypoint=entrypoint,
            **settings,
        )

    return start


async def exit_code(attempt: Any) -> int:
    code: int = await asyncio.to_thread(attempt.process.wait, HANG_GUARD)
    return code


async def read(pipe: Path) -> str:
    return await asyncio.to_thread(pipe.read_text)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """Where an entry says that it runs."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def run_of(database: Any) -> tuple[Any, ...]:
    [row] = database.execute("SELECT status, reason, attempts FROM scheduler.cron_runs")
    found: tuple[Any, ...] = row
    return found


def output_of(database: Any) -> str:
    [[output]] = database.execute("SELECT output FROM scheduler.cron_attempts")
    return str(output)


async def test_settings_of_another_entry_whose_secret_is_not_here_keep_nothing_from_running(
    queue: Any, start_attempt: Any, database: Any
) -> None:
    run = await queue("no_op", {})
    attempt = start_attempt(run, entrypoint="no_op", entry_agent_inference_base_url="http://agents")
    assert await exit_code(attempt) == 0
    assert run_of(database) == ("completed", "Completed", 1)


async def test_an_entry_ends_alike_in_a_pod(*, queue: Any, start_attempt: Any, database: Any, end: Any) -> None:
    attempt = start_attempt(await queue(end.entrypoint, end.payload))
    assert await exit_code(attempt) == (0 if end.status == "completed" else 1)
    assert run_of(database) == (end.status, end.reason, 1)
    assert database.execute("SELECT execution, location FROM scheduler.cron_attempts") == [("pod", "a-pod")]


async def test_an_entry_ends_alike_in_the_runner(
    *, queue: Any, start_process: Any, database: Any, until: Any, end: Any
) -> None:
    await queue(end.entrypoint, end.payload)
    start_process("runner")
    await until(IS_OVER)
    assert run_of(database) == (end.status, end.reason, 1)


@pytest.mark.parametrize("entrypoint", ["wait_for_cancellation", "await_cancellation"])
async def test_a_pod_that_is_told_to_end_cancels_its_executor_and_its_attempt_is_lost(
    *, queue: Any, start_attempt: Any, database: Any, pipe: Path, entrypoint: str
) -> None:
    attempt = start_attempt(await queue(entrypoint, {"path": str(pipe)}))
    assert await read(pipe) == "running"
    attempt.send(signal.SIGTERM)
    assert await exit_code(attempt) == 1
    assert run_of(database) == ("lost", "PodTerminated", 1)
    assert output_of(database) == "cleaned up\n"


@pytest.mark.parametrize("entrypoint", ["wait_for_cancellation", "await_cancellation"])
async def test_an_executor_is_cancelled_before_its_deadline_and_may_clean_up(
    *, queue: Any, start_attempt: Any, database: Any, pipe: Path, entrypoint: str
) -> None:
    attempt = start_attempt(await queue(entrypoint, {"path": str(pipe)}, timeout=timedelta(seconds=5)))
    assert await read(pipe) == "running"
    assert await exit_code(attempt) == 1
    assert run_of(database) == ("timed_out", "AttemptTimeout", 1)
    assert output_of(database) == "cleaned up\n"


async def test_an_executor_whose_run_somebody_cancels_is_cancelled_and_may_clean_up(
    *, queue: Any, start_attempt: Any, database: Any, pipe: Path
) -> None:
    attempt = start_attempt(await queue("await_cancellation", {"path": str(pipe)}))
    assert await read(pipe) == "running"
    database.execute("UPDATE scheduler.cron_runs SET cancel_requested_at = scheduler.now()")
    assert await exit_code(attempt) == 1
    assert run_of(database) == ("cancelled", "CancelRequested", 1)
    assert output_of(database) == "cleaned up\n"


async def test_a_process_whose_attempt_is_over_does_nothing(
    *, queue: Any, start_attempt: Any, database: Any, pipe: Path
) -> None:
    run = await queue("await_cancellation", {"path": str(pipe)})
    database.execute(
        "UPDATE scheduler.cron_runs SET status = 'cancelled', reason = 'Somebody', finished_at = scheduler.now()"
    )
    assert await exit_code(start_attempt(run)) == 3
    assert run_of(database) == ("cancelled", "Somebody", 0)


async def test_a_process_that_is_killed_leaves_a_run_that_its_heartbeats_give_away(
    *, queue: Any, start_attempt: Any, start_process: Any, database: Any, until: Any, pipe: Path
) -> None:
    attempt = start_attempt(await queue("await_cancellation", {"path": str(pipe)}))
    assert await read(pipe) == "running"
    attempt.kill()
    assert run_of(database) == ("running", "Started", 1)
    start_process("runner")
    database.set_clock(datetime.now(UTC) + timedelta(seconds=61))
    await until(IS_OVER)
    assert run_of(database) == ("lost", "HeartbeatsStopped", 1)
