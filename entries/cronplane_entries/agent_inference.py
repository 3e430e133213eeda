"""The entry that runs an agent: an agent backend owns the projects, and is asked about them and for the run over HTTP.

Nothing about a project is kept here but its id. Whose it is, is asked when a cron is registered and before each run,
since it may have changed hands in between.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    EntryError,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)
from cronplane_entries.http_exchange import (
    HEADER_VALUE,
    ExchangeError,
    ExchangeTimeoutError,
    HttpReply,
    HttpRequest,
    check_ca_file,
    exchange,
)
from cronplane_entries.http_secrets import blot_out
from cronplane_entries.http_target import HttpTarget, TargetError, parse_target
from cronplane_entries.invocation import ResultInvalidError, ResultTooLargeError, encode_result

DEFAULT_TIMEOUT_SECONDS = 300.0
MOST_ANSWER_BYTES = 1024 * 1024
_LOOK_UP_SECONDS = 10.0
_LONGEST_TIMEOUT_SECONDS = 7 * 24 * 3600.0
_LONGEST_ERROR = 2000
_LOGGED_BODY_BYTES = 1024
_SHORTEST_KEY = 8
_SETTINGS = {"base_url", "api_key", "timeout_seconds", "ca_file"}
_OK, _FIRST_REDIRECT, _FIRST_CLIENT_ERROR, _NOT_FOUND, _FIRST_SERVER_ERROR = 200, 300, 400, 404, 500

ModelT = TypeVar("ModelT", bound=BaseModel)


class AgentInferenceError(EntryError):
    """Root of what ends a run of an agent with an error."""


class AgentFailedError(AgentInferenceError):
    """The agent itself says that it failed; the message is its own."""


class ProjectUnavailableError(AgentInferenceError):
    """The project is gone, or belongs to another organization by now; register the cron with another one."""


class BackendNotConfiguredError(AgentInferenceError):
    """This runner knows of no agent backend; the administrator sets it up."""


class BackendTimeoutError(AgentInferenceError):
    """The agent backend did not answer in time; the agent may have run all the same."""


class BackendUnreachableError(AgentInferenceError):
    """There was no whole exchange with the agent backend; the agent may have run all the same."""


class BackendRefusedError(AgentInferenceError):
    """The agent backend answered 4xx: it does not accept the request, and will not the next time."""


class BackendFailedError(AgentInferenceError):
    """The agent backend answered 5xx: something is wrong with it."""


class AnswerInvalidError(AgentInferenceError):
    """The agent backend's answer is not what its interface says."""


class AnswerTooLongError(AgentInferenceError):
    """The agent backend's answer is longer than what can be kept."""


class UserPayload(BaseUserPayload):
    """Which project's agent to run, in which of its environments, on what."""

    project_id: UUID = Field(description="a project of the organization's, at the agent backend")
    env: Literal["draft", "production"] = Field(description="which version of the project")
    input_data: dict[str, JsonValue] = Field(description="what the agent is given")


class ExecutionPayload(BaseExecutionPayload):
    """The same, and whose project it was."""

    project_id: UUID
    env: Literal["draft", "production"]
    input_data: dict[str, JsonValue]
    organization_id: UUID


