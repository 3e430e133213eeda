"""Crons of the API as people see them with kubectl, on a real API server, by the rights of the chart's account."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.cron_repository import Cron, delete_cron, lock_cron, update_cron
from cronplane_core.database import transaction

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
STATUS = "{.status.%s}"


@pytest.fixture
def add_seen(add_cron: Any, database: Any, ledger: Path) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires."""
    database.set_clock(BEFORE, speed=0)

    async def add(name: str, **others: Any) -> Cron:
        payload = {"ledger": str(ledger), "pipe": ""}
        cron: Cron = await add_cron(name, entrypoint="keep_ledger", payload=payload, **others)
        return cron

    return add


@pytest.fixture
def look(kubectl: Any, installation: Any) -> Callable[[str], Any]:
    """Read a Cron resource, once it is there and Ready."""

    def look(name: str) -> Any:
        kubectl.wait("create", f"cron/{name}", "--namespace", installation.tenant)
        kubectl.wait("condition=Ready", f"cron/{name}", "--namespace", installation.tenant)
        return kubectl.read(f"cron/{name}", "--namespace", installation.tenant)

    return look


@pytest.fixture
def fires(database: Any, until: Any) -> Callable[[], Any]:
    """Let the cron come due, and wait until it has fired."""

    async def fires() -> None:
        database.set_clock(DUE)
        await until("SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'completed'")

    return fires


async def test_a_cron_of_the_api_is_seen_with_its_next_fire_its_runs_and_without_its_payload(
    *,
    add_seen: Any,
    database: Any,
    ledger: Path,
    start_operator: Any,
    look: Any,
    kubectl: Any,
    installation: Any,
) -> None:
    await add_seen("nightly")
    await add_seen("Täglicher Bericht!")
    start_operator()
    assert look("nightly")["status"]["next_fire"] == "2026-06-01T12:01:00Z"
    database.set_clock(DUE)
    kubectl.wait(f"jsonpath={STATUS % 'last_result'}=completed", "cron/nightly", "--namespace", installation.tenant)
    found = kubectl.read("crons", "--namespace", installation.tenant)
    assert str(ledger) not in json.dumps(found)
    names = [body["metadata"]["name"] for body in found["items"]]
    assert "nightly" in names
    assert any(name.startswith("taglicher-bericht-") for name in names)
    [run] = look("nightly")["status"]["runs"]
    assert (run["scheduled_for"], run["status"], run["reason"]) == ("2026-06-01T12:01:00Z", "completed", "Completed")
    shown = kubectl("get", "crons", "--namespace", installation.tenant)
    assert [word in shown for word in ("SCHEDULE", "* * * * *", "completed")] == [True] * 3


async def test_an_edit_is_reverted_and_a_deletion_restored_each_with_an_event_and_the_table_is_unchanged(
    *, add_seen: Any, database: Any, start_operator: Any, look: Any, kubectl: Any, installation: Any
) -> None:
    await add_seen("nightly")
    before = database.execute("SELECT cron_expr, generation FROM scheduler.cron_jobs")
    start_operator()
    first = look("nightly")
    here = ("--namespace", installation.tenant)
    edit = json.dumps({"spec": {"cron_expr": "1 1 1 1 1", "max_runs": 5}})
    kubectl("patch", "cron/nightly", *here, "--type=merge", "--patch", edit)
    kubectl.wait("jsonpath={.spec.cron_expr}=* * * * *", "cron/nightly", *here)
    kubectl.wait("create", "events", *here, "--field-selector=reason=MirrorReverted")
    assert look("nightly")["spec"] == first["spec"]
    kubectl("delete", "cron/nightly", *here)
    assert look("nightly")["metadata"]["uid"] != first["metadata"]["uid"]
    assert look("nightly")["spec"] == first["spec"]
    kubectl.wait("create", "events", *here, "--field-selector=reason=MirrorRestored")
    assert database.execute("SELECT cron_expr, generation FROM scheduler.cron_jobs") == before


