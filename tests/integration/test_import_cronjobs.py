"""`cronplane import cronjobs` as a person runs it, on manifests and an API over real HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import Role

SECRET = "correct horse battery staple"
MANIFESTS = f"""
apiVersion: batch/v1
kind: CronJob
metadata: {{name: nightly, namespace: shop}}
spec:
  schedule: "0 4 ? * MON-FRI"
  timeZone: Europe/Paris
  concurrencyPolicy: Forbid
  suspend: true
  jobTemplate:
    spec:
      backoffLimit: 2
      activeDeadlineSeconds: 3600
      template:
        spec:
          restartPolicy: OnFailure
          containers:
          - name: report
            image: registry.example/shop/report:1.4
            command: [python, -m, report]
            args: [--day, "$(DAY)"]
            env:
            - {{name: PASSWORD, value: {SECRET}}}
            - {{name: DAY, value: yesterday}}
            resources: {{requests: {{cpu: 100m}}, limits: {{cpu: 500m, memory: 128Mi, ephemeral-storage: 1Gi}}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: other}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {{name: hourly, namespace: shop}}
spec:
  schedule: "@hourly"
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          nodeSelector: {{disk: ssd}}
          containers: [{{name: report, image: registry.example/shop/report:1.4}}]
"""
FOREIGN = """
apiVersion: batch/v1
kind: CronJob
metadata: {name: foreign}
spec:
  schedule: "0 0 * * *"
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      template:
        spec: {restartPolicy: Never, containers: [{name: a, image: "registry.example.evil.example/shop/report:1.4"}]}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The command with an editor's key."""

    address: str
    organization_id: UUID
    key: str

    def __call__(self, *arguments: str, given: str = MANIFESTS, status: int = 0) -> str:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CRONPLANE_")}
        done = subprocess.run(
            [sys.executable, "-m", "cronplane_cli.main", "import", "cronjobs", "--file", "-", *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            env=inherited | {"CRONPLANE_URL": self.address, "CRONPLANE_API_KEY": self.key},
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status < 2 else done.stderr

    def with_api(self, *arguments: str, given: str = MANIFESTS, status: int = 0) -> list[dict[str, Any]]:
        """Import with the API, and give what became of each."""
        told = self("--json", "--organization", str(self.organization_id), *arguments, given=given, status=status)
        return [json.loads(line) for line in told.splitlines()]


@pytest.fixture
async def command(engine: AsyncEngine, organization: Organization, start_process: Callable[..., Any]) -> Command:
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="import", role=Role.EDITOR, created_by="test"
        )
    images = json.dumps({"registry.example/shop/*": "*"})
    address = start_process("api", entry_container_images=images).address
    return Command(address=address, organization_id=organization.id, key=key)


def test_a_dry_run_tells_everything_and_writes_nothing(command: Command, database: Any) -> None:
    nightly, hourly = command.with_api(status=1)
    assert (nightly["cronjob"], nightly["outcome"]) == ("shop/nightly", "carries_over")
    assert nightly["schedule"]["cron_expr"] == "0 4 * * MON-FRI"
    assert (hourly["cronjob"], hourly["outcome"]) == ("shop/hourly", "loses")
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


def test_applied_what_carries_over_is_registered_and_a_second_time_nothing_is(command: Command, database: Any) -> None:
    assert [each["outcome"] for each in command.with_api("--apply", status=1)] == ["registered", "loses"]
    rows = database.execute(
        "SELECT name, cron_expr, tz, entrypoint, enabled, max_attempts, extract(epoch FROM run_timeout)::int,"
        " user_payload FROM scheduler.cron_jobs"
    )
    [(*columns, payload)] = rows
    assert columns == ["shop/nightly", "0 4 * * MON-FRI", "Europe/Paris", "container", False, 3, 3600]
    assert payload["env"] == [{"name": "PASSWORD", "value": SECRET}, {"name": "DAY", "value": "yesterday"}]
    assert [each["outcome"] for each in command.with_api("--apply", status=1)] == ["exists", "loses"]
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(1,)]


def test_with_all_losses_accepted_everything_is_registered_paused(command: Command, database: Any) -> None:
    pod = "spec.jobTemplate.spec.template.spec"
    accepted = ("--accept", f"{pod}.nodeSelector", "--accept", f"{pod}.containers[0].resources.limits")
    assert command.with_api("--apply", *accepted[:2], status=1)[1]["outcome"] == "loses"
    results = command.with_api("--apply", "--paused", *accepted)
    assert [each["outcome"] for each in results] == ["exists", "registered"]
    assert [each["outcome"] for each in command.with_api("--apply", "--partial")] == ["exists", "exists"]
    assert database.execute("SELECT count(*), bool_or(enabled) FROM scheduler.cron_jobs") == [(2, False)]


def test_what_the_entry_refuses_is_told_in_its_words(command: Command) -> None:
    [foreign] = command.with_api(given=FOREIGN, status=1)
    assert foreign["outcome"] == "refused"
    assert foreign["remarks"][-1]["path"] == "/payload/image"
    assert "not allowed" in foreign["remarks"][-1]["message"]


def test_without_an_organization_the_manifests_alone_are_looked_at(command: Command) -> None:
    told = command(status=1)
    assert "shop/nightly carries over: 0 4 * * MON-FRI, Europe/Paris, paused" in told
    assert "CronJobs: 1 carries over; 1 does not carry over." in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--apply"], "--organization"),
        (["--organization", str(UUID(int=1))], "There is nothing here"),
        (["--namespace", "shop"], "leave them out"),
        (["--organization", str(UUID(int=1)), "--key", "wrong"], "key"),
    ],
)
def test_trouble_is_said_in_a_line(command: Command, arguments: list[str], words: str) -> None:
    [line] = command(*arguments, given=FOREIGN, status=2).splitlines()
    assert line.startswith("cronplane: ")
    assert words in line


def test_a_manifest_that_cannot_be_read_is_trouble(command: Command, tmp_path: Path) -> None:
    assert "neither JSON nor YAML" in command(given="kind: [", status=2)
