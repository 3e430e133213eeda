"""Where Kubernetes and we read a schedule differently, and how it is written so that we do not."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronplane_cli.kubernetes_schedule import WallClockSchedule, read_schedule
from cronplane_cli.schedule_comparison import Comparison, compare, differences
from cronplane_core.schedule import Schedule, ScheduleError

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def comparison(text: str, zone: str = "UTC") -> Comparison:
    return compare(read_schedule(text, zone), after=NOW)


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("*/5 * * * *", "America/New_York"),
        ("0 9 * * 1-5", "Europe/Berlin"),
        ("0 0 13 * 5", "UTC"),
        ("@daily", "Europe/Berlin"),
        ("*/7 * * * *", "Europe/Berlin"),
        ("30 2 * * *", "UTC"),
    ],
)
def test_what_is_read_alike_stays_as_it_is_written(text: str, zone: str) -> None:
    assert comparison(text, zone) == Comparison(expression=text)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("0 9 ? * 1-5", "0 9 * * 1-5"),
        ("5-5/2 1 * * *", "5 1 * * *"),
        (",0 0 * * *", "0 0 * * *"),
        ("+5 1 * * *", "5 1 * * *"),
    ],
)
def test_what_we_refuse_is_written_in_our_words(text: str, written: str) -> None:
    found = comparison(text)
    assert (found.expression, found.as_written, found.remaining) == (written, (), ())
    assert found.refusal
    assert found.is_exact
    assert found.is_rewritten


def test_a_stepped_day_field_is_written_as_a_list_since_a_star_would_ask_for_both_fields() -> None:
    found = comparison("0 0 */10 * 1")
    assert found.expression == "0 0 1,11,21,31 * 1"
    assert found.is_exact
    # Mondays that are no day of the list, and the other way round.
    assert [str(difference) for difference in found.as_written[:3]] == [
        "2026-11-30T00:00:00+00:00: Kubernetes fires, Cronplane does not",
        "2026-12-01T00:00:00+00:00: Kubernetes fires, Cronplane does not",
        "2026-12-07T00:00:00+00:00: Kubernetes fires, Cronplane does not",
    ]
    assert len(found.as_written) == 5


def test_a_nightly_cron_differs_on_the_days_on_which_the_clock_changes_in_berlin() -> None:
    found = comparison("30 2 * * *", "Europe/Berlin")
    assert found.expression == "30 2 * * *"
    assert not found.is_exact
    assert found.as_written == found.remaining
    assert [str(difference) for difference in found.remaining] == [
        "2027-03-28T03:00:00+02:00: Cronplane fires, Kubernetes does not",
        "2027-10-31T02:30:00+01:00: Kubernetes fires, Cronplane does not",
    ]


def test_a_nightly_cron_differs_on_the_days_on_which_the_clock_changes_in_new_york() -> None:
    assert [str(difference) for difference in comparison("30 1,2 * * *", "America/New_York").remaining] == [
        "2027-03-14T03:00:00-04:00: Cronplane fires, Kubernetes does not",
        "2027-11-07T01:30:00-05:00: Kubernetes fires, Cronplane does not",
    ]


def test_kubernetes_forgets_a_day_whose_midnight_is_skipped() -> None:
    [difference] = comparison("0 5 * * 5", "Africa/Cairo").remaining
    assert str(difference) == "2027-04-30T05:00:00+03:00: Cronplane fires, Kubernetes does not"


def test_hours_that_are_a_step_are_written_with_a_star_so_that_they_follow_the_clock() -> None:
    found = comparison("0 0-23/2 * * *", "Europe/Berlin")
    assert found.expression == "0 */2 * * *"
    assert found.as_written
    assert found.is_exact


def test_of_two_ways_that_differ_the_one_is_taken_that_differs_later() -> None:
    found = comparison("30 2 */2 * MON", "Europe/Berlin")
    assert found.expression == "30 2 1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31 * 1"
    assert found.as_written[0].at.date().isoformat() == "2026-11-29"
    assert [difference.at.date().isoformat() for difference in found.remaining] == ["2027-10-31"]


@pytest.mark.parametrize(
    ("interval", "near"),
    [
        ("1m", "* * * * *"),
        ("15m", "*/15 * * * *"),
        ("1h", "0 * * * *"),
        ("6h", "0 */6 * * *"),
        ("24h", "0 0 * * *"),
        ("7m", None),
        ("90m", None),
        ("5h", None),
        ("30s", None),
        ("48h", None),
    ],
)
def test_an_interval_is_never_exact_and_has_a_near_schedule_if_it_divides_an_hour_or_a_day(
    interval: str, near: str | None
) -> None:
    found = comparison(f"@every {interval}")
    assert found.expression == near
    assert not found.is_exact


def test_what_fires_only_after_the_horizon_is_looked_at_once() -> None:
    found = compare(read_schedule("30 2 28 3 *", "Europe/Berlin"), after=NOW, horizon=timedelta(days=1))
    # Kubernetes fires in 2028 only: in 2027 the clock skips that minute.
    [difference] = found.remaining
    assert str(difference) == "2027-03-28T03:00:00+02:00: Cronplane fires, Kubernetes does not"


def test_a_step_from_a_weekday_on_ends_on_saturday_and_not_on_a_second_sunday() -> None:
    found = comparison("0 4 * * 1/2")
    assert found.expression == "0 4 * * 1,3,5"
    assert found.is_exact
    assert {difference.at.isoweekday() for difference in found.as_written} == {7}


def test_what_never_fires_has_no_schedule_here() -> None:
    found = comparison("0 0 31 2 *")
    assert (found.expression, found.refusal) == (None, "it never fires")


FIELD = st.one_of(st.just("*"), st.integers(1, 5).map(str), st.integers(2, 9).map(lambda step: f"*/{step}"))


@settings(max_examples=40, deadline=None)
@given(
    theirs=st.tuples(FIELD, FIELD, FIELD, FIELD),
    ours=st.tuples(FIELD, FIELD, FIELD, FIELD),
    is_same=st.booleans(),
    change=st.sampled_from([datetime(2027, 3, 27, tzinfo=UTC), datetime(2027, 10, 30, tzinfo=UTC)]),
)
def test_days_that_are_passed_over_hide_no_difference(
    theirs: tuple[str, ...], ours: tuple[str, ...], *, is_same: bool, change: datetime
) -> None:
    minute, hour, day, weekday = theirs
    read = read_schedule(f"{minute} {hour} {day} * {weekday}", "Europe/Berlin")
    assert isinstance(read, WallClockSchedule)
    minute, hour, day, weekday = theirs if is_same else ours
    try:
        schedule = Schedule.parse(f"{minute} {hour} {day} * {weekday}", "Europe/Berlin")
    except ScheduleError:
        return
    until = change + timedelta(days=4)
    found = [each.at for each in differences(read, schedule, after=change, until=until, limit=10**6)]
    they, we = set(), set(schedule.fires(after=change, until=until))
    fire = read.next_after(change)
    while fire is not None and fire <= until:
        they.add(fire)
        fire = read.next_after(fire)
    assert [at.astimezone(UTC) for at in found] == sorted(they ^ we)
