"""The resources that people see with kubectl, as models: their CRDs are generated from these.

Fields of `spec` are named as in the REST API, so that a refusal says the same of both. Instants are aware and in UTC.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from cronplane_core.tables import RunStatus
from cronplane_entries.cron_request import CronCreation

_MOST_RUNS_SHOWN = 5


class CronSpec(CronCreation):
    """A cron: with a payload somebody registers it by this resource, without one it mirrors a cron of the API."""

    model_config = ConfigDict(json_schema_extra={"examples": []})

    name: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(  # type: ignore[assignment]
        default=None, description="unique among the organization's crons; left out, the resource's own name"
    )
    payload: dict[str, JsonValue] | None = Field(  # type: ignore[assignment]
        default=None, description="what the entry asks for; a mirror has none"
    )


class Condition(BaseModel):
    """What is true of a resource (Kubernetes' API conventions, "Typical status properties")."""

    type: str = Field(max_length=64)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(max_length=64, description="a word in CamelCase")
    message: str = Field(max_length=32_768)
    lastTransitionTime: datetime  # noqa: N815 - named by Kubernetes
    observedGeneration: int | None = None  # noqa: N815 - named by Kubernetes


class RunShown(BaseModel):
    """A run, in short. `job` is the Job of its last attempt, if it had one."""

    id: UUID
    scheduled_for: datetime
    status: RunStatus
    reason: str
    job: str | None = None


class CronStatus(BaseModel):
    """How a cron fares."""

    next_fire: datetime | None = None
    last_fire: datetime | None = None
    last_result: RunStatus | None = None
    last_reason: str | None = None
    consecutive_failures: int = Field(default=0, ge=0, description="since the last run that completed; 100 at most")
    runs: list[RunShown] = Field(default=[], max_length=_MOST_RUNS_SHOWN, description="newest first")
    conditions: list[Condition] = []
    observedGeneration: int | None = None  # noqa: N815 - named by Kubernetes


class RunnerSpec(BaseModel):
    """Nothing is asked of a Runner; it only tells."""


class RunnerStatus(BaseModel):
    """How an installation fares, as its leader says."""

    holder: str | None = None
    epoch: int | None = None
    crons: int | None = Field(default=None, description="crons that fire")
    next_fire: datetime | None = None
    lag_seconds: float | None = Field(default=None, description="by how much the earliest unclaimed fire is late")
    queued: int | None = None
    running: int | None = None
    mirrored: int | None = Field(default=None, description="crons of the API that have a mirror")
    mirror_backlog: int | None = Field(default=None, description="resources that are still to be written")
    conditions: list[Condition] = []
