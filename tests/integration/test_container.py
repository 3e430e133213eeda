"""Containers without a cluster: what an organization may register, what becomes of a run, and how one is let in."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import lease as leases
from cronplane_core import run_transitions
from cronplane_core.database import transaction
from cronplane_core.run_repository import insert_manual_run
from cronplane_core.tables import Execution
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.leader_extension import ChangeSignal, TermContext
from cronplane_operator.pod_attempt_record import PodAttemptRecord
from cronplane_operator.run_recorder import RunRecorder

NOON = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
IMAGE = "registry.example/team/report:1"
PREFIX = "CRONPLANE_ENTRY_CONTAINER_"


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch, organization: Any) -> None:
    """Let the test's organization run an image, and nobody else."""
    monkeypatch.setenv(f"{PREFIX}IMAGES", json.dumps({"registry.example/team/*": [str(organization.id)]}))


async def register(api: Any, *, key: str = "editor", path: str = "", **payload: Any) -> httpx2.Response:
    body = {"name": str(uuid4()), "cron_expr": "0 9 * * *", "tz": "UTC", "entrypoint": "container"}
    answer: httpx2.Response = await api.call(
        "POST", path, key=key, json={**body, "payload": {"image": IMAGE} | payload}
    )
    return answer


async def test_a_container_is_registered_and_shown_as_it_will_run(allowed: None, api: Any) -> None:
    answer = await register(api, args=["--all"], resources={"limits": {"memory": "64Mi"}})
    assert answer.status_code == 201, answer.text
    shown = answer.json()["payload"]
    assert (shown["image"], shown["args"]) == (IMAGE, ["--all"])
    assert shown["resources"] == {"requests": {}, "limits": {"memory": "64Mi"}}


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({"image": "registry.example.evil.example/team/report:1"}, "/payload/image"),
        ({"image": "registry.example/teams/report:1"}, "/payload/image"),
        ({"image": "not an image"}, "/payload/image"),
        ({"resources": {"limits": {"memory": "2Gi"}}}, "/payload/resources/limits/memory"),
        ({"resources": {"requests": {"cpu": "0"}}}, "/payload/resources/requests/cpu"),
        ({"env": [{"name": "CRONPLANE_RUN_ID", "value": "x"}]}, "/payload/env/0/name"),
        ({"env": [{"name": "A", "valueFrom": {}}]}, "/payload/env/0/valueFrom"),
        ({"serviceAccountName": "default"}, "/payload/serviceAccountName"),
    ],
)
async def test_what_may_not_be_run_is_a_422_that_says_where_and_leaves_no_row(
    allowed: None, api: Any, database: Any, payload: dict[str, Any], pointer: str
) -> None:
    answer = await register(api, **payload)
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_an_image_that_is_anothers_is_as_one_that_nobody_may_run(allowed: None, api: Any) -> None:
    anothers = await register(api, key="stranger", path=f"/crons/{api.stranger_id}")
    nobodys = await register(api, key="stranger", path=f"/crons/{api.stranger_id}", image="registry.example/x/y")
    assert anothers.status_code == nobodys.status_code == 422
    assert anothers.json()["errors"] == nobodys.json()["errors"]


async def test_an_organization_without_the_entry_is_refused_whatever_the_image(allowed: None, api: Any) -> None:
    path = f"/organizations/{api.organization_id}"
    await api.call("PATCH", path, key="installation", json={"entrypoints": ["dummy_print"]})
    answer = await register(api)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (403, "entry-not-granted")


async def test_without_settings_a_registration_is_refused_and_names_what_to_set(api: Any) -> None:
    answer = await register(api)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert f"{PREFIX}IMAGES" in error["message"]


async def test_a_run_that_a_plain_runner_leads_ends_with_an_error_that_says_what_it_wants(
    allowed: None, api: Any, database: Any, start_runner: Any
) -> None:
    cron = (await register(api)).json()
    await api.call("POST", f"{cron['id']}/trigger")
    running = await start_runner()
    await running.journal.until(lambda: running.journal.of(UUID(cron["id"])) != [])
    [[status, error]] = database.execute("SELECT status, error FROM scheduler.cron_runs")
    assert status == "error"
    assert "cronplane operator" in error["message"]


async def test_an_attempt_that_is_observed_needs_no_heartbeat_until_its_deadline_has_passed(
    add_cron: Any, database: Any, engine: AsyncEngine
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await add_cron(enabled=False, entrypoint="container", timeout=timedelta(minutes=10))
    async with transaction(engine) as connection:
        run = await insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
        await run_transitions.start(
            connection,
            nonces={run.id: uuid4()},
            epoch=1,
            location="a-job",
            execution=Execution.POD,
            now=NOON,
            lease=timedelta(seconds=20),
            is_observed=True,
        )

    async def overdue(after: timedelta) -> int:
        async with transaction(engine) as connection:
            return len(await run_transitions.lock_overdue(connection, now=NOON + after, limit=10))

    assert await overdue(timedelta(minutes=10, seconds=19)) == 0
    assert await overdue(timedelta(minutes=10, seconds=20)) == 1


@pytest.fixture
async def record(engine: AsyncEngine, database: Any) -> PodAttemptRecord:
    """The record of a leader, at noon."""
    database.set_clock(NOON, speed=0)
    async with transaction(engine) as connection:
        lease = await leases.acquire(connection, holder="test", duration=timedelta(hours=1))
    assert lease is not None
    clock = DatabaseClock()
    await clock.measure(engine)
    term = TermContext(
        engine=engine,
        lease=lease,
        recorder=RunRecorder(),
        clock=clock,
        crons_changed=ChangeSignal(),
        runs_changed=ChangeSignal(),
    )
    return PodAttemptRecord(term)


@pytest.fixture
def queue(add_cron: Any, engine: AsyncEngine) -> Callable[[], Any]:
    """Queue a run of a container by hand."""

    async def queue() -> UUID:
        cron = await add_cron(enabled=False, entrypoint="container", payload={"container": {"image": IMAGE}})
        async with transaction(engine) as connection:
            run = await insert_manual_run(connection, cron=cron, created_by="test", execution_payload=None)
        return run.id

    return queue


async def test_an_attempt_is_let_in_once_however_many_ask(record: PodAttemptRecord, queue: Any) -> None:
    attempt = await record.read_pending(await queue(), 1)
    assert attempt is not None
    started = await asyncio.gather(*(record.begin(attempt) for _ in range(5)))
    assert sum(each is not None for each in started) == 1


@pytest.mark.parametrize("change", ["payload", "entry"])
async def test_what_was_changed_since_it_was_looked_at_is_not_let_in(
    record: PodAttemptRecord, queue: Any, database: Any, change: str
) -> None:
    run_id = await queue()
    attempt = await record.read_pending(run_id, 1)
    assert attempt is not None
    changes = {"payload": "execution_payload = '{}'", "entry": "entrypoint = 'dummy_print'"}
    database.execute(f"UPDATE scheduler.cron_jobs SET {changes[change]}")
    assert await record.begin(attempt) is None
    assert database.execute("SELECT status, attempts FROM scheduler.cron_runs") == [("queued", 0)]
    assert database.execute("SELECT count(*) FROM scheduler.cron_attempts") == [(0,)]


async def test_an_attempt_that_is_not_to_begin_is_not_read(record: PodAttemptRecord, queue: Any, database: Any) -> None:
    run_id = await queue()
    assert await record.read_pending(run_id, 2) is None
    database.execute("UPDATE scheduler.cron_runs SET status = 'cancelled', finished_at = scheduler.now()")
    assert await record.read_pending(run_id, 1) is None
