"""What processes that run attempts, and those who tell a run's end, send and are told."""

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from cronplane_core.run_states import AttemptEnd, EndedAttempt
from cronplane_core.run_transitions import StartedAttempt
from cronplane_core.tables import RunStatus, TriggerKind
from cronplane_entries.cron_request import Strict
from cronplane_entries.invocation import ResultInvalidError, encode_result

_LONGEST_DELAY = 7 * 86_400


def _storable(result: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    try:
        encode_result(result)
    except ResultInvalidError as error:
        raise ValueError(str(error)) from error
    return result


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


Text = Annotated[str, AfterValidator(_without_nul)]
Nonce = Annotated[UUID, Field(strict=False, description="made by the process itself, a new one for each attempt")]
Result = Annotated[
    dict[str, JsonValue] | None, AfterValidator(_storable), Field(default=None, description="at most 64 KiB of JSON")
]


_NONCE: dict[str, JsonValue] = {"nonce": "0b7f6a5c-95c1-4a0e-8d5e-0f6f3f1f7c11"}
_COMPLETED: dict[str, JsonValue] = {"outcome": "completed", "result": {"rows": 7}}


class AttemptStart(Strict):
    """Who wants to begin."""

    model_config = ConfigDict(json_schema_extra={"examples": [{**_NONCE, "location": "job-4711-x8d2k"}]})

    nonce: Nonce
    location: Text = Field(min_length=1, max_length=200, description="where it runs, such as the pod's name")


class AttemptBeat(Strict):
    """Who goes on."""

    model_config = ConfigDict(json_schema_extra={"examples": [_NONCE]})

    nonce: Nonce


class ErrorSent(Strict):
    """What went wrong."""

    type: Text = Field(max_length=512, description="the name of the error's class")
    message: Text = Field(max_length=4096)
    traceback: Text = Field(default="", max_length=16_384)


class _Finish(Strict):
    """What everybody tells who tells an end; `outcome` is one of those in `_WORDS`."""

    outcome: str
    result: Result
    error: ErrorSent | None = Field(default=None, description="what went wrong, of an `error`")
    may_retry: bool = Field(default=True, description="false if another attempt would fail, too")
    retry_after: int | None = Field(
        default=None, ge=0, le=_LONGEST_DELAY, description="seconds to wait before a retry; else the cron's back-off"
    )

    def ended(self) -> EndedAttempt:
        """Give the end as it is decided upon."""
        reason, message = _WORDS[self.outcome]
        return EndedAttempt(
            end=AttemptEnd(self.outcome),
            reason=reason,
            message=message,
            may_retry=self.may_retry,
            retry_after=None if self.retry_after is None else timedelta(seconds=self.retry_after),
        )

    def result_json(self) -> str | None:
        """Give the result of what is complete, as JSON."""
        return encode_result(self.result) if self.outcome == "completed" else None

    def error_json(self) -> str | None:
        """Give the error of what failed, as JSON."""
        return self.error.model_dump_json() if self.error is not None and self.outcome == "error" else None


class CallbackFinish(_Finish):
    """How the work ended that was handed on."""

    model_config = ConfigDict(json_schema_extra={"examples": [_COMPLETED]})

    outcome: Literal["completed", "error"]


class AttemptFinish(_Finish):
    """How an attempt ended; `accepted` if somebody else has the work now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_NONCE | _COMPLETED]})

    nonce: Nonce
    outcome: Literal["completed", "accepted", "error", "timed_out", "cancelled", "lost"]
    reason: str | None = Field(
        default=None, pattern="^[A-Z][A-Za-z]{0,63}$", description="a stable word in CamelCase for how it ended"
    )
    message: Text | None = Field(default=None, max_length=4096, description="a sentence for people")
    output: Text = Field(default="", max_length=66_000, description="what it printed")

    def ended(self) -> EndedAttempt:
        """Give the end as it is decided upon, in the words of the process if it has some."""
        ended = super().ended()
        return ended._replace(reason=self.reason or ended.reason, message=self.message or ended.message)


_WORDS = {
    "completed": ("Completed", "The entry finished."),
    "accepted": ("Accepted", "The work was handed on; the run waits to be told of its end."),
    "error": ("ExecutorFailed", "The entry raised an error."),
    "timed_out": ("AttemptTimeout", "The attempt was not over by its deadline."),
    "cancelled": ("CancelRequested", "Somebody cancelled the run."),
    "lost": ("Lost", "The process that ran it could not go on."),
}


class CallbackRead(BaseModel):
    """How somebody else tells the run's end: the token goes into the Authorization header, and is good once."""

    path: str
    token: str
    deadline: datetime


class AttemptStarted(BaseModel):
    """The attempt may begin; all that its executor is told."""

    run_id: UUID
    attempt: int
    organization_id: UUID
    cron_id: UUID
    cron_name: str
    trigger: TriggerKind
    entrypoint: str
    payload: dict[str, Any]
    scheduled_for: datetime
    started_at: datetime
    deadline: datetime = Field(description="when it has to be over")
    lease: float = Field(description="seconds; without a heartbeat for so long it is lost")
    token: str | None = Field(description="what to show from now on; null if that stays the same")
    callback: CallbackRead | None

    @classmethod
    def of(
        cls, attempt: StartedAttempt, *, lease: timedelta, token: str | None, callback: CallbackRead | None
    ) -> "AttemptStarted":
        """Show an attempt that passed the gate."""
        return cls(
            run_id=attempt.run.id,
            attempt=attempt.run.attempt,
            organization_id=attempt.organization_id,
            cron_id=attempt.cron_id,
            cron_name=attempt.cron_name,
            trigger=attempt.trigger_kind,
            entrypoint=attempt.entrypoint,
            payload=json.loads(attempt.payload_json),
            scheduled_for=attempt.scheduled_for,
            started_at=attempt.started_at,
            deadline=attempt.deadline,
            lease=lease.total_seconds(),
            token=token,
            callback=callback,
        )


class AttemptGoesOn(BaseModel):
    """What an attempt has to know while it runs."""

    is_cancel_requested: bool = Field(description="end soon, and tell so")
    deadline: datetime | None
    lease: float = Field(description="seconds until the next heartbeat has to be here")
    token: str | None = Field(description="what to show from now on; null if that stays the same")


class FinishRecorded(BaseModel):
    """What became of the run."""

    status: RunStatus
    reason: str
