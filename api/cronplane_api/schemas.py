"""What goes over the wire: strict, closed models for requests, and models for answers that show no secret."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
)

from cronplane_core.api_key_repository import ApiKey
from cronplane_core.cron_repository import Cron
from cronplane_core.run_repository import Attempt, Run
from cronplane_core.schedule import Schedule, describe
from cronplane_core.tables import Catchup, CronSource, OrganizationState, Overlap, Role, RunStatus, TriggerKind
from cronplane_entries.core import AnyCronEntrySpec, ExecutionMode
from cronplane_entries.cron_request import NAME_LENGTH, Policies, Strict, leave_null_out
from cronplane_entries.registration import (
    CronChanges,
    name_errors,
)


def _not_null(value: object) -> object:
    if value is None:
        raise ValueError("null is no value here; leave the field out to keep what is there")
    return value


def _plain_name(name: str) -> str:
    for error in name_errors(name):
        raise ValueError(error.message)
    return name


Name = Annotated[str, AfterValidator(_plain_name), Field(max_length=1000, json_schema_extra=NAME_LENGTH)]


def _describe_patch(schema: dict[str, Any]) -> None:
    """Leave null out of a schema whose fields may be absent but not null."""
    for field in schema["properties"].values():
        field.pop("default", None)
        leave_null_out(field)
    schema["examples"] = [{"cron_expr": "*/15 * * * *", "tz": "Europe/Paris"}]


class CronPatch(Policies):
    """What to change of a cron; what is left out stays. `payload` is the whole user payload."""

    model_config = ConfigDict(json_schema_extra=_describe_patch)

    name: str | None = Field(default=None, max_length=1000, json_schema_extra=NAME_LENGTH)
    cron_expr: str | None = Field(default=None, max_length=10_000)
    tz: str | None = Field(default=None, max_length=1000)
    entrypoint: str | None = Field(default=None, max_length=1000, description="needs a payload with it")
    payload: dict[str, JsonValue] | None = Field(default=None, description="the whole user payload")
    enabled: bool | None = None

    _no_null = field_validator("*", mode="before")(_not_null)

    def changes(self) -> CronChanges:
        """Give the changes as the registration reads them."""
        return CronChanges(
            name=self.name,
            cron_expr=self.cron_expr,
            tz=self.tz,
            entrypoint=self.entrypoint,
            payload=self.payload,
            enabled=self.enabled,
            policy=self.policy_draft(),
        )


def _describe_trigger(schema: dict[str, Any]) -> None:
    leave_null_out(schema["properties"]["payload"])
    schema["examples"] = [{"payload": {"message": "just this once"}}]


class RunTrigger(Strict):
    """How to run a cron now."""

    model_config = ConfigDict(json_schema_extra=_describe_trigger)

    payload: dict[str, JsonValue] | None = Field(default=None, description="in place of the cron's, for this run only")

    _no_null = field_validator("*", mode="before")(_not_null)


class OrganizationCreation(Strict):
    """An organization to make."""

    name: Name = Field(examples=["acme"])


Quota = Annotated[int, Field(ge=0, le=2**31 - 1)]


class OrganizationPatch(Strict):
    """What to change of what an organization may use; what is left out stays, and null asks for the default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"entrypoints": ["dummy_print"], "cron_quota": 500}]})

    entrypoints: list[Annotated[str, Field(max_length=63)]] | None = Field(
        default=None, max_length=1000, description="the entries that it may use; null for every one"
    )
    cron_quota: Quota | None = Field(default=None, description="how many crons it may have")
    triggers_per_minute: Quota | None = Field(default=None, description="how many runs it may trigger in a minute")


class KeyCreation(Strict):
    """A key to make."""

    name: Name = Field(examples=["deploy pipeline"])
    role: Annotated[Role, Field(strict=False)]


class LastRun(BaseModel):
    """The newest run of a cron, in short."""

    id: UUID
    scheduled_for: datetime
    status: RunStatus
    reason: str
    finished_at: datetime | None


class BackoffRead(BaseModel):
    """How long a run waits before a retry, in seconds: it doubles each time, up to the maximum."""

    initial: float
    maximum: float


