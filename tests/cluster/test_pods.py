"""Attempts in pods, on a real cluster: what runs there, and what becomes of a run when something is in its way."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cronplane_core.cron_repository import Cron

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
SETTLED = r"jsonpath={.metadata.labels.crons\.cronplane\.dev/settled}=true"
RUN = "SELECT status, reason, attempts FROM scheduler.cron_runs"

IS_QUEUED = "SELECT bool_and(status = 'queued' AND reason = %s) FROM scheduler.cron_runs"


@pytest.fixture
def add_printing(add_cron: Any, database: Any, organization: Any) -> Callable[..., Any]:
    """Write a cron that prints, half a minute before it fires."""
    database.set_clock(BEFORE, speed=0)

    async def add(name: str, *, error_rate: float = 0.0, **others: Any) -> Cron:
        whose = {"user_id": "test", "organization_id": str(organization.id)}
        payload = {"message": "a payload that is printed", "error_rate": error_rate, **whose}
        cron: Cron = await add_cron(name, cron_expr="1 12 * * *", entrypoint="dummy_print", payload=payload, **others)
        return cron

    return add


@pytest.fixture
def see(kubectl: Any, installation: Any) -> Callable[..., None]:
    """Wait until the mirror of a cron shows how its last run ended, and why."""

    def see(name: str, *, result: str, reason: str) -> None:
        here = ("--namespace", installation.tenant)
        kubectl.wait("create", f"cron/{name}", *here)
        kubectl.wait(f"jsonpath={{.status.last_result}}={result}", f"cron/{name}", *here)
        kubectl.wait(f"jsonpath={{.status.last_reason}}={reason}", f"cron/{name}", *here)

    return see


def only_job(kubectl: Any, installation: Any) -> Any:
    kubectl.wait("create", "jobs", "--all", "--namespace", installation.runs)
    [job] = kubectl.read("jobs", "--namespace", installation.runs)["items"]
    return job


async def test_a_run_in_a_pod_completes_under_restricted_security_and_its_log_is_kept(
    *, add_printing: Any, database: Any, start_with_pods: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    await add_printing("printing")
    start_with_pods()
    database.set_clock(DUE)
    see("printing", result="completed", reason="Completed")
    job = only_job(kubectl, installation)
    name, here = job["metadata"]["name"], ("--namespace", installation.runs)
    kubectl.wait(SETTLED, f"job/{name}", *here)
    assert database.execute("SELECT log FROM scheduler.attempt_jobs") == [("a payload that is printed\n",)]
    assert database.execute(RUN) == [("completed", "Completed", 1)]
    assert "a payload that is printed" not in json.dumps(kubectl.read("jobs,pods", *here))
    [run] = kubectl.read("cron/printing", "--namespace", installation.tenant)["status"]["runs"]
    assert run["job"] == f"{installation.runs}/{name}"


async def test_an_error_in_a_pod_has_the_reason_that_it_has_in_the_runner_and_is_retried(
    *, add_printing: Any, database: Any, start_with_pods: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    await add_printing("failing", error_rate=1.0, max_attempts=2)
    start_with_pods()
    database.set_clock(DUE)
    see("failing", result="error", reason="ExecutorFailed")
    assert database.execute(RUN) == [("error", "ExecutorFailed", 2)]
    assert len(kubectl.read("jobs", "--namespace", installation.runs)["items"]) == 2
    attempts = database.execute("SELECT outcome, reason, execution FROM scheduler.cron_attempts")
    assert attempts == [("error", "ExecutorFailed", "pod")] * 2


async def test_an_image_that_cannot_be_pulled_is_told_while_it_waits_and_ends_the_run_at_the_deadline(
    *, add_printing: Any, database: Any, start_with_pods: Any, until: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    await add_printing("imageless")
    start_with_pods(run_image="localhost/nowhere:none", pod_start_timeout=20)
    database.set_clock(DUE)
    await until(IS_QUEUED, ["ImagePull"])
    see("imageless", result="error", reason="ImagePull")
    assert database.execute(RUN) == [("error", "ImagePull", 1)]
    kubectl.wait("delete", "jobs", "--all", "--namespace", installation.runs)


async def test_a_job_that_a_quota_refuses_is_made_when_there_is_room_unless_the_window_has_passed(
    *, add_printing: Any, database: Any, start_with_pods: Any, until: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    here = ("--namespace", installation.runs)
    kubectl("create", "quota", "none", "--hard=count/jobs.batch=0", *here)
    kubectl.wait(r"jsonpath={.status.hard.count/jobs\.batch}=0", "quota/none", *here)
    await add_printing("waiting")
    await add_printing("given-up", catchup_window=timedelta(seconds=15))
    start_with_pods()
    database.set_clock(DUE)
    await until(IS_QUEUED, ["Quota"])
    see("given-up", result="missed", reason="Quota")
    runner = (f"runner/{installation.name}", "--namespace", installation.namespace)
    kubectl.wait("jsonpath={.status.conditions[?(@.type=='Degraded')].reason}=JobsNotLaunched", *runner)
    kubectl("delete", "quota", "none", *here)
    see("waiting", result="completed", reason="Completed")
    kubectl.wait("condition=Degraded=false", *runner)
    assert set(database.execute(RUN)) == {("completed", "Completed", 1), ("missed", "Quota", 0)}


async def test_a_run_says_so_when_a_quota_allows_its_job_no_pod(
    *, add_printing: Any, database: Any, start_with_pods: Any, until: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    here = ("--namespace", installation.runs)
    kubectl("create", "quota", "none", "--hard=pods=0", *here)
    kubectl.wait("jsonpath={.status.hard.pods}=0", "quota/none", *here)
    await add_printing("waiting")
    start_with_pods()
    database.set_clock(DUE)
    await until(IS_QUEUED, ["Quota"])
    [(message,)] = database.execute("SELECT message FROM scheduler.cron_runs")
    assert message.endswith("exceeded quota: none")
    kubectl("delete", "quota", "none", *here)
    see("waiting", result="completed", reason="Completed")
    assert database.execute(RUN) == [("completed", "Completed", 1)]


async def test_a_job_deleted_before_its_attempt_began_is_made_again(
    *, add_printing: Any, database: Any, start_with_pods: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_printing("deleted")
    start_with_pods(run_image="localhost/nowhere:none")
    database.set_clock(DUE)
    await until(IS_QUEUED, ["ImagePull"])
    first = only_job(kubectl, installation)["metadata"]
    here = ("--namespace", installation.runs)
    kubectl("delete", f"job/{first['name']}", *here)
    kubectl.wait("create", f"job/{first['name']}", *here)
    second = only_job(kubectl, installation)["metadata"]
    assert second["uid"] != first["uid"]
    assert database.execute(RUN) == [("queued", "ImagePull", 0)]


async def test_a_foreign_job_of_the_attempts_name_ends_the_run_and_stays_as_it_is(
    *, add_printing: Any, database: Any, start_with_pods: Any, see: Any, kubectl: Any, installation: Any
) -> None:
    cron = await add_printing("conflicting")
    run_id = UUID("00000000-0000-4000-8000-000000000001")
    database.execute(
        "INSERT INTO scheduler.cron_runs (id, organization_id, cron_id, scheduled_for, trigger_kind, status, reason,"
        " message, generation) VALUES (%s, %s, %s, scheduler.now(), 'manual', 'queued', 'Triggered', '', 1)",
        [run_id, cron.organization_id, cron.id],
    )
    name, here = f"job/cronplane-{run_id.hex}-1", ("--namespace", installation.runs)
    kubectl("create", "job", name.removeprefix("job/"), "--image=localhost/nowhere:none", *here)
    before = kubectl.read(name, *here)["metadata"]["uid"]
    start_with_pods()
    see("conflicting", result="error", reason="NameConflict")
    assert kubectl.read(name, *here)["metadata"]["uid"] == before
