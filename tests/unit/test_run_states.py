"""What becomes of a run when something happens to it, decided from records alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.run_states import (
    NEXT,
    ActiveRun,
    AttemptEnd,
    EndedAttempt,
    after_attempt,
    after_deadline,
    cancelled,
    retry_delay,
)
from cronplane_core.tables import ACTIVE_STATUSES, RunStatus

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
FAILURES = [AttemptEnd.ERROR, AttemptEnd.TIMED_OUT, AttemptEnd.LOST]


def run(**changes: Any) -> ActiveRun:
    values: dict[str, Any] = {
        "id": uuid4(),
        "status": RunStatus.RUNNING,
        "attempt": 1,
        "max_attempts": 3,
        "backoff_initial": timedelta(seconds=10),
        "backoff_maximum": timedelta(seconds=60),
        "deadline": NOON + timedelta(hours=1),
    }
    return ActiveRun(**(values | changes))


def ended(end: AttemptEnd, **changes: Any) -> EndedAttempt:
    return EndedAttempt(**({"end": end, "reason": "Because", "message": "It was so."} | changes))


@st.composite
def runs(draw: st.DrawFn) -> ActiveRun:
    return run(
        status=draw(st.sampled_from([RunStatus.RUNNING, RunStatus.WAITING])),
        attempt=draw(st.integers(1, 100)),
        max_attempts=draw(st.integers(1, 100)),
        backoff_initial=timedelta(seconds=draw(st.integers(1, 86_400))),
        backoff_maximum=timedelta(seconds=draw(st.integers(1, 86_400))),
        deadline=draw(st.none() | st.datetimes(NOON.replace(tzinfo=None), timezones=st.just(UTC))),
        is_cancel_requested=draw(st.booleans()),
    )


@st.composite
def ends(draw: st.DrawFn) -> EndedAttempt:
    return ended(
        draw(st.sampled_from(AttemptEnd)),
        may_retry=draw(st.booleans()),
        retry_after=draw(st.none() | st.timedeltas(timedelta(0), timedelta(days=7))),
    )


@given(run=runs(), attempt=ends())
def test_every_decision_is_an_arrow_of_the_diagram_and_gives_its_reason(run: ActiveRun, attempt: EndedAttempt) -> None:
    decision = after_attempt(run, attempt, now=NOON)
    if not (run.status is RunStatus.WAITING and attempt.end is AttemptEnd.ACCEPTED and not run.is_cancel_requested):
        assert decision.status in NEXT[run.status]
    assert decision.reason.isalnum()
    assert decision.message.endswith(".")
    assert (decision.not_before is not None) == (decision.status is RunStatus.QUEUED)


@given(run=runs(), attempt=ends())
def test_a_run_is_queued_again_only_with_attempts_and_time_left(run: ActiveRun, attempt: EndedAttempt) -> None:
    decision = after_attempt(run, attempt, now=NOON)
    if decision.status is not RunStatus.QUEUED:
        return
    assert run.attempt < run.max_attempts
    assert attempt.may_retry
    assert not run.is_cancel_requested
    assert decision.not_before is not None
    assert decision.not_before >= NOON
    assert run.deadline is None or decision.not_before < run.deadline


@pytest.mark.parametrize("end", FAILURES)
def test_a_failure_is_the_runs_end_only_when_no_attempt_remains(end: AttemptEnd) -> None:
    retried = after_attempt(run(), ended(end), now=NOON)
    assert (retried.status, retried.reason) == (RunStatus.QUEUED, "RetryScheduled")
    assert retried.message == "Attempt 1 of 3 ended with Because; the next one waits."
    last = after_attempt(run(attempt=3), ended(end), now=NOON)
    assert (last.status, last.reason, last.message) == (RunStatus(end), "Because", "It was so. It was attempt 3 of 3.")
    only = after_attempt(run(max_attempts=1), ended(end), now=NOON)
    assert (only.status, only.message) == (RunStatus(end), "It was so.")


def test_what_would_fail_again_is_not_retried() -> None:
    decision = after_attempt(run(), ended(AttemptEnd.ERROR, may_retry=False), now=NOON)
    assert decision.status is RunStatus.ERROR
    assert decision.message == "It was so. It would fail again, so it is not retried."


def test_the_wait_doubles_up_to_its_maximum() -> None:
    waits = [retry_delay(run(attempt=attempt), ended(AttemptEnd.ERROR)).total_seconds() for attempt in (1, 2, 3, 4, 99)]
    assert waits == [10, 20, 40, 60, 60]


def test_the_entry_may_say_how_long_to_wait() -> None:
    asked = ended(AttemptEnd.ERROR, retry_after=timedelta(minutes=5))
    assert after_attempt(run(), asked, now=NOON).not_before == NOON + timedelta(minutes=5)


def test_no_retry_begins_at_or_after_the_deadline() -> None:
    wait = timedelta(seconds=10)
    for deadline, status in {
        NOON + wait: RunStatus.ERROR,
        NOON + wait + timedelta(microseconds=1): RunStatus.QUEUED,
    }.items():
        assert after_attempt(run(deadline=deadline), ended(AttemptEnd.ERROR), now=NOON).status is status
    refused = after_attempt(run(deadline=NOON), ended(AttemptEnd.ERROR), now=NOON)
    assert refused.message == "It was so. A retry would begin after the run's deadline."


@pytest.mark.parametrize("end", [*FAILURES, AttemptEnd.ACCEPTED, AttemptEnd.CANCELLED])
def test_whatever_ends_a_run_that_is_not_wanted_any_more_cancels_it(end: AttemptEnd) -> None:
    assert after_attempt(run(is_cancel_requested=True), ended(end), now=NOON).status is RunStatus.CANCELLED


def test_a_run_that_was_complete_before_it_could_be_cancelled_is_complete() -> None:
    decision = after_attempt(run(is_cancel_requested=True), ended(AttemptEnd.COMPLETED), now=NOON)
    assert decision.status is RunStatus.COMPLETED


def test_work_that_was_handed_on_makes_the_run_wait() -> None:
    assert after_attempt(run(), ended(AttemptEnd.ACCEPTED), now=NOON).status is RunStatus.WAITING


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (RunStatus.QUEUED, "The run's deadline passed before attempt 2 could begin."),
        (RunStatus.WAITING, "The run's deadline passed while it waited to be told of its end."),
    ],
)
def test_a_deadline_ends_what_does_not_run(status: RunStatus, message: str) -> None:
    decision = after_deadline(run(status=status))
    assert (decision.status, decision.reason, decision.message) == (RunStatus.TIMED_OUT, "DeadlinePassed", message)


def test_only_what_runs_has_to_be_stopped_before_it_is_cancelled() -> None:
    assert cancelled(run(status=RunStatus.RUNNING)) is None
    for status in (RunStatus.QUEUED, RunStatus.WAITING):
        decision = cancelled(run(status=status))
        assert decision is not None
        assert (decision.status, decision.reason) == (RunStatus.CANCELLED, "CancelRequested")


def test_every_state_that_is_not_an_end_leads_to_one() -> None:
    assert set(NEXT) == {None, *ACTIVE_STATUSES}
    for status in ACTIVE_STATUSES:
        assert NEXT[status] - set(ACTIVE_STATUSES)