class CronRead(BaseModel):
    """A cron. Instants are in UTC; durations in seconds."""

    id: UUID
    organization_id: UUID
    name: str
    description: str = Field(description="when it fires, in words", examples=["At 09:00 on Monday through Friday, UTC"])
    cron_expr: str
    tz: str
    entrypoint: str
    payload: dict[str, Any] = Field(description="the user payload")
    enabled: bool
    overlap: Overlap
    catchup: Catchup
    catchup_window: float | None
    timeout: float
    max_attempts: int
    backoff: BackoffRead
    run_timeout: float | None = Field(description="seconds; null for as long as all attempts may take")
    jitter: float
    starts_at: datetime | None
    ends_at: datetime | None
    max_runs: int | None
    generation: int
    source: CronSource
    resource: str | None = Field(description="namespace/name of the Cron resource that defines it; null if none does")
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    next_fires: list[datetime] = Field(description="the next five; none while it is paused")
    last_run: LastRun | None

    @classmethod
    def of(cls, cron: Cron, *, now: datetime, last_run: Run | None) -> "CronRead":
        """Show a cron as of `now`, the database's time."""
        definition, policy = cron.definition, cron.definition.policy
        schedule = Schedule.parse(definition.cron_expr, definition.tz)
        return cls(
            id=cron.id,
            organization_id=cron.organization_id,
            name=definition.name,
            description=describe(schedule),
            cron_expr=definition.cron_expr,
            tz=definition.tz,
            entrypoint=definition.entrypoint,
            payload=definition.user_payload,
            enabled=definition.enabled,
            overlap=policy.overlap,
            catchup=policy.catchup,
            catchup_window=None if policy.catchup_window is None else policy.catchup_window.total_seconds(),
            timeout=policy.timeout.total_seconds(),
            max_attempts=policy.max_attempts,
            backoff=BackoffRead(
                initial=policy.backoff_initial.total_seconds(), maximum=policy.backoff_maximum.total_seconds()
            ),
            run_timeout=None if policy.run_timeout is None else policy.run_timeout.total_seconds(),
            jitter=policy.jitter.total_seconds(),
            starts_at=policy.starts_at,
            ends_at=policy.ends_at,
            max_runs=policy.max_runs,
            generation=cron.generation,
            source=cron.source,
            resource=None if cron.resource is None else f"{cron.resource.namespace}/{cron.resource.name}",
            created_at=cron.created_at,
            created_by=cron.created_by,
            updated_at=cron.updated_at,
            updated_by=cron.updated_by,
            next_fires=next_fires(schedule, now=now, count=5) if definition.enabled else [],
            last_run=None if last_run is None else LastRun.model_validate(last_run, from_attributes=True),
        )


class Fire(BaseModel):
    """One fire to come."""

    utc: datetime
    local: str = Field(description="the wall clock of the cron's zone then", examples=["2026-01-31T09:00:00+01:00"])


class CronPreview(BaseModel):
    """What a registration would make; nothing was written."""

    name: str
    description: str
    cron_expr: str
    tz: str
    entrypoint: str
    payload: dict[str, Any] = Field(description="the user payload, normalized")
    next_fires: list[Fire] = Field(description="the next ten")


