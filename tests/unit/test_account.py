"""The audit of a cron's record: silent about a true one, and loud about every way in which one can be false."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.account import CronAccount, RecordedFires, ViolationKind, audit, first_unsettled
from cronplane_core.schedule import Schedule
from cronplane_core.timeline import ScheduleVersion

NOON = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def minutes(count: float) -> datetime:
    return NOON + count * MINUTE


def record(first: float, last: float | None = None, count: int = 1, **others: datetime) -> RecordedFires:
    return RecordedFires(
        run_id=uuid4(),
        first=minutes(first),
        last=minutes(first if last is None else last),
        count=count,
        started_at=others.get("started_at"),
    )


def account(*recorded: RecordedFires, settled_before: int = 6, versions: Sequence[ScheduleVersion] = ()) -> CronAccount:
    """A cron of every minute since noon, unless `versions` say otherwise."""
    every_minute = ScheduleVersion(effective_from=NOON, schedule=Schedule.parse("* * * * *", "UTC"))
    return CronAccount(
        cron_id=UUID(int=1),
        versions=tuple(versions) or (every_minute,),
        settled_before=minutes(settled_before),
        recorded=recorded,
    )


def found(audited: CronAccount) -> list[tuple[str, datetime]]:
    return [(violation.kind.value, violation.at) for violation in audit(audited)]


WHOLE = [record(1), record(2, 4, 3), record(5)]


def test_a_true_record_is_found_true() -> None:
    assert found(account(*WHOLE)) == []
    assert found(account(settled_before=1)) == []
    assert first_unsettled(account(*WHOLE)) == minutes(6)


@pytest.mark.parametrize(
    ("recorded", "violations"),
    [
        (WHOLE[1:], [("gap", 1)]),
        ([WHOLE[0], WHOLE[2]], [("gap", 2), ("gap", 3), ("gap", 4)]),
        (WHOLE[:2], [("gap", 5)]),
        ([], [("gap", n) for n in range(1, 6)]),
        ([*WHOLE, record(5)], [("duplicate", 5)]),
        ([WHOLE[0], WHOLE[1], record(4), WHOLE[2]], [("duplicate", 4)]),
        ([record(1), record(2, 4, 4), record(5)], [("miscounted", 2)]),
        ([record(1), record(2, 4, 2), record(5)], [("miscounted", 2)]),
        ([record(0), *WHOLE], [("not_owed", 0)]),
        ([*WHOLE[:2], record(5.5)], [("gap", 5), ("not_owed", 5.5)]),
        ([WHOLE[0], WHOLE[1], record(5, started_at=minutes(5) - MINUTE / 60)], [("early_start", 5)]),
    ],
)
def test_a_false_record_is_told_by_what_is_wrong_with_it(
    recorded: list[RecordedFires], violations: list[tuple[str, float]]
) -> None:
    assert found(account(*recorded)) == [(kind, NOON + at * MINUTE) for kind, at in violations]


def test_what_was_in_force_decides_across_edits_pauses_and_resumes() -> None:
    every_minute, every_second_minute = Schedule.parse("* * * * *", "UTC"), Schedule.parse("*/2 * * * *", "UTC")
    versions = [
        ScheduleVersion(effective_from=NOON, schedule=every_minute),
        ScheduleVersion(effective_from=minutes(2), schedule=None),
        ScheduleVersion(effective_from=minutes(5), schedule=every_second_minute),
    ]
    true = [record(1), record(2), record(6), record(8)]
    assert found(account(*true, settled_before=10, versions=versions)) == []
    paused = account(*true[:2], record(4), *true[2:], settled_before=10, versions=versions)
    assert found(paused) == [("not_owed", minutes(4))]


def test_a_record_beyond_what_is_settled_must_be_true_all_the_same() -> None:
    assert found(account(record(1), record(2), settled_before=1)) == []
    assert found(account(record(2), settled_before=1)) == [("gap", minutes(1))]


Damage = Callable[[list[RecordedFires], int], list[RecordedFires]]


def _drop(records: list[RecordedFires], place: int) -> list[RecordedFires]:
    return records[:place] + records[place + 1 :]


def _repeat(records: list[RecordedFires], place: int) -> list[RecordedFires]:
    return [*records[: place + 1], replace(records[place], run_id=uuid4()), *records[place + 1 :]]


def _shift(records: list[RecordedFires], place: int) -> list[RecordedFires]:
    moved = replace(records[place], first=records[place].first + MINUTE / 4, last=records[place].last + MINUTE / 4)
    return [*records[:place], moved, *records[place + 1 :]]


def _miscount(records: list[RecordedFires], place: int) -> list[RecordedFires]:
    return [*records[:place], replace(records[place], count=records[place].count + 1), *records[place + 1 :]]


@given(
    expression=st.sampled_from(["* * * * *", "*/7 * * * *", "0 2 * * *", "30 1-3 * * *"]),
    zone=st.sampled_from(["UTC", "Europe/Paris", "Australia/Lord_Howe"]),
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    damage=st.sampled_from([_drop, _repeat, _shift, _miscount]),
    place=st.integers(0, 5),
)
def test_any_true_record_is_found_true_and_any_damage_to_it_is_found(
    expression: str, zone: str, lengths: list[int], damage: Damage, place: int
) -> None:
    """Paris changes its clocks in the night after this noon, Lord Howe a week later."""
    schedule = Schedule.parse(expression, zone)
    fires = schedule.fires(after=NOON, until=NOON + timedelta(days=400))
    records = []
    for length in lengths:
        chunk = [next(fires) for _ in range(length)]
        records.append(RecordedFires(run_id=uuid4(), first=chunk[0], last=chunk[-1], count=length, started_at=None))
    true = CronAccount(
        cron_id=UUID(int=1),
        versions=(ScheduleVersion(effective_from=NOON, schedule=schedule),),
        settled_before=next(fires),
        recorded=tuple(records),
    )
    assert found(true) == []
    damaged = replace(true, recorded=tuple(damage(records, place % len(records))))
    assert found(damaged) != []


def test_every_kind_of_violation_has_a_word_of_its_own() -> None:
    assert len({kind.value for kind in ViolationKind}) == len(ViolationKind)
