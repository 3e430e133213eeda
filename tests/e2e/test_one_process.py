"""The installed command as a newcomer uses it: started, called over real HTTP, interrupted."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cronplane_entries.registry import BUILT_IN

COMMAND = Path(sys.executable).with_name("cronplane")
DISTRIBUTIONS = Path(__file__).parents[1] / "distributions"
# What needs no cluster.
SHOWN = {str(name) for name, spec in BUILT_IN.items() if spec.container is None}
DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.py"


@dataclass(slots=True)
class Demo:
    """A running demonstration, or a running `cronplane dev`, and what it printed."""

    process: subprocess.Popen[str]
    lines: list[str]

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read on until a line matches."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"it ended before it said {pattern!r}:\n{''.join(self.lines)}")

    def call(self, method: str, url: str, key: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(  # noqa: S310 - our own server
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - our own server
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@pytest.fixture
def data_directory() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="cronplane-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@contextmanager
def demonstration(data_directory: Path) -> Iterator[Demo]:
    process = subprocess.Popen(
        [sys.executable, DEMO, "--port", "0", "--data-dir", data_directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(DISTRIBUTIONS), "PYTHONUNBUFFERED": "1"},
    )
    with process:
        yield Demo(process, [])
        # Not killed, or what it has started would be left.
        process.terminate()


@pytest.fixture
def demo(data_directory: Path) -> Iterator[Demo]:
    with demonstration(data_directory) as running:
        yield running


def test_a_newcomer_sees_a_run_of_every_entry_registers_another_and_leaves_nothing_behind(
    demo: Demo, data_directory: Path
) -> None:
    backend = urllib.parse.urlsplit(demo.wait_for(r"agent backend is at (\S+)")[1])
    url = demo.wait_for(r"export CRONPLANE_URL=(\S+)")[1]
    key = demo.wait_for(r"export CRONPLANE_API_KEY=(\S+)")[1]
    organization = demo.wait_for(r"export ORGANIZATION=(\S+)")[1]
    demo.wait_for(r"A cron of every entry is registered, but of container, which needs a cluster")
    completed = {demo.wait_for(r"^  completed +(\S+)")[1] for _ in range(5)}
    assert completed == SHOWN

    status, cron = demo.call(
        "POST",
        f"{url}/crons/{organization}",
        key,
        {"name": "my job", "cron_expr": "0 9 * * 1-5", "tz": "UTC", "entrypoint": "my_entry", "payload": {}},
    )
    assert status == 201, cron
    status, run = demo.call("POST", f"{url}/crons/{organization}/{cron['id']}/trigger", key)
    assert (status, run["status"]) == (202, "queued")
    demo.wait_for(r"run completed .*cron='my job'")
    status, run = demo.call("GET", f"{url}/crons/{organization}/{cron['id']}/runs/{run['id']}", key)
    assert (status, run["status"], run["result"]) == (200, "completed", {"ok": True, "greeting": "HELLO"})
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:  # noqa: S310 - our own server
        metrics = answer.read().decode()
    assert "cronplane_leader 1.0" in metrics, "one page has the runner's metrics"
    assert 'route="/crons/{organization_id}",status="201"' in metrics, "and the API's"

    postmaster = int((data_directory / "postgresql" / "postmaster.pid").read_text().split()[0])
    handle = os.pidfd_open(postmaster)
    demo.process.send_signal(signal.SIGINT)
    rest = demo.process.stdout.read() if demo.process.stdout else ""
    assert demo.process.wait() == 0, rest
    assert "Traceback" not in rest
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(handle, 0)
    os.close(handle)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((backend.hostname, backend.port))


def test_a_demonstration_can_be_started_again_where_there_has_been_one(data_directory: Path) -> None:
    for _ in range(2):
        with demonstration(data_directory) as demo:
            demo.wait_for(r"A cron of every entry is registered")
            completed = [demo.wait_for(r"^  completed +(\S+)")[1] for _ in range(5)]
            assert set(completed) == SHOWN
            demo.process.send_signal(signal.SIGTERM)
            rest, _ = demo.process.communicate()
            assert (demo.process.returncode, "Stopped." in rest) == (0, True)


def test_the_key_is_the_same_after_a_restart(data_directory: Path) -> None:
    keys = []
    for _ in range(2):
        process = subprocess.Popen(
            [COMMAND, "dev", "--port", "0", "--data-dir", data_directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        with process:
            keys.append(Demo(process, []).wait_for(r"export CRONPLANE_API_KEY=(\S+)")[1])
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == 0
    assert keys[0] == keys[1]


def test_a_port_that_is_in_use_is_said_in_a_line(data_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [COMMAND, "dev", "--port", str(port), "--data-dir", data_directory],
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "told"),
    [("api", "CRONPLANE_DATABASE_URL"), ("runner", "CRONPLANE_DATABASE_URL"), ("migrate", "OWNER_DATABASE_URL")],
)
def test_a_missing_setting_is_named(command: str, told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRONPLANE_")}
    result = subprocess.run([COMMAND, command], capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_shown() -> None:
    result = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"cronplane \d+\.\d+\.\d+\n", result.stdout)
