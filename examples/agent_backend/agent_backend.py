"""A small agent backend with the interface that the entry `agent_inference` calls: projects, and runs of their agents.

It stands in for a real one in demonstrations and tests, and is one: its two agents do what they say, in memory. Whoever
has its key may run everything; which organization a project belongs to is told to it, and it checks nothing by it.
"""

import asyncio
import hmac
import math
import os
import re
import signal
import socket
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Literal
from uuid import UUID, uuid4

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict, JsonValue

MOST_REMEMBERED_RUNS = 1000
SHORTEST_KEY = 16
HIGHEST_PORT = 65535
WORD_COUNT = UUID("5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a01")
SUM = UUID("5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a02")
Input = dict[str, JsonValue]


class AgentError(Exception):
    """What the agent says when it cannot do what it was asked to."""


class RunAnswer(BaseModel):
    """What became of a run: `message` if the agent could do it, `error` if it could not."""

    message: str | None = None
    error: str | None = None
    artifacts: list[dict[str, JsonValue]] = []
    trace_id: str
    files: list[str] = []


class Owner(BaseModel):
    """Which organization a project belongs to."""

    model_config = ConfigDict(extra="forbid")

    organization_id: UUID


def count_words(input_data: Input) -> tuple[str, dict[str, JsonValue]]:
    """Count the words of `text`, and which of them are there most often."""
    text = input_data.get("text")
    if not isinstance(text, str):
        raise AgentError("input_data needs a text")
    words = re.findall(r"\w+", text.lower())
    times = Counter(words)
    often = sorted(times, key=lambda word: (-times[word], word))[:3]
    return f"{len(words)} words", {"kind": "word_count", "words": len(words), "most_often": list[JsonValue](often)}


def add_up(input_data: Input) -> tuple[str, dict[str, JsonValue]]:
    """Add up `numbers`."""
    numbers = input_data.get("numbers")
    if not isinstance(numbers, list):
        raise AgentError("input_data needs a list of numbers")
    total = sum(_number(number) for number in numbers)
    if not _is_finite(total):
        raise AgentError("the sum is too large")
    return f"the sum is {total}", {"kind": "sum", "total": total}


def _number(value: JsonValue) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise AgentError("input_data needs a list of numbers, none of them too large")
    return value


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


@dataclass(slots=True)
class Project:
    """An agent, and whose it is."""

    name: str
    agent: Callable[[Input], tuple[str, dict[str, JsonValue]]]
    organization_id: UUID | None = None


@dataclass(slots=True)
class Backend:
    """Everything that the service keeps."""

    api_key: str
    projects: dict[UUID, Project] = field(
        default_factory=lambda: {
            WORD_COUNT: Project("word count", count_words),
            SUM: Project("sum", add_up),
        }
    )
    answers: OrderedDict[str, RunAnswer] = field(default_factory=OrderedDict)

    def project(self, project_id: UUID) -> Project:
        """Find a project, or answer 404."""
        project = self.projects.get(project_id)
        if project is None:
            raise HTTPException(404, "there is no such project")
        return project

    def run(self, project: Project, input_data: Input, key: str | None) -> RunAnswer:
        """Run a project's agent, once for each Idempotency-Key."""
        if key is not None and key in self.answers:
            return self.answers[key]
        answer = _run(project, input_data)
        if key is not None:
            self.answers[key] = answer
            if len(self.answers) > MOST_REMEMBERED_RUNS:
                self.answers.popitem(last=False)
        return answer


def _run(project: Project, input_data: Input) -> RunAnswer:
    trace_id = uuid4().hex
    try:
        message, artifact = project.agent(input_data)
    except AgentError as error:
        return RunAnswer(error=str(error), trace_id=trace_id)
    return RunAnswer(message=message, artifacts=[artifact], trace_id=trace_id)


async def _backend(request: Request, x_api_key: Annotated[str, Header()] = "") -> Backend:
    backend: Backend = request.app.state.backend
    if not hmac.compare_digest(x_api_key.encode(), backend.api_key.encode()):
        raise HTTPException(401, "the X-API-Key is not the right one")
    return backend


AuthorizedBackend = Annotated[Backend, Depends(_backend)]


def create_application(*, api_key: str) -> FastAPI:
    """Make the service; whoever shows `api_key` may do everything."""
    application = FastAPI(title="Agent backend", docs_url=None, redoc_url=None)
    application.state.backend = Backend(api_key)

    @application.get("/projects/{project_id}")
    async def read_project(project_id: UUID, backend: AuthorizedBackend) -> dict[str, str | None]:
        """Show a project."""
        project = backend.project(project_id)
        owner = None if project.organization_id is None else str(project.organization_id)
        return {"id": str(project_id), "name": project.name, "organization_id": owner}

    @application.put("/projects/{project_id}/owner", status_code=204)
    async def give_project(project_id: UUID, owner: Owner, backend: AuthorizedBackend) -> None:
        """Give a project to an organization."""
        backend.project(project_id).organization_id = owner.organization_id

    @application.post("/projects/{project_id}/{env}/run")
    async def run_project(
        project_id: UUID,
        env: Literal["draft", "production"],
        input_data: Input,
        backend: AuthorizedBackend,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> RunAnswer:
        """Run a project's agent; these agents are the same in both environments."""
        scope = None if idempotency_key is None else f"{project_id} {env} {idempotency_key}"
        return backend.run(backend.project(project_id), input_data, scope)

    return application


async def serve(*, host: str, port: int, api_key: str) -> None:
    """Serve until SIGINT or SIGTERM, and say where."""
    with _listener(host, port) as listener:
        config = uvicorn.Config(create_application(api_key=api_key), log_level="warning", access_log=False)
        host, port = listener.getsockname()[:2]
        print(f"The agent backend is at http://{host}:{port}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        sys.exit(f"Cannot listen on {host}:{port} ({error.strerror}); set AGENT_BACKEND_PORT to another port, or to 0")


def main() -> None:
    """Serve as the environment says."""
    api_key = os.environ.get("AGENT_BACKEND_API_KEY", "")
    if len(api_key) < SHORTEST_KEY:
        sys.exit(f"Set AGENT_BACKEND_API_KEY to a secret of at least {SHORTEST_KEY} characters")
    host, port = os.environ.get("AGENT_BACKEND_HOST", "127.0.0.1"), os.environ.get("AGENT_BACKEND_PORT", "8090")
    if not (port.isascii() and port.isdigit() and int(port) <= HIGHEST_PORT):
        sys.exit(f"Set AGENT_BACKEND_PORT to a number from 0 to {HIGHEST_PORT}")
    # uvicorn gives a signal on when it has stopped, and that is no failure.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(host=host, port=int(port), api_key=api_key))


if __name__ == "__main__":
    main()
