"""The contract between Cronplane and an entry, the type of a cron.

An entry brings two payload models and three functions. This module says what they look like and what they are told;
it calls nothing and knows no built-in entry.
"""

import enum
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue

from cronplane_core.errors import CronplaneError


class EntryError(CronplaneError):
    """Root of what goes wrong with an entry."""


class RegistrationRefusedError(EntryError):
    """Raised by a registration validator to refuse a payload for a reason its model cannot express.

    `message` is shown to the person who registers; `field` is the path below the payload, outermost name first.
    A `ValueError` or an `AssertionError` is treated alike, without a path.
    """

    def __init__(self, message: str, *, field: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.field = field


class PermanentError(EntryError):
    """Raised by an execution validator or an executor to end the run: another attempt would fail, too."""


class TemporaryError(EntryError):
    """Raised by an execution validator or an executor to be tried again, if the cron has attempts left.

    `delay` is how long to wait before that; None leaves it to the cron's back-off.
    """

    def __init__(self, message: str, *, delay: timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class BaseUserPayload(BaseModel):
    """What a person sends: strict (no coercion of types) and closed (unknown fields are refused)."""

    # Whatever logs or records a ValidationError must not repeat the payload.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class BaseExecutionPayload(BaseModel):
    """What the executor gets: written by the registration validator, stored as JSON, validated again before a run.

    A value that JSON would change, a `SecretStr` or a tuple in a field of type `Any`, is refused at registration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ExecutionMode(enum.StrEnum):
    """Where an entry's executor runs."""

    IN_PROCESS = "in_process"
    POD = "pod"


@dataclass(frozen=True, slots=True, kw_only=True)
class Organization:
    """The tenant on whose behalf something is registered; `entrypoints` are those granted to it, None for every one."""

    id: UUID
    name: str
    entrypoints: frozenset[str] | None = None

    def may_use(self, entrypoint: str) -> bool:
        """Say whether an entry is granted to the organization."""
        return self.entrypoints is None or entrypoint in self.entrypoints


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who registers: `id` is stable and names the credential, such as `key:<uuid>`; `name` is for people."""

    id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the installation offers to an entry.

    `settings` are the administrator's for this entry: every environment variable `CRONPLANE_ENTRY_<NAME>_<KEY>`,
    under `<key>` in lower case, as it was when the process started.
    """

    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationContext:
    """What a registration validator is told besides the payload. `cron_id` is the cron's id from now on."""

    organization: Organization
    user: User
    cron_id: UUID
    services: Services


@dataclass(frozen=True, slots=True, kw_only=True)
class CronReference:
    """The cron that a run belongs to."""

    id: UUID
    name: str
    organization_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReference:
    """The run being executed; `id` is the idempotency key for effects outside. `trigger` is `schedule` or `manual`."""

    id: UUID
    trigger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Callback:
    """How somebody else tells the end of a run: `POST <path>` at the API, with `Authorization: Bearer <token>`.

    The token is good once, for this run, until `deadline` (aware, UTC). It belongs in a header, in no URL and no log.
    """

    path: str
    deadline: datetime
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """Returned by an executor that has handed its work to somebody else: the run waits until it is told of its end.

    `message` is shown with the run meanwhile. Only entries with `completes_by_callback` may return it.
    """

    message: str = "The work was handed on; the run waits to be told of its end."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionContext:
    """What an execution validator and an executor are told besides the payload.

    `attempt` counts from 1. `scheduled_for` is the nominal fire time and `deadline` the instant after which the attempt
    is killed, both aware and in UTC. What `log` writes becomes the run's output. `callback` is None unless the entry
    has `completes_by_callback`.
    """

    cron: CronReference
    run: RunReference
    attempt: int
    scheduled_for: datetime
    deadline: datetime
    log: logging.Logger
    services: Services
    callback: Callback | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodContainer:
    """A container that is the whole body of an attempt: Kubernetes runs it in a pod, and nothing of ours is in it.

    `image` is a whole reference; `command`, `args` and `env` are as Kubernetes names them, and empty ones are the
    image's own. `requests` and `limits` are quantities by resource. All of it can be read in the cluster.
    """

    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)


UserPayloadT = TypeVar("UserPayloadT", bound=BaseUserPayload)
ExecutionPayloadT = TypeVar("ExecutionPayloadT", bound=BaseExecutionPayload)
UserPayload_contra = TypeVar("UserPayload_contra", bound=BaseUserPayload, contravariant=True)
ExecutionPayload_co = TypeVar("ExecutionPayload_co", bound=BaseExecutionPayload, covariant=True)
ExecutionPayload_contra = TypeVar("ExecutionPayload_contra", bound=BaseExecutionPayload, contravariant=True)


class RegistrationValidator(Protocol[UserPayload_contra, ExecutionPayload_co]):
    """Turns what a person sent into what the executor gets, or refuses it by raising `RegistrationRefusedError`."""

    def __call__(
        self, payload: UserPayload_contra, /, *, context: RegistrationContext
    ) -> ExecutionPayload_co | Awaitable[ExecutionPayload_co]:
        """Return the execution payload; called at registration and whenever the payload changes."""


class ExecutionValidator(Protocol[ExecutionPayload_contra]):
    """Checks right before a run that its payload still holds; raises to end the run with an error."""

    def __call__(self, payload: ExecutionPayload_contra, /, *, context: ExecutionContext) -> Awaitable[None] | None:
        """Return nothing, or raise."""


class Executor(Protocol[ExecutionPayload_contra]):
    """Does the work of a run, or hands it on (`Accepted`). What it returns is the run's result and must be JSON."""

    def __call__(
        self, payload: ExecutionPayload_contra, /, *, context: ExecutionContext
    ) -> Awaitable[Mapping[str, object] | Accepted | None] | Mapping[str, object] | Accepted | None:
        """Return the result, a mapping that JSON can hold, or nothing; or that somebody else has the work now."""


class ContainerMaker(Protocol[ExecutionPayload_contra]):
    """Says which container the body of an attempt is; called by the operator, so it must be quick and ask nobody."""

    def __call__(self, payload: ExecutionPayload_contra, /, *, context: ExecutionContext) -> PodContainer:
        """Return the container, after the execution validator; the same each time for the same payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CronEntrySpec(Generic[UserPayloadT, ExecutionPayloadT]):
    """An entry: its models, its functions, where it runs, and the defaults of its crons.

    `pod_profile` names how its pods are made, of the administrator's profiles.
    `timeout` bounds one attempt and `attempts` a run, unless a cron asks for others. `completes_by_callback` lets the
    executor return `Accepted`.
    With `container` an attempt's body is not the executor but a container in a pod of its own; the executor is called
    where there is no cluster, and can only say so.
    `check_settings` is given the administrator's settings of this entry when a process starts, and raises a
    `ValueError` that says what is wrong with them, repeating no value.
    """

    user_payload_model: type[UserPayloadT]
    execution_payload_model: type[ExecutionPayloadT]
    registration_validator: RegistrationValidator[UserPayloadT, ExecutionPayloadT]
    execution_validator: ExecutionValidator[ExecutionPayloadT]
    executor: Executor[ExecutionPayloadT]
    execution: ExecutionMode = ExecutionMode.IN_PROCESS
    pod_profile: str = "default"
    timeout: timedelta = timedelta(hours=1)
    attempts: int = 1
    completes_by_callback: bool = False
    container: ContainerMaker[ExecutionPayloadT] | None = None
    check_settings: Callable[[Mapping[str, str]], None] | None = None


AnyCronEntrySpec = CronEntrySpec[BaseUserPayload, BaseExecutionPayload]

__all__ = [
    "Accepted",
    "AnyCronEntrySpec",
    "BaseExecutionPayload",
    "BaseUserPayload",
    "Callback",
    "ContainerMaker",
    "CronEntrySpec",
    "CronReference",
    "EntryError",
    "ExecutionContext",
    "ExecutionMode",
    "ExecutionValidator",
    "Executor",
    "JsonValue",
    "Organization",
    "PermanentError",
    "PodContainer",
    "RegistrationContext",
    "RegistrationRefusedError",
    "RegistrationValidator",
    "RunReference",
    "Services",
    "TemporaryError",
    "User",
]