class RunRead(BaseModel):
    """A run. Instants are in UTC."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    organization_id: UUID
    cron_id: UUID
    scheduled_for: datetime
    trigger_kind: TriggerKind
    status: RunStatus
    reason: str = Field(description="a stable word", examples=["Completed"])
    message: str = Field(description="a sentence for people")
    result: dict[str, Any] | None
    error: dict[str, Any] | None = Field(description="type, message and traceback of what the entry raised")
    attempts: int
    generation: int
    created_at: datetime
    created_by: str | None
    started_at: datetime | None
    finished_at: datetime | None
    not_before: datetime | None = Field(description="of a queued run: when its next attempt may begin")
    deadline: datetime | None = Field(description="no attempt begins or goes on after it; set when the first begins")
    cancel_requested_at: datetime | None
    cancel_requested_by: str | None
    rerun_of: UUID | None = Field(description="the run that was run again by this one")
    missed_until: datetime | None = Field(description="a missed run stands for every fire up to this one")
    missed_count: int | None


class AttemptRead(BaseModel):
    """One attempt of a run."""

    model_config = ConfigDict(from_attributes=True)

    number: int
    location: str
    started_at: datetime
    finished_at: datetime | None
    outcome: RunStatus | None
    reason: str | None
    message: str | None
    error: dict[str, Any] | None
    output: str | None = Field(description="what the entry printed")


class RunDetail(RunRead):
    """A run with its attempts; `output` is what the last of them printed."""

    output: str | None
    attempt_list: list[AttemptRead]

    @classmethod
    def of(cls, run: Run, attempts: list[Attempt]) -> "RunDetail":
        """Show a run whole."""
        return cls(
            **RunRead.model_validate(run).model_dump(),
            output=attempts[-1].output if attempts else None,
            attempt_list=[AttemptRead.model_validate(attempt) for attempt in attempts],
        )


class OrganizationRead(BaseModel):
    """An organization."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    state: OrganizationState
    created_at: datetime
    entrypoints: list[str] | None = Field(description="the entries that it may use; null for every one")
    cron_quota: int | None = Field(description="how many crons it may have; null for the installation's default")
    triggers_per_minute: int | None = Field(
        description="how many runs it may trigger in a minute; null for the installation's default"
    )
    crons: int = Field(description="how many crons it has")

    @field_validator("entrypoints", mode="before")
    @classmethod
    def _in_order(cls, entrypoints: frozenset[str] | None) -> list[str] | None:
        return None if entrypoints is None else sorted(entrypoints)


class KeyRead(BaseModel):
    """A key, without its text."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    role: Role
    created_at: datetime
    created_by: str
    revoked_at: datetime | None


class NewKeyRead(KeyRead):
    """A key that was just made, with its text, which is not shown again."""

    key: str

    @classmethod
    def of(cls, api_key: ApiKey, text: str) -> "NewKeyRead":
        """Show a new key."""
        return cls(**KeyRead.model_validate(api_key).model_dump(), key=text)


class EntrypointRead(BaseModel):
    """An entry: what its crons run, and what it asks for."""

    name: str
    description: str
    execution: ExecutionMode
    timeout: float = Field(description="seconds that an attempt may take, unless a cron says otherwise")
    attempts: int
    payload_schema: dict[str, Any] = Field(description="JSON Schema of the user payload")

    @classmethod
    def of(cls, name: str, spec: AnyCronEntrySpec, *, execution: ExecutionMode) -> "EntrypointRead":
        """Show an entry, and where it runs here."""
        return cls(
            name=name,
            description=(spec.user_payload_model.__doc__ or "").strip(),
            execution=execution,
            timeout=spec.timeout.total_seconds(),
            attempts=spec.attempts,
            payload_schema=spec.user_payload_model.model_json_schema(),
        )


class CronPage(BaseModel):
    """A page of crons, oldest first."""

    items: list[CronRead]
    next_cursor: str | None = Field(description="null on the last page")


class RunPage(BaseModel):
    """A page of runs, newest first."""

    items: list[RunRead]
    next_cursor: str | None = Field(description="null on the last page")


class OrganizationPage(BaseModel):
    """A page of organizations, oldest first."""

    items: list[OrganizationRead]
    next_cursor: str | None = Field(description="null on the last page")


class KeyList(BaseModel):
    """Every key of an organization, revoked ones included."""

    items: list[KeyRead]


class EntrypointList(BaseModel):
    """Every entry."""

    items: list[EntrypointRead]


class Health(BaseModel):
    """Well."""

    status: str = "ok"


_END_OF_TIME = datetime.max.replace(tzinfo=UTC)


def next_fires(schedule: Schedule, *, now: datetime, count: int) -> list[datetime]:
    """Give the next fires after `now` (aware, UTC), fewer if the calendar ends."""
    return list(schedule.fires(after=now, until=_END_OF_TIME, limit=count))