async def test_what_happens_to_a_cron_in_the_table_happens_to_its_resource_under_the_same_name(
    *, add_seen: Any, engine: AsyncEngine, start_operator: Any, look: Any, kubectl: Any, installation: Any
) -> None:
    cron = await add_seen("nightly")
    start_operator()
    first = look("nightly")
    here = ("--namespace", installation.tenant)
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        renamed = type(locked.definition)(
            **{field: getattr(locked.definition, field) for field in locked.definition.__dataclass_fields__}
            | {"name": "renamed", "enabled": False}
        )
        await update_cron(connection, cron=locked, definition=renamed, updated_by="test")
    kubectl.wait("jsonpath={.spec.name}=renamed", "cron/nightly", *here)
    kubectl.wait("condition=Scheduled=false", "cron/nightly", *here)
    assert look("nightly")["metadata"]["uid"] == first["metadata"]["uid"]
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        assert locked is not None
        await delete_cron(connection, cron=locked, deleted_by="test")
    kubectl.wait("delete", "cron/nightly", *here)


async def test_the_runner_resource_tells_who_leads_and_what_there_is_to_do(
    *, add_seen: Any, start_operator: Any, kubectl: Any, installation: Any
) -> None:
    await add_seen("nightly")
    start_operator()
    here = ("--namespace", installation.namespace)
    kubectl.wait("create", f"runner/{installation.name}", *here)
    kubectl.wait("jsonpath={.status.crons}=1", f"runner/{installation.name}", *here)
    status = kubectl.read(f"runner/{installation.name}", *here)["status"]
    assert (status["epoch"], status["queued"], status["next_fire"]) == (1, 0, "2026-06-01T12:01:00Z")
    verdicts = {each["type"]: each["status"] for each in status["conditions"]}
    assert verdicts == {"Ready": "True", "Degraded": "False"}


async def test_api_server_restart_crons_fire_meanwhile_and_the_mirror_catches_up(
    *,
    add_seen: Any,
    database: Any,
    start_operator: Any,
    look: Any,
    kubectl: Any,
    installation: Any,
    program: Any,
    fires: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_seen("nightly")
    start_operator()
    look("nightly")
    program("kill", "kube-apiserver")
    try:
        await fires()
    finally:
        program("start", "kube-apiserver")
    kubectl.wait(f"jsonpath={STATUS % 'last_result'}=completed", "cron/nightly", "--namespace", installation.tenant)
    database.set_clock(DUE + timedelta(seconds=10))
    await assert_nothing_is_lost()


async def test_crd_missing_scheduling_goes_on_the_runner_says_what_is_wrong_and_the_mirror_comes_back(
    *,
    add_seen: Any,
    database: Any,
    start_operator: Any,
    look: Any,
    kubectl: Any,
    installation: Any,
    fires: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_seen("nightly")
    start_operator()
    look("nightly")
    definition = kubectl.read("crd/crons.crons.cronplane.dev")
    runner = (f"runner/{installation.name}", "--namespace", installation.namespace)
    kubectl("delete", "crd/crons.crons.cronplane.dev")
    try:
        await fires()
        kubectl.wait("condition=Degraded", *runner)
        [degraded] = [each for each in kubectl.read(*runner)["status"]["conditions"] if each["type"] == "Degraded"]
        assert degraded["reason"] == "ResourceDefinitionMissing"
        assert "cronplane crd" in degraded["message"]
    finally:
        body = {**definition, "metadata": {"name": definition["metadata"]["name"]}, "status": None}
        kubectl("create", "--filename", "-", given=json.dumps(body))
    assert look("nightly")["status"]["last_result"] == "completed"
    kubectl.wait("condition=Degraded=false", *runner)
    database.set_clock(DUE + timedelta(seconds=10))
    await assert_nothing_is_lost()


async def test_a_right_that_is_revoked_ends_kopf_and_nothing_else_and_given_back_it_watches_again(
    *, add_seen: Any, start_operator: Any, look: Any, kubectl: Any, installation: Any, fires: Any
) -> None:
    await add_seen("nightly")
    operator = start_operator()
    look("nightly")
    name = f"{installation.namespace}-{installation.name}-operator"
    binding = ("rolebinding", name, "--namespace", installation.tenant)
    known = kubectl.read(*binding)
    kubectl("delete", *binding)
    # Its watches of other namespaces may hold it for as long as a watch lasts.
    operator.log.wait_for("is forbidden")
    operator.log.wait_for("kopf ended and is started again")
    await fires()
    known["metadata"] = {"name": known["metadata"]["name"], "namespace": known["metadata"]["namespace"]}
    kubectl("create", "--filename", "-", given=json.dumps(known))
    here = ("--namespace", installation.tenant)
    kubectl.wait(f"jsonpath={STATUS % 'last_result'}=completed", "cron/nightly", *here)
    assert operator.log.count("stepped down") == 0