class _Lenient(BaseModel):
    """A part of an answer: what else is in it does not concern us."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)


class _Project(_Lenient):
    organization_id: UUID | None = None


class _RunAnswer(_Lenient):
    message: str | None = None
    error: JsonValue = None
    artifacts: JsonValue = None
    trace_id: str | None = None
    files: JsonValue = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AgentBackend:
    """Where the agent backend is, and how to be let in; shown to nobody. `timeout_seconds` bounds a run there."""

    base: HttpTarget
    api_key: str
    timeout_seconds: float
    ca_file: Path | None

    async def owner(self, project_id: UUID) -> UUID | None:
        """Ask whose a project is; None if there is no such project, or it is nobody's.

        Raises:
            AgentInferenceError: the backend gave no answer to that.

        """
        reply = await self._exchange("GET", f"/projects/{project_id}", within=_LOOK_UP_SECONDS)
        if reply.status == _NOT_FOUND:
            return None
        _check_status(reply)
        return _read(_Project, reply).organization_id

    async def run(self, payload: ExecutionPayload, *, context: ExecutionContext) -> _RunAnswer:
        """Run a project's agent.

        Raises:
            AgentInferenceError: the backend did not run it, or nobody knows whether it did.

        """
        reply = await self._exchange(
            "POST",
            f"/projects/{payload.project_id}/{payload.env}/run",
            within=self.timeout_seconds,
            content=json.dumps(payload.input_data, ensure_ascii=False).encode(),
            # A run may be attempted again, and the backend can tell by this that it has seen it.
            headers=(("Content-Type", "application/json"), ("Idempotency-Key", str(context.run.id))),
        )
        if reply.status != _OK:
            said = reply.body[:_LOGGED_BODY_BYTES].decode(errors="replace")
            context.log.warning("the agent backend said: %s", said)
        _check_status(reply)
        return _read(_RunAnswer, reply)

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        within: float,
        content: bytes | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> HttpReply:
        request = HttpRequest(
            method=method,
            target=HttpTarget(
                scheme=self.base.scheme,
                host=self.base.host,
                port=self.base.port,
                path=self.base.path.rstrip("/") + path,
            ),
            headers=(("X-API-Key", self.api_key), *headers),
            content=content,
        )
        try:
            reply = await exchange(request, within=within, most_bytes=MOST_ANSWER_BYTES, ca_file=self.ca_file)
        except ExchangeTimeoutError as error:
            raise BackendTimeoutError(f"The agent backend did not answer within {within:g} s") from error
        except ExchangeError as error:
            raise BackendUnreachableError(f"The agent backend cannot be reached: {error}") from error
        # The key opens every organization's projects, and an answer may repeat it.
        return replace(reply, body=blot_out(reply.body, [self.api_key]))


def read_settings(settings: Mapping[str, str]) -> AgentBackend | None:
    """Read the administrator's settings; None if there are none.

    Raises:
        ValueError: one of them is wrong, missing or unknown; the message says which, and repeats none.

    """
    if not settings:
        return None
    if unknown := settings.keys() - _SETTINGS:
        raise ValueError(f"there is no setting {', '.join(sorted(unknown)).upper()}")
    if missing := {"base_url", "api_key"} - {key for key, value in settings.items() if value}:
        raise ValueError(f"{' and '.join(sorted(missing)).upper()} must be set, too")
    return AgentBackend(
        base=_base(settings["base_url"]),
        api_key=_api_key(settings["api_key"]),
        timeout_seconds=_timeout(settings.get("timeout_seconds", str(DEFAULT_TIMEOUT_SECONDS))),
        ca_file=Path(settings["ca_file"]) if settings.get("ca_file") else None,
    )


def _base(text: str) -> HttpTarget:
    try:
        base = parse_target(text)
    except TargetError as error:
        raise ValueError(f"BASE_URL: {error}") from error
    if "?" in base.path:
        raise ValueError("BASE_URL: the address of the backend has no query")
    return base


def _api_key(text: str) -> str:
    if not HEADER_VALUE.fullmatch(text):
        raise ValueError("API_KEY is no header's value: it is visible ASCII")
    # A shorter one could not be told from ordinary text when it is blotted out of answers.
    if len(text) < _SHORTEST_KEY:
        raise ValueError(f"API_KEY has fewer than {_SHORTEST_KEY} characters")
    return text


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as error:
        raise ValueError("TIMEOUT_SECONDS is no number") from error
    if not 0 < seconds <= _LONGEST_TIMEOUT_SECONDS:
        raise ValueError(f"TIMEOUT_SECONDS is not above 0 and at most {_LONGEST_TIMEOUT_SECONDS:.0f}")
    return seconds


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse settings that are wrong, when a process starts."""
    backend = read_settings(settings)
    if backend is not None and backend.ca_file is not None:
        check_ca_file(backend.ca_file)


