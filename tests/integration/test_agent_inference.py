"""Agents over the wire: the real example backend, through the API and a worker; and backends that misbehave."""

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from cronplane_entries import agent_inference
from cronplane_entries.entry_settings import InvalidSettingsError, read_entry_settings
from cronplane_entries.registry import CronRegistry

HANG_GUARD = 30.0
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "agent_backend"
PROGRAM = EXAMPLE / "agent_backend.py"
WORD_COUNT = "5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a01"
SUM = "5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a02"
PREFIX = "CRONPLANE_ENTRY_AGENT_INFERENCE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """The example backend as a process of its own."""

    url: str
    api_key: str

    async def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {"X-API-Key": self.api_key} | options.pop("headers", {})
        async with httpx2.AsyncClient(base_url=self.url, headers=headers) as client:
            return await client.request(method, path, **options)

    async def give(self, project_id: str, organization_id: UUID) -> None:
        answer = await self.call("PUT", f"/projects/{project_id}/owner", json={"organization_id": str(organization_id)})
        assert answer.status_code == 204


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    api_key = secrets.token_urlsafe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        PROGRAM,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "AGENT_BACKEND_API_KEY": api_key, "AGENT_BACKEND_PORT": "0"},
    )
    assert process.stdout is not None
    async with asyncio.timeout(HANG_GUARD):
        line = await process.stdout.readline()
    yield Backend(url=line.decode().split()[-1], api_key=api_key)
    process.terminate()
    assert await process.wait() == 0


class Misbehaving:
    """A backend that looks a project up as it should, and answers a run with the bytes that a test chose."""

    def __init__(self) -> None:
        self.url = ""
        self.owner: UUID | None = None
        self.look_up: bytes | None = None
        self.run: bytes | None = b""
        self.requests: list[bytes] = []
        self._silent: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if length := re.search(rb"(?i)content-length: (\d+)", head):
            await reader.readexactly(int(length[1]))
        self.requests.append(head)
        owner = json.dumps({"organization_id": None if self.owner is None else str(self.owner)}).encode()
        raw = (self.look_up or answer(200, owner)) if head.startswith(b"GET") else self.run
        if raw is None:
            self._silent.append(writer)
            return
        writer.write(raw)
        writer.close()

    def stop(self) -> None:
        for writer in self._silent:
            writer.close()


def answer(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Some Words", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
async def misbehaving() -> AsyncIterator[Misbehaving]:
    server = Misbehaving()
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/base/"
        yield server
        server.stop()


def configure(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    for key, value in settings.items():
        monkeypatch.setenv(PREFIX + key.upper(), value)


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, backend: Backend) -> None:
    configure(monkeypatch, base_url=backend.url, api_key=backend.api_key)


@pytest.fixture
def misconfigured(monkeypatch: pytest.MonkeyPatch, misbehaving: Misbehaving) -> Misbehaving:
    configure(monkeypatch, base_url=misbehaving.url, api_key=secrets.token_urlsafe())
    return misbehaving


async def register(api: Any, **payload: Any) -> httpx2.Response:
    body = {"name": secrets.token_hex(4), "cron_expr": "0 9 * * *", "tz": "UTC", "entrypoint": "agent_inference"}
    whole = {"project_id": WORD_COUNT, "env": "draft", "input_data": {"text": "a b a"}} | payload
    registered: httpx2.Response = await api.call("POST", "", key="editor", json={**body, "payload": whole})
    return registered


async def run(api: Any, running: Any, cron_id: str) -> dict[str, Any]:
    triggered = await api.call("POST", f"{cron_id}/trigger", key="operator")
    run_id = triggered.json()["id"]
    await running.journal.until(lambda: any(str(run.id) == run_id for run in running.journal.runs))
    shown: dict[str, Any] = (await api.call("GET", f"{cron_id}/runs/{run_id}", key="viewer")).json()
    return shown


async def test_an_agents_message_and_artifacts_are_the_result(
    configured: None, backend: Backend, api: Any, start_runner: Any
) -> None:
    await backend.give(WORD_COUNT, api.organization_id)
    running = await start_runner()
    registered = await register(api)
    assert registered.status_code == 201, registered.text
    finished = await run(api, running, registered.json()["id"])
    assert (finished["status"], finished["error"]) == ("completed", None)
    result = finished["result"]
    assert (result["message"], result["files"]) == ("3 words", [])
    assert result["artifacts"] == [{"kind": "word_count", "words": 3, "most_often": ["a", "b"]}]
    again = await backend.call(
        "POST", f"/projects/{WORD_COUNT}/draft/run", json={}, headers={"Idempotency-Key": finished["id"]}
    )
    assert again.json()["trace_id"] == result["trace_id"]


async def test_what_an_agent_calls_an_error_is_the_runs_error(
    configured: None, backend: Backend, api: Any, start_runner: Any
) -> None:
    await backend.give(SUM, api.organization_id)
    running = await start_runner()
    registered = await register(api, project_id=SUM, input_data={"numbers": "none"})
    finished = await run(api, running, registered.json()["id"])
    assert (finished["status"], finished["reason"]) == ("error", "ExecutorFailed")
    assert finished["error"]["type"] == "cronplane_entries.agent_inference.AgentFailedError"
    assert finished["error"]["message"].startswith("The agent failed: input_data needs a list of numbers (trace ")


async def test_a_project_of_somebody_else_is_refused_in_the_words_for_one_that_is_not_there(
    configured: None, backend: Backend, api: Any, database: Any
) -> None:
    await backend.give(SUM, api.stranger_id)
    answers = [await register(api, project_id=project_id) for project_id in (SUM, WORD_COUNT, str(uuid4()))]
    assert [answer.status_code for answer in answers] == [422] * 3
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].json()["errors"] == [
        {"pointer": "/payload/project_id", "message": "your organization has no such project", "type": "refused"}
    ]
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_a_project_that_has_changed_hands_does_not_run(
    configured: None, backend: Backend, api: Any, start_runner: Any
) -> None:
    await backend.give(WORD_COUNT, api.organization_id)
    running = await start_runner()
    cron = (await register(api)).json()
    await backend.give(WORD_COUNT, api.stranger_id)
    finished = await run(api, running, cron["id"])
    assert (finished["status"], finished["reason"]) == ("error", "ValidatorFailed")
    assert finished["error"]["message"] == "The organization has no such project any more"


async def test_without_a_backend_a_registration_is_told_what_to_set(api: Any) -> None:
    refused = await register(api)
    assert refused.status_code == 422
    assert f"{PREFIX}BASE_URL and {PREFIX}API_KEY" in refused.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    ("look_up", "message"),
    [
        (answer(500, b"secret internals"), "failed with status 500"),
        (answer(401, b"secret internals"), "refused the request with status 401"),
        (answer(200, b"secret internals"), "is not JSON"),
        (answer(200, b'{"organization_id": "secret internals"}'), "not as agreed: organization_id"),
        (b"no HTTP\r\n\r\n", "cannot be reached"),
    ],
)
async def test_a_backend_that_cannot_be_asked_refuses_a_registration_and_says_why(
    misconfigured: Misbehaving, api: Any, look_up: bytes, message: str
) -> None:
    misconfigured.look_up = look_up
    refused = await register(api)
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert message in error["message"]
    assert os.environ[f"{PREFIX}API_KEY"] not in refused.text
    assert "secret internals" not in refused.text


LONG = b'{"message": "' + b"x" * 70_000 + b'"}'
ENDLESS = b'{"message": "' + b"x" * (agent_inference.MOST_ANSWER_BYTES + 1) + b'"}'
MISBEHAVIOUR: dict[str, tuple[bytes | None, str, str]] = {
    "it does not answer": (None, "BackendTimeoutError", "did not answer within 0.2 s"),
    "it hangs up": (b"", "BackendUnreachableError", "cannot be reached"),
    "it is no HTTP": (b"hello\r\n\r\n", "BackendUnreachableError", "its answer is not HTTP"),
    "it stops halfway": (answer(200, b"{}")[:-1], "BackendUnreachableError", "broke the connection off"),
    "404": (answer(404, b"{}"), "BackendRefusedError", "refused the request with status 404"),
    "422": (answer(422, b"{}"), "BackendRefusedError", "refused the request with status 422"),
    "500": (answer(500, b"{}"), "BackendFailedError", "failed with status 500"),
    "503": (answer(503, b"{}"), "BackendFailedError", "failed with status 503"),
    "a redirect": (answer(302, b"", "Location: /"), "AnswerInvalidError", "redirects are not followed"),
    "no content": (answer(204, b""), "AnswerInvalidError", "answered 204, not 200"),
    "no JSON": (answer(200, b"<html>"), "AnswerInvalidError", "is not JSON"),
    "half of JSON": (answer(200, b'{"message": "a'), "AnswerInvalidError", "is not JSON"),
    "no object": (answer(200, b"[]"), "AnswerInvalidError", "not as agreed"),
    "no text": (answer(200, b'{"message": 1}'), "AnswerInvalidError", "not as agreed: message"),
    "a lone surrogate": (answer(200, b'{"message": "\\ud800"}'), "AnswerInvalidError", "answer is not"),
    "a NUL": (answer(200, b'{"message": "\\u0000"}'), "AnswerInvalidError", "cannot be kept"),
    "not a number": (answer(200, b'{"artifacts": NaN}'), "AnswerInvalidError", "cannot be kept"),
    "deep nesting": (answer(200, b'{"files": ' + b"[" * 90 + b"]" * 90 + b"}"), "AnswerInvalidError", "cannot be kept"),
    "too long a result": (answer(200, LONG), "AnswerTooLongError", "too long to be kept: The result has 70"),
    "too long an answer": (answer(200, ENDLESS), "AnswerTooLongError", "has more than 1048576 bytes"),
    "an error": (answer(200, b'{"error": {"code": 7}}'), "AgentFailedError", 'The agent failed: {"code": 7}'),
    "a NUL in an error": (answer(200, b'{"error": "a\\u0000b"}'), "AgentFailedError", "The agent failed: a"),
    "a long error": (answer(200, b'{"error": "' + b"x" * 70_000 + b'"}'), "AgentFailedError", "The agent failed: xxx"),
}


async def test_each_way_of_misbehaving_is_an_error_that_says_so(
    misbehaving: Misbehaving, monkeypatch: pytest.MonkeyPatch, api: Any, add_cron: Any, start_runner: Any
) -> None:
    key, marker = secrets.token_urlsafe(), secrets.token_hex()
    configure(monkeypatch, base_url=misbehaving.url, api_key=key, timeout_seconds="0.2")
    misbehaving.owner = api.organization_id
    running = await start_runner()
    payload = {
        "project_id": WORD_COUNT,
        "env": "production",
        "input_data": {"marker": marker},
        "organization_id": str(api.organization_id),
    }
    for name, (raw, error, message) in MISBEHAVIOUR.items():
        misbehaving.run = raw
        cron = await add_cron(name, entrypoint="agent_inference", payload=payload)
        finished = await run(api, running, str(cron.id))
        assert finished["status"] == "error", name
        assert finished["error"]["type"] == f"cronplane_entries.agent_inference.{error}", name
        assert message in finished["error"]["message"], name
        assert key not in str(finished)
        assert marker not in str(finished)
    asked = misbehaving.requests[-1].decode()
    assert asked.startswith(f"POST /base/projects/{WORD_COUNT}/production/run HTTP/1.1\r\n")
    assert f"X-API-Key: {key}\r\n" in asked


@pytest.mark.parametrize(
    ("status", "said", "place", "shown"),
    [
        (403, "the key KEY may not", "output", "the key [secret] may not"),
        (403, "x" * 1010 + "KEY", "output", "xxxx[secret]"),
        (200, '{"message": "KEY"}', "result", "[secret]"),
        (200, '{"artifacts": [{"headers": {"KEY": "Bearer KEY"}}]}', "result", "Bearer [secret]"),
        (200, '{"error": "KEY is worn out"}', "error", "The agent failed: [secret] is worn out"),
    ],
    ids=["in a refusal", "where a refusal is cut", "in a message", "in an artifact", "in an error"],
)
async def test_a_key_that_a_backend_repeats_is_not_shown(
    *,
    misbehaving: Misbehaving,
    monkeypatch: pytest.MonkeyPatch,
    api: Any,
    add_cron: Any,
    start_runner: Any,
    status: int,
    said: str,
    place: str,
    shown: str,
) -> None:
    key = secrets.token_urlsafe()
    configure(monkeypatch, base_url=misbehaving.url, api_key=key)
    misbehaving.owner = api.organization_id
    misbehaving.run = answer(status, said.replace("KEY", key).encode())
    running = await start_runner()
    payload = {"project_id": WORD_COUNT, "env": "draft", "input_data": {}, "organization_id": str(api.organization_id)}
    cron = await add_cron(entrypoint="agent_inference", payload=payload)
    finished = await run(api, running, str(cron.id))
    assert shown in str(finished[place])
    assert key[:10] not in str(finished)


async def test_a_stored_payload_of_another_organization_does_not_run(
    misbehaving: Misbehaving, monkeypatch: pytest.MonkeyPatch, api: Any, add_cron: Any, start_runner: Any
) -> None:
    configure(monkeypatch, base_url=misbehaving.url, api_key=secrets.token_urlsafe())
    misbehaving.owner = api.stranger_id
    running = await start_runner()
    payload = {"project_id": WORD_COUNT, "env": "draft", "input_data": {}, "organization_id": str(api.stranger_id)}
    cron = await add_cron(entrypoint="agent_inference", payload=payload)
    assert (await run(api, running, str(cron.id)))["error"][
        "message"
    ] == "The organization has no such project any more"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "http://agents.internal"}, "API_KEY must be set, too"),
        ({"api_key": "k", "base_url": ""}, "BASE_URL must be set, too"),
        ({"base_url": "agents.internal", "api_key": "k"}, "BASE_URL: the URL must begin with"),
        ({"base_url": "http://u:p@agents.internal", "api_key": "k"}, "BASE_URL: a URL with credentials"),
        (
            {"base_url": "http://agents.internal/?a", "api_key": "k"},
            "BASE_URL: the address of the backend has no query",
        ),
        ({"base_url": "http://agents.internal", "api_key": "a\r\nb"}, "API_KEY is no header's value"),
        ({"base_url": "http://agents.internal", "api_key": "1234567"}, "API_KEY has fewer than 8 characters"),
        ({"base_url": "http://agents.internal", "api_key": "a long key", "timeout_seconds": "soon"}, "is no number"),
        (
            {"base_url": "http://agents.internal", "api_key": "a long key", "timeout_seconds": "nan"},
            "TIMEOUT_SECONDS is not above 0",
        ),
        (
            {"base_url": "http://agents.internal", "api_key": "a long key", "ca_file": "/no/such"},
            "CA_FILE names no file",
        ),
        (
            {"base_url": "http://agents.internal", "api_key": "a long key", "timeout": "1"},
            "there is no setting TIMEOUT",
        ),
    ],
)
def test_wrong_settings_are_an_error_when_a_process_starts(
    entries: CronRegistry, settings: dict[str, str], message: str
) -> None:
    environment = {PREFIX + key.upper(): value for key, value in settings.items()}
    with pytest.raises(InvalidSettingsError, match=message):
        read_entry_settings(environment, entries)


async def test_the_example_backend_lets_nobody_in_without_its_key(backend: Backend) -> None:
    paths = [("GET", f"/projects/{WORD_COUNT}"), ("POST", f"/projects/{WORD_COUNT}/draft/run")]
    for method, path in paths:
        for headers in ({"X-API-Key": "wrong"}, {"X-API-Key": ""}):
            refused = await backend.call(method, path, headers=headers, **({"json": {}} if method == "POST" else {}))
            assert refused.status_code == 401
    assert (await backend.call("GET", f"/projects/{uuid4()}")).status_code == 404
    assert (await backend.call("POST", f"/projects/{WORD_COUNT}/staging/run", json={})).status_code == 422


async def test_the_example_backends_guide_starts_it_and_names_its_projects() -> None:
    guide = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    [commands] = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    make_key, start = commands.replace(".venv/bin/python ", f"exec {sys.executable} ").splitlines()
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f'{make_key}\necho "$AGENT_BACKEND_API_KEY"\n{start}',
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "AGENT_BACKEND_PORT": "0"},
    )
    assert process.stdout is not None
    async with asyncio.timeout(HANG_GUARD):
        api_key = (await process.stdout.readline()).decode().strip()
        url = (await process.stdout.readline()).decode().split()[-1]
        backend = Backend(url=url, api_key=api_key)
        projects = re.findall(r"^\| `([0-9a-f-]{36})`", guide, re.MULTILINE)
        names = [(await backend.call("GET", f"/projects/{project_id}")).json()["name"] for project_id in projects]
        process.send_signal(signal.SIGINT)
        said, complained = await process.communicate()
    assert names == ["word count", "sum"]
    assert (process.returncode, said, complained) == (0, b"", b"")


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AGENT_BACKEND_API_KEY": ""}, "AGENT_BACKEND_API_KEY"),
        ({"AGENT_BACKEND_API_KEY": "short"}, "AGENT_BACKEND_API_KEY"),
        ({"AGENT_BACKEND_PORT": "http"}, "AGENT_BACKEND_PORT"),
        ({"AGENT_BACKEND_PORT": "65536"}, "AGENT_BACKEND_PORT"),
        ({"AGENT_BACKEND_HOST": "192.0.2.1"}, "Cannot listen on 192.0.2.1"),
    ],
)
async def test_the_example_backend_says_in_a_line_what_it_cannot_start_with(
    variables: dict[str, str], told: str
) -> None:
    sound = {"AGENT_BACKEND_API_KEY": secrets.token_urlsafe(), "AGENT_BACKEND_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, stderr=asyncio.subprocess.PIPE, env={**os.environ, **sound, **variables}
    )
    async with asyncio.timeout(HANG_GUARD):
        _, complained = await process.communicate()
    assert process.returncode == 1
    assert told in complained.decode()
    assert len(complained.splitlines()) == 1


@pytest.mark.parametrize(
    ("project_id", "input_data", "message", "error"),
    [
        (WORD_COUNT, '{"text": ""}', "0 words", None),
        (WORD_COUNT, '{"text": 1}', None, "input_data needs a text"),
        (SUM, '{"numbers": [1234567, 1]}', "the sum is 1234568", None),
        (SUM, '{"numbers": [0.5, 1]}', "the sum is 1.5", None),
        (SUM, "{}", None, "input_data needs a list of numbers"),
        (SUM, '{"numbers": [true]}', None, "input_data needs a list of numbers, none of them too large"),
        (SUM, '{"numbers": [NaN]}', None, "input_data needs a list of numbers, none of them too large"),
        (SUM, f'{{"numbers": [1{"0" * 400}]}}', None, "input_data needs a list of numbers, none of them too large"),
        (SUM, '{"numbers": [1e308, 1e308]}', None, "the sum is too large"),
    ],
)
async def test_the_example_agents_do_small_work_or_say_why_not(
    *, backend: Backend, project_id: str, input_data: str, message: str | None, error: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    answered = await backend.call("POST", f"/projects/{project_id}/draft/run", content=input_data, headers=headers)
    assert answered.status_code == 200
    assert (answered.json()["message"], answered.json()["error"]) == (message, error)


async def test_the_example_backend_runs_an_agent_once_for_each_idempotency_key(backend: Backend) -> None:
    async def trace(project_id: str, env: str, key: str) -> str:
        path = f"/projects/{project_id}/{env}/run"
        answered = await backend.call("POST", path, json={"text": "a"}, headers={"Idempotency-Key": key})
        found: str = answered.json()["trace_id"]
        return found

    first = await trace(WORD_COUNT, "draft", "one")
    assert await trace(WORD_COUNT, "draft", "one") == first
    others = [(WORD_COUNT, "draft", "two"), (WORD_COUNT, "production", "one"), (SUM, "draft", "one")]
    assert len({first, *[await trace(*other) for other in others]}) == 4
