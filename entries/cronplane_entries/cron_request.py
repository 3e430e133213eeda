"""What a person sends to register a cron, over REST and in a resource alike: strict, closed models.

Bounds that depend on nothing else are told in the schema; the registration keeps them, and names every error at once.
"""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from cronplane_core.tables import Catchup, Overlap
from cronplane_entries.registration import (
    LONGEST_BACKOFF,
    LONGEST_CATCHUP_WINDOW,
    LONGEST_RUN_TIMEOUT,
    MAXIMUM_NAME_LENGTH,
    MOST_RUNS,
    CronDraft,
    PolicyDraft,
)
from cronplane_entries.registry import LONGEST_TIMEOUT, MOST_ATTEMPTS

_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
# Whole seconds; anything beyond would not even be a duration to PostgreSQL or Python.
Seconds = Annotated[int, Field(ge=-(10**9), le=10**9)]


def _instant(value: object) -> object:
    if not isinstance(value, str) or not _INSTANT.fullmatch(value):
        raise ValueError("write an instant with its offset, such as 2026-01-31T09:00:00Z")
    return value


NAME_LENGTH: dict[str, JsonValue] = {"minLength": 1, "maxLength": MAXIMUM_NAME_LENGTH}
Instant = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_instant)]


class Strict(BaseModel):
    """A request's body: nothing is coerced, and nothing unknown is let through."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _from_to(least: int, most: int | timedelta) -> dict[str, JsonValue]:
    """Describe the bounds that the registration keeps, which names every error at once."""
    return {"minimum": least, "maximum": most if isinstance(most, int) else int(most.total_seconds())}


class Backoff(Strict):
    """How long to wait before a retry: it doubles each time, up to the maximum."""

    initial: Seconds | None = Field(default=None, description="seconds", json_schema_extra=_from_to(1, LONGEST_BACKOFF))
    maximum: Seconds | None = Field(default=None, description="seconds", json_schema_extra=_from_to(1, LONGEST_BACKOFF))


class Policies(Strict):
    """How fires and runs are treated; what is left out has its default. Durations are in whole seconds."""

    overlap: Annotated[Overlap, Field(strict=False)] | None = Field(
        default=None, description="while an earlier run is not over: `skip` (the default); others are not served yet"
    )
    catchup: Annotated[Catchup, Field(strict=False)] | None = Field(
        default=None, description="after an outage: `latest` (the default); others are not served yet"
    )
    catchup_window: Seconds | None = Field(
        default=None,
        description="how late a fire may still run, in seconds; the default is 6 hours",
        json_schema_extra=_from_to(1, LONGEST_CATCHUP_WINDOW),
    )
    timeout: Seconds | None = Field(
        default=None,
        description="how long an attempt may take, in seconds; the default is the entry's",
        json_schema_extra=_from_to(1, LONGEST_TIMEOUT),
    )
    max_attempts: int | None = Field(
        default=None,
        description="how often a run may be tried; the default is the entry's",
        json_schema_extra=_from_to(1, MOST_ATTEMPTS),
    )
    backoff: Backoff | None = Field(
        default=None, description="the wait before a retry; 10 s, then twice that, to 600 s"
    )
    run_timeout: Seconds | None = Field(
        default=None,
        description="how long a run may take with all of its attempts, in seconds from when it is queued; "
        "left out, from the start of the first attempt, as long as all of them and the waits between them may take",
        json_schema_extra=_from_to(1, LONGEST_RUN_TIMEOUT),
    )
    jitter: Seconds | None = Field(
        default=None, description="0 (the default); more is not served yet", json_schema_extra=_from_to(0, 0)
    )
    starts_at: Instant | None = Field(default=None, description="not served yet")
    ends_at: Instant | None = Field(default=None, description="not served yet")
    max_runs: int | None = Field(default=None, description="not served yet", json_schema_extra=_from_to(1, MOST_RUNS))

    def policy_draft(self) -> PolicyDraft:
        """Give the policies as the registration reads them."""
        return PolicyDraft(
            overlap=self.overlap,
            catchup=self.catchup,
            catchup_window=_duration(self.catchup_window),
            timeout=_duration(self.timeout),
            max_attempts=self.max_attempts,
            backoff_initial=_duration(self.backoff.initial) if self.backoff else None,
            backoff_maximum=_duration(self.backoff.maximum) if self.backoff else None,
            jitter=_duration(self.jitter),
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            max_runs=self.max_runs,
            run_timeout=_duration(self.run_timeout),
        )


_EXAMPLE: dict[str, JsonValue] = {
    "name": "my job",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}


class CronCreation(Policies):
    """A cron to register."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: str = Field(
        description="unique among the organization's crons", max_length=1000, json_schema_extra=NAME_LENGTH
    )
    cron_expr: str = Field(description="five fields, or @daily and its like", max_length=10_000)
    tz: str = Field(description="an IANA time zone", max_length=1000)
    entrypoint: str = Field(description="the entry to run", max_length=1000)
    payload: dict[str, JsonValue] = Field(description="what the entry asks for; see GET /entrypoints")
    enabled: bool = Field(default=True, description="false registers it paused")

    def draft(self) -> CronDraft:
        """Give the cron as the registration reads it."""
        return CronDraft(
            name=self.name,
            cron_expr=self.cron_expr,
            tz=self.tz,
            entrypoint=self.entrypoint,
            payload=self.payload,
            enabled=self.enabled,
            policy=self.policy_draft(),
        )


def leave_null_out(schema: dict[str, Any]) -> None:
    """Take null from the alternatives of a schema, in place, where leaving something out is the way to say so."""
    match [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]:
        case [only]:
            del schema["anyOf"]
            schema.update(only | schema)


def _duration(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
