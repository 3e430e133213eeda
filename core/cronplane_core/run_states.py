"""The life of a run: which state may follow which, and what becomes of a run when something happens to it.

Decided from immutable records alone: nothing here reads a clock or a database. `run_transitions` carries out what is
decided here, as a compare-and-set that names the state which the run leaves. The diagram is in `docs/runs.md`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from cronplane_core.tables import RunStatus

_ENDS = frozenset({RunStatus.COMPLETED, RunStatus.ERROR, RunStatus.TIMED_OUT, RunStatus.CANCELLED, RunStatus.LOST})
# None is a run that there is not yet.
NEXT: Mapping[RunStatus | None, frozenset[RunStatus]] = {
    None: frozenset({RunStatus.QUEUED, RunStatus.SKIPPED, RunStatus.MISSED}),
    RunStatus.QUEUED: frozenset(
        {
            RunStatus.RUNNING,
            RunStatus.ERROR,
            RunStatus.TIMED_OUT,
            RunStatus.SKIPPED,
            RunStatus.MISSED,
            RunStatus.CANCELLED,
        }
    ),
    RunStatus.RUNNING: frozenset({RunStatus.QUEUED, RunStatus.WAITING}) | _ENDS,
    RunStatus.WAITING: frozenset({RunStatus.QUEUED}) | _ENDS,
}


class AttemptEnd(enum.StrEnum):
    """How the body of an attempt ended: `accepted` if somebody else has taken on the work."""

    COMPLETED = "completed"
    ACCEPTED = "accepted"
    ERROR = "error"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """Where a run that is not over stands. `attempt` is the number of the last attempt, 0 before the first."""

    id: UUID
    status: RunStatus
    attempt: int
    is_cancel_requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRun(RunState):
    """The same with its policies, as far as decisions need them. Instants are aware and in UTC.

    No attempt is begun at or after `deadline`, and none goes on beyond it; None is a run that has none yet, since it
    was never started.
    """

    max_attempts: int
    backoff_initial: timedelta
    backoff_maximum: timedelta
    deadline: datetime | None


class EndedAttempt(NamedTuple):
    """What is known of an attempt that ended. `retry_after` is what the entry asked for, if it did."""

    end: AttemptEnd
    reason: str
    message: str
    may_retry: bool = True
    retry_after: timedelta | None = None


class Decision(NamedTuple):
    """The state that a run enters, and why: a stable word and a sentence. `not_before` is for a run queued again."""

    status: RunStatus
    reason: str
    message: str
    not_before: datetime | None = None


ATTEMPT_TIMEOUT = EndedAttempt(
    end=AttemptEnd.TIMED_OUT,
    reason="AttemptTimeout",
    message="The attempt was not over by its deadline; make the entry end sooner, or give the cron a longer timeout.",
)


def after_attempt(run: ActiveRun, attempt: EndedAttempt, *, now: datetime) -> Decision:
    """Say what becomes of a run whose attempt has ended."""
    if attempt.end is AttemptEnd.COMPLETED:
        return after_completion(attempt)
    if run.is_cancel_requested:
        return _CANCELLED
    if attempt.end is AttemptEnd.ACCEPTED:
        return Decision(status=RunStatus.WAITING, reason=attempt.reason, message=attempt.message)
    obstacle = _obstacle_to_retry(run, attempt, now=now)
    if obstacle is None:
        return _retry(run, attempt, now=now)
    return Decision(status=RunStatus(attempt.end), reason=attempt.reason, message=f"{attempt.message}{obstacle}")


def after_completion(attempt: EndedAttempt) -> Decision:
    """Say what becomes of any run whose attempt is complete."""
    return Decision(status=RunStatus.COMPLETED, reason=attempt.reason, message=attempt.message)


def after_deadline(run: ActiveRun) -> Decision:
    """Say what becomes of a run that is queued or waiting when its deadline passes."""
    what = {
        RunStatus.QUEUED: f"before attempt {run.attempt + 1} could begin",
        RunStatus.WAITING: "while it waited to be told of its end",
    }[run.status]
    return Decision(status=RunStatus.TIMED_OUT, reason="DeadlinePassed", message=f"The run's deadline passed {what}.")


def cancelled(run: ActiveRun) -> Decision | None:
    """Say what becomes of a run that somebody cancels: None if its attempt has to be ended first."""
    if run.status is RunStatus.RUNNING:
        return None
    return _CANCELLED


def retry_delay(run: ActiveRun, attempt: EndedAttempt) -> timedelta:
    """Give how long to wait before the next attempt: what the entry asked for, or capped exponential back-off."""
    if attempt.retry_after is not None:
        return attempt.retry_after
    # The exponent is bounded, too: 2 ** 1000 seconds are no timedelta.
    doublings: int = min(max(run.attempt - 1, 0), _MOST_DOUBLINGS)
    return min(run.backoff_initial * (1 << doublings), run.backoff_maximum)


_MOST_DOUBLINGS = 20
_CANCELLED = Decision(status=RunStatus.CANCELLED, reason="CancelRequested", message="Somebody cancelled the run.")


def _obstacle_to_retry(run: ActiveRun, attempt: EndedAttempt, *, now: datetime) -> str | None:
    """Say why there is no next attempt; nothing is to be said where there was to be only one."""
    if run.attempt >= run.max_attempts:
        return "" if run.max_attempts == 1 else f" It was attempt {run.attempt} of {run.max_attempts}."
    if not attempt.may_retry:
        return " It would fail again, so it is not retried."
    if run.deadline is not None and now + retry_delay(run, attempt) >= run.deadline:
        return " A retry would begin after the run's deadline."
    return None


def _retry(run: ActiveRun, attempt: EndedAttempt, *, now: datetime) -> Decision:
    not_before = now + retry_delay(run, attempt)
    message = f"Attempt {run.attempt} of {run.max_attempts} ended with {attempt.reason}; the next one waits."
    return Decision(status=RunStatus.QUEUED, reason="RetryScheduled", message=message, not_before=not_before)
