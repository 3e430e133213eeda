"""The program of `make demo`: the whole system, an agent backend beside it, and a cron of every entry that ships.

Only the entry `container` is left out, which needs a cluster.

It does nothing that a person could not do over REST. What it starts ends with it.
"""

import argparse
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2

EXAMPLES = Path(__file__).parents[1]
COMMAND = Path(sys.executable).with_name("cronplane")
HOST = "127.0.0.1"
WORD_COUNT = "5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a01"
SUM = "5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a02"
_POLL_SECONDS = 0.1
_GRACE_SECONDS = 30.0
_ACTIVE = ("queued", "running", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """A running agent backend."""

    url: str
    api_key: str

    def give_projects_to(self, organization_id: str) -> None:
        """Make an organization the owner of both projects."""
        for project_id in (WORD_COUNT, SUM):
            httpx2.put(
                f"{self.url}/projects/{project_id}/owner",
                json={"organization_id": organization_id},
                headers={"X-API-Key": self.api_key},
            ).raise_for_status()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cronplane:
    """A running Cronplane, and who we are to it."""

    url: str
    api_key: str
    organization_id: str

    def show_everything(self) -> None:
        """Register the samples, run each now, and tell what became of them."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        collection = f"/crons/{self.organization_id}"
        with httpx2.Client(base_url=self.url, headers=headers) as client:
            crons = [_register(client, collection, sample) for sample in _samples(self.url)]
            runs = [_answer(client.post(f"{collection}/{cron['id']}/trigger")) for cron in crons]
            print("\nA cron of every entry is registered, but of container, which needs a cluster.")
            print("Each runs once now, and then as it is scheduled:\n")
            for cron, run in zip(crons, runs, strict=True):
                _tell(cron, _finished(client, f"{collection}/{cron['id']}/runs/{run['id']}"))
        print(flush=True)


def _samples(url: str) -> list[dict[str, Any]]:
    return [
        _sample("say hello each minute", "* * * * *", "dummy_print", {"message": "Hello from Cronplane 👋"}),
        _sample("weekday mornings in Paris", "0 9 * * MON-FRI", "dummy_print", {"message": "Bonjour"}, "Europe/Paris"),
        _sample("is Cronplane ready", "*/5 * * * *", "http_request", {"url": f"{url}/readyz"}),
        _sample(
            "count words each hour",
            "@hourly",
            "agent_inference",
            {"project_id": WORD_COUNT, "env": "production", "input_data": {"text": "no fire is ever silent"}},
        ),
        _sample(
            "add up, in draft",
            "30 6 1 * *",
            "agent_inference",
            {"project_id": SUM, "env": "draft", "input_data": {"numbers": [20, 22]}},
        ),
    ]


def _sample(name: str, cron_expr: str, entrypoint: str, payload: Mapping[str, Any], tz: str = "UTC") -> dict[str, Any]:
    return {"name": name, "cron_expr": cron_expr, "tz": tz, "entrypoint": entrypoint, "payload": payload}


def _register(client: httpx2.Client, collection: str, sample: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(collection, json=sample)
    if answer.status_code != httpx2.codes.CONFLICT:
        return _answer(answer)
    # It is there from an earlier start, when Cronplane may have been at another port.
    [cron] = _answer(client.get(collection, params={"name": sample["name"]}))["items"]
    return _answer(client.patch(f"{collection}/{cron['id']}", json={"payload": sample["payload"]}))


def _finished(client: httpx2.Client, path: str) -> dict[str, Any]:
    while (run := _answer(client.get(path)))["status"] in _ACTIVE:
        time.sleep(_POLL_SECONDS)
    return run


def _answer(answer: httpx2.Response) -> dict[str, Any]:
    if answer.is_error:
        sys.exit(f"{answer.request.method} {answer.request.url} was refused: {answer.text}")
    body: dict[str, Any] = answer.json()
    return body


def _tell(cron: dict[str, Any], run: dict[str, Any]) -> None:
    print(f"  {run['status']:<10} {cron['entrypoint']:<16} {cron['name']:<26} {cron['description']}", flush=True)


@contextmanager
def _running(arguments: list[str | Path], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a program in a session of its own, so that Ctrl-C reaches it from us, once; it ends with the block."""
    program = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )
    try:
        yield program
    finally:
        program.terminate()
        try:
            program.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _read_until(output: IO[str] | None, pattern: str) -> str:
    """Pass on what a program says, until it says what we want to know."""
    for line in output or ():
        print(line, end="", flush=True)
        if found := re.search(pattern, line):
            return found[1]
    sys.exit("It ended before it was ready.")


def _pass_on(output: IO[str]) -> None:
    for line in output:
        print(line, end="", flush=True)


@contextmanager
def _running_agents() -> Iterator[Agents]:
    api_key = secrets.token_urlsafe(32)
    program: list[str | Path] = [sys.executable, EXAMPLES / "agent_backend" / "agent_backend.py"]
    with _running(program, {"AGENT_BACKEND_API_KEY": api_key, "AGENT_BACKEND_PORT": "0"}) as backend:
        yield Agents(url=_read_until(backend.stdout, r"agent backend is at (\S+)"), api_key=api_key)


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run Cronplane with sample crons of every entry.")
    parser.add_argument("--port", type=int, default=8080, help="where Cronplane listens; 0 takes a free port")
    parser.add_argument("--data-dir", default=".cronplane", help="where Cronplane keeps its data")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _demonstrate(port=options.port or _free_port(), data_directory=options.data_dir)
    except KeyboardInterrupt:
        print("Stopped.")


def _demonstrate(*, port: int, data_directory: str) -> None:
    command: list[str | Path] = [COMMAND, "dev", "--host", HOST, "--port", str(port), "--data-dir", data_directory]
    with _running_agents() as agents:
        environment = {
            "CRONPLANE_ENTRY_AGENT_INFERENCE_BASE_URL": agents.url,
            "CRONPLANE_ENTRY_AGENT_INFERENCE_API_KEY": agents.api_key,
            # A tenant's request must not reach this machine, unless its administrator says so.
            "CRONPLANE_ENTRY_HTTP_REQUEST_ALLOWED_HOSTS": f"{HOST}:{port}",
        }
        with _running(command, environment) as program:
            cronplane = Cronplane(
                url=_read_until(program.stdout, r"export CRONPLANE_URL=(\S+)"),
                api_key=_read_until(program.stdout, r"export CRONPLANE_API_KEY=(\S+)"),
                organization_id=_read_until(program.stdout, r"export ORGANIZATION=(\S+)"),
            )
            threading.Thread(target=_pass_on, args=[program.stdout], daemon=True).start()
            agents.give_projects_to(cronplane.organization_id)
            cronplane.show_everything()
            sys.exit(program.wait())


if __name__ == "__main__":
    main()
