"""What becomes of owed fires, decided from records alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.run_transitions import LockedCron
from cronplane_core.schedule import Schedule
from cronplane_core.tables import Overlap, RunStatus
from cronplane_operator.claim_decision import DEFAULT_CATCHUP_WINDOW, DueJob, decide

FIRST = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
EVERY_MINUTE = Schedule.parse("* * * * *", "UTC")


def cron(**changes: Any) -> LockedCron:
    values: dict[str, Any] = {
        "id": uuid4(),
        "organization_id": uuid4(),
        "generation": 3,
        "enabled": True,
        "entrypoint": "dummy_print",
        "is_granted": True,
        "overlap": Overlap.SKIP,
        "catchup_window": None,
        "run_timeout": None,
        "active_run_id": None,
    }
    return LockedCron(**(values | changes))


def due(locked: LockedCron, *, until: datetime) -> DueJob:
    return DueJob(
        cron_id=locked.id,
        generation=locked.generation,
        first=FIRST,
        next_run_time=EVERY_MINUTE.next_after(until),
        source=EVERY_MINUTE,
    )


def test_one_owed_fire_is_queued() -> None:
    locked = cron()
    [run] = decide(locked, due(locked, until=FIRST), now=FIRST)
    assert (run.status, run.reason, run.scheduled_for, run.generation) == (RunStatus.QUEUED, "Claimed", FIRST, 3)


def test_a_fire_of_an_entry_that_was_taken_from_the_organization_is_skipped() -> None:
    locked = cron(is_granted=False)
    [run] = decide(locked, due(locked, until=FIRST), now=FIRST)
    assert (run.status, run.reason) == (RunStatus.SKIPPED, "EntryNotGranted")


def test_a_cron_that_was_paused_meanwhile_is_skipped_and_not_forgotten() -> None:
    locked = cron(enabled=False)
    [run] = decide(locked, due(locked, until=FIRST), now=FIRST)
    assert (run.status, run.reason) == (RunStatus.SKIPPED, "NotEnabled")


def test_a_fire_just_inside_the_window_runs_and_one_just_outside_is_missed() -> None:
    locked = cron(catchup_window=timedelta(seconds=30))
    [inside] = decide(locked, due(locked, until=FIRST), now=FIRST + timedelta(seconds=30))
    [outside] = decide(locked, due(locked, until=FIRST), now=FIRST + timedelta(seconds=30, microseconds=1))
    assert inside.status is RunStatus.QUEUED
    assert (outside.status, outside.missed_until, outside.missed_count) == (RunStatus.MISSED, FIRST, 1)


@given(minutes=st.integers(0, 3000), late=st.integers(0, 59), busy=st.booleans(), enabled=st.booleans())
def test_every_owed_fire_is_in_exactly_one_row(minutes: int, late: int, *, busy: bool, enabled: bool) -> None:
    last = FIRST + timedelta(minutes=minutes)
    locked = cron(active_run_id=uuid4() if busy else None, enabled=enabled)
    runs = decide(locked, due(locked, until=last), now=last + timedelta(seconds=late))
    covered = [
        fire
        for run in runs
        for fire in EVERY_MINUTE.fires(
            after=run.scheduled_for - timedelta(seconds=1), until=run.missed_until or run.scheduled_for
        )
    ]
    assert covered == list(EVERY_MINUTE.fires(after=FIRST - timedelta(seconds=1), until=last))
    assert sum(run.missed_count or 1 for run in runs) == minutes + 1
    assert sum(run.status is RunStatus.QUEUED for run in runs) == (1 if enabled and not busy else 0)
    assert last - runs[-1].scheduled_for < DEFAULT_CATCHUP_WINDOW
