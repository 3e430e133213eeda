"""Migration, API and runner as processes of their own, and the administrator's commands, as in an installation."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cronplane_core.database import connection_string

COMMAND = Path(sys.executable).with_name("cronplane")
DISTRIBUTIONS = Path(__file__).parents[1] / "distributions"
HANG_GUARD = 30.0


@pytest.fixture
def environment(create_database: Callable[[str], Any]) -> dict[str, str]:
    """Settings of an installation on an empty database."""
    database = create_database("template0")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CRONPLANE_")}
    return inherited | {
        "PYTHONPATH": str(DISTRIBUTIONS),
        "CRONPLANE_OWNER_DATABASE_URL": connection_string(database.owner_url),
        "CRONPLANE_DATABASE_URL": connection_string(database.url),
        "CRONPLANE_INSTALLATION_KEY": secrets.token_urlsafe(32),
        "CRONPLANE_PORT": str(port),
        "CRONPLANE_METRICS_PORT": "0",
        "CRONPLANE_URL": f"http://127.0.0.1:{port}",
    }


def cronplane(*arguments: str, environment: dict[str, str], status: int = 0) -> str:
    result = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return (result.stdout if status == 0 else result.stderr).strip()


class Role:
    """A role as a process, and what it logs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def wait_for(self, text: str) -> str:
        """Read on until a line has this text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended before it said {text!r}: {self.lines}")

    def stop(self) -> str:
        """Ask it to end, and give the rest of its log."""
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=HANG_GUARD)
        return rest


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[[str], Role]]:
    with ExitStack() as stack:

        def start_role(role: str) -> Role:
            process = subprocess.Popen([COMMAND, role], stderr=subprocess.PIPE, text=True, env=environment)
            stack.enter_context(process)
            stack.callback(process.kill)
            return Role(process)

        yield start_role


def test_the_whole_way_in_processes_of_their_own(environment: dict[str, str], start: Callable[[str], Role]) -> None:
    assert "from an empty database to " in cronplane("migrate", environment=environment)
    api, runner = start("api"), start("runner")
    address = json.loads(runner.wait_for("metrics and probes are served"))["address"]
    runner.wait_for("became leader")
    api.wait_for("Uvicorn running on")
    assert "cronplane_leader 1.0" in httpx2.get(f"{address}/metrics").text
    assert [httpx2.get(f"{address}/{probe}").status_code for probe in ("livez", "readyz")] == [200, 200]
    with httpx2.Client(base_url=environment["CRONPLANE_URL"]) as client:
        assert client.get("/readyz").status_code == 200

        organization, name = cronplane("organizations", "create", "acme", environment=environment).split()
        assert name == "acme"
        assert cronplane("organizations", "list", environment=environment).endswith("acme")
        taken = cronplane("organizations", "create", "acme", environment=environment, status=1)
        assert "exists already" in taken
        limits = ("--entry", "my_entry", "--crons", "5", "--triggers-per-minute", "default")
        limited = cronplane("organizations", "limit", organization, *limits, environment=environment)
        assert cronplane("organizations", "show", organization, environment=environment) == limited
        assert re.findall(r"  +(my_entry|0 of 5|the default)$", limited, re.MULTILINE) == [
            "my_entry",
            "0 of 5",
            "the default",
        ]
        key = cronplane("keys", "create", organization, "pipeline", "editor", environment=environment)
        headers = {"Authorization": f"Bearer {key}"}

        body = {"name": "my job", "cron_expr": "@daily", "tz": "UTC", "entrypoint": "my_entry", "payload": {}}
        cron = client.post(f"/crons/{organization}", json=body, headers=headers).json()
        run = client.post(f"/crons/{organization}/{cron['id']}/trigger", headers=headers).json()
        runner.wait_for(run["id"])
        path = f"/crons/{organization}/{cron['id']}/runs/{run['id']}"
        finished = client.get(path, headers=headers).json()
        assert (finished["status"], finished["result"]) == ("completed", {"ok": True, "greeting": "HELLO"})

        key_id = cronplane("keys", "list", organization, environment=environment).split()[0]
        assert cronplane("keys", "revoke", organization, key_id, environment=environment) == "Revoked."
        assert client.get(path, headers=headers).status_code == 401
    runner.stop()
    assert runner.process.returncode == 0
    log = "".join(api.lines) + api.stop() + "".join(runner.lines)
    assert '"route": "/crons/{organization_id}/{cron_id}/trigger"' in log
    assert key not in log
    assert environment["CRONPLANE_INSTALLATION_KEY"] not in log


def test_a_runner_on_a_database_that_was_not_migrated_waits_and_says_what_to_do(
    environment: dict[str, str], start: Callable[[str], Role]
) -> None:
    runner = start("runner")
    assert "cronplane migrate" in runner.wait_for("not ready")
    cronplane("migrate", environment=environment)
    runner.wait_for("became leader")


def test_a_wrong_key_is_told_in_a_line(environment: dict[str, str], start: Callable[[str], Role]) -> None:
    cronplane("migrate", environment=environment)
    start("api").wait_for("Uvicorn running on")
    told = cronplane(
        "organizations", "list", environment=environment | {"CRONPLANE_INSTALLATION_KEY": "x" * 40}, status=1
    )
    assert "unknown or revoked" in told
