"""CronJobs as a real API server takes, completes and gives them."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_cli.kubernetes_schedule import KubernetesScheduleError, read_schedule
from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import Role

TAKEN = [
    "0 9 * * 1-5",
    "0 0 */2 * 1",
    "*/7 * * * *",
    "? ? ? ? ?",
    "*-5 * * * *",
    "+5 * * * *",
    ",5,, * * * *",
    "5-5/2 * * * *",
    "50/5 * * * *",
    "0 0 31 2 *",
    "0 0 * jan mon-FRI",
    "@midnight",
    "@every 1h30m",
    "@every 1ns",
    ", * * * *",
]
REFUSED = [
    "* * * *",
    "* * * * * *",
    "60 * * * *",
    "* * 0 * *",
    "* * * * 7",
    "* * * * FRI-SUN",
    "*/0 * * * *",
    "5-1 * * * *",
    "* * L * *",
    "* * * * MON#2",
    "@reboot",
    "@Daily",
    " @daily",
    "@every 1d",
    "@every",
]


def cronjob(name: str, *, labels: dict[str, str] | None = None, pod: Any = None, **spec: Any) -> dict[str, Any]:
    """A CronJob that makes no Job, since it is suspended."""
    limits = {"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Gi"}
    container = {"name": "report", "image": "registry.example/shop/report:1.4", "resources": {"limits": limits}}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **(pod or {})}}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "schedule": "0 9 * * *",
            "timeZone": "Europe/Paris",
            "concurrencyPolicy": "Forbid",
            "suspend": True,
            "jobTemplate": {"spec": {"template": template}},
            **spec,
        },
    }


@pytest.fixture
def namespace(kubectl: Any) -> Iterator[str]:
    name = f"cronjobs-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", "--wait=false", name)


@pytest.fixture
def create(kubectl: Any, namespace: str) -> Callable[..., None]:
    def create(*cronjobs: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": cronjobs}
        kubectl("create", "--namespace", namespace, "--filename", "-", given=json.dumps(listed))

    return create


def imported(*arguments: str, status: int, **environment: str) -> dict[str, dict[str, Any]]:
    """Give what became of each CronJob, by its name."""
    done = subprocess.run(
        [sys.executable, "-m", "cronplane_cli.main", "import", "cronjobs", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == status, done.stdout + done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return {result["cronjob"]: result for result in results}


def paths(result: dict[str, Any], effect: str) -> set[str]:
    return {remark["path"].rpartition(".")[2] for remark in result["remarks"] if remark["effect"] == effect}


def test_what_the_server_completes_is_no_remark(create: Callable[..., None], namespace: str) -> None:
    create(cronjob("plain"))
    result = imported("--namespace", namespace, status=0)[f"{namespace}/plain"]
    assert result["outcome"] == "carries_over"
    # What is left are the properties of a Job that says nothing of deadlines, root and repetition.
    assert paths(result, "noted") == {
        "startingDeadlineSeconds",
        "activeDeadlineSeconds",
        "concurrencyPolicy",
        "securityContext",
    }


def test_what_the_server_keeps_of_a_pod_is_told(create: Callable[..., None], namespace: str) -> None:
    pod = {
        "serviceAccountName": "robot",
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "tolerations": [{"operator": "Exists"}],
        "initContainers": [{"name": "first", "image": "busybox"}],
    }
    create(cronjob("rich", pod=pod))
    result = imported("--namespace", namespace, status=1)[f"{namespace}/rich"]
    assert paths(result, "lost") == {"serviceAccountName", "volumes", "tolerations", "initContainers"}


def test_cronjobs_are_chosen_by_namespace_and_labels(create: Callable[..., None], namespace: str) -> None:
    create(cronjob("ours", labels={"team": "shop"}), cronjob("theirs", labels={"team": "bank"}))
    assert set(imported("-n", namespace, status=0)) == {f"{namespace}/ours", f"{namespace}/theirs"}
    assert set(imported("-n", namespace, "-l", "team=shop", status=0)) == {f"{namespace}/ours"}
    assert f"{namespace}/ours" in imported("--partial", "-l", "team=shop", status=0)


def test_registered_cronjobs_stay_as_they_are(
    create: Callable[..., None],
    namespace: str,
    kubectl: Any,
    start_process: Callable[..., Any],
    editor: tuple[str, str],
) -> None:
    create(cronjob("moved"))
    before = kubectl.read("cronjob", "moved", "--namespace", namespace)
    organization_id, key = editor
    images = json.dumps({"registry.example/shop/*": "*"})
    address = start_process("api", entry_container_images=images).address
    arguments = ("--namespace", namespace, "--organization", organization_id, "--apply")
    first = imported(*arguments, status=0, CRONPLANE_URL=address, CRONPLANE_API_KEY=key)
    again = imported(*arguments, status=0, CRONPLANE_URL=address, CRONPLANE_API_KEY=key)
    assert [result["outcome"] for result in (*first.values(), *again.values())] == ["registered", "exists"]
    assert kubectl.read("cronjob", "moved", "--namespace", namespace) == before


@pytest.fixture
async def editor(engine: AsyncEngine, organization: Organization) -> tuple[str, str]:
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="import", role=Role.EDITOR, created_by="test"
        )
    return str(organization.id), key


@pytest.mark.parametrize("schedule", TAKEN)
def test_schedules_that_the_server_takes_can_be_read(kubectl: Any, namespace: str, schedule: str) -> None:
    assert _is_taken(kubectl, namespace, cronjob("a", schedule=schedule))
    read_schedule(schedule, "UTC")


@pytest.mark.parametrize("schedule", REFUSED)
def test_schedules_that_the_server_refuses_are_refused(kubectl: Any, namespace: str, schedule: str) -> None:
    assert not _is_taken(kubectl, namespace, cronjob("a", schedule=schedule))
    with pytest.raises(KubernetesScheduleError):
        read_schedule(schedule, "UTC")


@pytest.mark.parametrize("prefix", ["TZ=UTC", "CRON_TZ=UTC"])
def test_a_new_schedule_may_not_name_a_zone(kubectl: Any, namespace: str, prefix: str) -> None:
    """Those that were made before Kubernetes refused it are still there, and are read."""
    body = cronjob("a", schedule=f"{prefix} 0 9 * * *")
    assert not _is_taken(kubectl, namespace, body)
    assert read_schedule(body["spec"]["schedule"], "Europe/Paris").time_zone == "UTC"


def _is_taken(kubectl: Any, namespace: str, body: dict[str, Any]) -> bool:
    try:
        kubectl("create", "--dry-run=server", "-n", namespace, "-f", "-", given=json.dumps(body))
    except AssertionError as refused:
        assert "is invalid" in str(refused)  # noqa: PT017 - the fixture asserts, and only this refusal is meant
        return False
    return True