async def validate_registration(payload: UserPayload, *, context: RegistrationContext) -> ExecutionPayload:
    """Refuse a project that is not the organization's; one that is another's is answered as one that is not there."""
    backend = read_settings(context.services.settings)
    if backend is None:
        raise RegistrationRefusedError(
            "this installation has no agent backend; its administrator sets CRONPLANE_ENTRY_AGENT_INFERENCE_BASE_URL "
            "and CRONPLANE_ENTRY_AGENT_INFERENCE_API_KEY"
        )
    try:
        owner = await backend.owner(payload.project_id)
    except AgentInferenceError as error:
        raise RegistrationRefusedError(f"the project could not be looked up, try again later: {error}") from error
    if owner != context.organization.id:
        raise RegistrationRefusedError("your organization has no such project", field=("project_id",))
    return ExecutionPayload(
        project_id=payload.project_id,
        env=payload.env,
        input_data=payload.input_data,
        organization_id=context.organization.id,
    )


async def validate_execution(payload: ExecutionPayload, *, context: ExecutionContext) -> None:
    """Find out whether the project is still the organization's."""
    owner = await _configured(context).owner(payload.project_id)
    if not owner == payload.organization_id == context.cron.organization_id:
        raise ProjectUnavailableError("The organization has no such project any more")


async def execute(payload: ExecutionPayload, *, context: ExecutionContext) -> dict[str, object]:
    """Run the agent, and give its message, artifacts, trace id and files."""
    answer = await _configured(context).run(payload, context=context)
    if answer.error:
        trace = "" if answer.trace_id is None else f" (trace {answer.trace_id[:64]})"
        raise AgentFailedError(f"The agent failed: {_text(answer.error)}{trace}")
    result: dict[str, object] = {
        "message": answer.message,
        "artifacts": answer.artifacts,
        "trace_id": answer.trace_id,
        "files": answer.files,
    }
    _check_can_be_kept(result)
    return result


def _configured(context: ExecutionContext) -> AgentBackend:
    backend = read_settings(context.services.settings)
    if backend is None:
        raise BackendNotConfiguredError("This runner has no agent backend; tell the administrator")
    return backend


def _check_status(reply: HttpReply) -> None:
    if reply.status == _OK:
        return
    if reply.status >= _FIRST_SERVER_ERROR:
        raise BackendFailedError(f"The agent backend failed with status {reply.status}")
    if reply.status >= _FIRST_CLIENT_ERROR:
        raise BackendRefusedError(f"The agent backend refused the request with status {reply.status}")
    if reply.status >= _FIRST_REDIRECT:
        raise AnswerInvalidError(f"The agent backend answered {reply.status}; redirects are not followed")
    raise AnswerInvalidError(f"The agent backend answered {reply.status}, not {_OK}")


def _read(model: type[ModelT], reply: HttpReply) -> ModelT:
    if not reply.is_whole:
        raise AnswerTooLongError(f"The agent backend's answer has more than {MOST_ANSWER_BYTES} bytes")
    try:
        return model.model_validate_json(reply.body)
    except ValidationError as error:
        _invalid(error)


def _invalid(error: ValidationError) -> NoReturn:
    found = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if found["type"] == "json_invalid":
        raise AnswerInvalidError("The agent backend's answer is not JSON") from error
    place = ".".join(map(str, found["loc"])) or "the whole"
    raise AnswerInvalidError(f"The agent backend's answer is not as agreed: {place}: {found['msg']}") from error


def _check_can_be_kept(result: Mapping[str, object]) -> None:
    try:
        encode_result(result)
    except ResultTooLargeError as error:
        raise AnswerTooLongError(f"The agent's answer is too long to be kept: {error}") from error
    except ResultInvalidError as error:
        raise AnswerInvalidError(f"The agent's answer cannot be kept: {error}") from error


def _text(error: JsonValue) -> str:
    text = error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)
    return text[:_LONGEST_ERROR]


spec = CronEntrySpec(
    user_payload_model=UserPayload,
    execution_payload_model=ExecutionPayload,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
    check_settings=check_settings,
)
