"""Daylight saving, against a walk over real minutes that shares nothing with the code under test.

The walk knows only how to turn an instant into what the wall clock shows, and matches the five fields by itself; it has
no fold, no nominal time and no cronsim. Its fires around the changes of the clock in many zones are kept in
`schedule_golden.json`; to write that file anew: `python tests/unit/test_schedule_golden.py`.
"""

import calendar
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronplane_core.schedule import InvalidExpressionError, Schedule
from cronplane_core.time_zones import time_zone

GOLDEN = Path(__file__).with_name("schedule_golden.json")
MINUTE = timedelta(minutes=1)
NAMES = {
    name: number
    for names, first in (("JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC", 1), ("SUN MON TUE WED THU FRI SAT", 0))
    for number, name in enumerate(names.split(), first)
}

# The first instant of the new offset; what is unusual about it.
CLOCK_CHANGES = [
    ("Europe/Berlin", "2025-03-30T01:00", "02:00 to 03:00"),
    ("Europe/Berlin", "2025-10-26T01:00", "03:00 to 02:00"),
    ("America/New_York", "2025-03-09T07:00", "behind UTC"),
    ("America/New_York", "2025-11-02T06:00", "behind UTC"),
    ("Australia/Lord_Howe", "2025-04-05T15:00", "half an hour back"),
    ("Australia/Lord_Howe", "2025-10-04T15:30", "half an hour forward"),
    ("Africa/Cairo", "2025-04-24T22:00", "skips midnight"),
    ("Africa/Cairo", "2025-10-30T21:00", "repeats the last hour of a day"),
    ("America/Santiago", "2025-04-06T03:00", "repeats the last hour of a day"),
    ("America/Santiago", "2025-09-07T04:00", "skips midnight"),
    ("Europe/Dublin", "2025-03-30T01:00", "summer time is the standard, winter's is negative"),
    ("Europe/Dublin", "2025-10-26T01:00", "summer time is the standard, winter's is negative"),
    ("Asia/Beirut", "2025-03-29T22:00", "skips midnight"),
    ("Asia/Beirut", "2025-10-25T21:00", "repeats the last hour of a day"),
    ("Asia/Gaza", "2025-04-12T00:00", "on a Saturday"),
    ("Antarctica/Troll", "2025-03-30T01:00", "two hours forward"),
    ("Antarctica/Troll", "2025-10-26T01:00", "two hours back"),
    ("Pacific/Apia", "2011-12-30T10:00", "a whole day skipped"),
    ("Africa/Casablanca", "2025-02-23T02:00", "back for Ramadan"),
    ("Africa/Casablanca", "2025-04-06T02:00", "forward after Ramadan"),
    ("America/St_Johns", "2010-03-14T03:31", "at one minute past midnight"),
    ("America/St_Johns", "2010-11-07T02:31", "the repeated hour reaches over midnight"),
    ("America/Havana", "2025-11-02T05:00", "repeats the first hour of a day"),
    ("Asia/Kathmandu", "1985-12-31T18:30", "a quarter of an hour, once"),
    ("Asia/Tehran", "2022-09-21T19:30", "repeats the last hour of a day, half-hour offsets"),
    ("Europe/Moscow", "2014-10-25T22:00", "back for good"),
]
GOLDEN_EXPRESSIONS = [
    "30 2 * * *",
    "*/30 2 * * *",
    "0,15,30,45 0-3 * * *",
    "*/15 0-3 * * *",
    "10 * * * *",
    "0 */2 * * *",
    "@daily",
    "*/20 23 * * *",
    "30 23,0,1 * * *",
    "0 9 * * 1-5",
]


@dataclass(frozen=True)
class Cron:
    """A reader of cron expressions for this test alone: plain, slow, and independent."""

    minute: str
    hour: str
    day: str
    month: str
    weekday: str

    @classmethod
    def read(cls, expression: str) -> "Cron":
        return cls(*{"@daily": "0 0 * * *"}.get(expression, expression).split())

    @property
    def is_fixed_time(self) -> bool:
        return self.minute[0] != "*" and self.hour[0] != "*"

    def shows(self, wall: datetime) -> bool:
        return (
            wall.minute in numbers(self.minute, 0, 59)
            and wall.hour in numbers(self.hour, 0, 23)
            and wall.month in numbers(self.month, 1, 12)
            and self.has_date(wall.date())
        )

    def has_date(self, day: date) -> bool:
        of_month = any(day_matches(term, day) for term in self.day.split(","))
        of_week = any(weekday_matches(term, day) for term in self.weekday.split(","))
        both_needed = self.day[0] == "*" or self.weekday[0] == "*"
        return of_month and of_week if both_needed else of_month or of_week


@cache
def numbers(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for term in text.split(","):
        span, _, step = term.partition("/")
        first, dash, last = span.partition("-")
        start = low if first == "*" else number(first)
        end = number(last) if dash else high if first == "*" or step else start
        found.update(range(start, end + 1, int(step or 1)))
    return found


def number(text: str) -> int:
    return NAMES[text] if text in NAMES else int(text)


def day_matches(term: str, day: date) -> bool:
    last = calendar.monthrange(day.year, day.month)[1]
    if term == "L":
        return day.day == last
    if term == "LW":
        return day == max(d for d in (day.replace(day=n) for n in range(20, last + 1)) if d.isoweekday() <= 5)
    return day.day in numbers(term, 1, 31)


def weekday_matches(term: str, day: date) -> bool:
    today = day.isoweekday() % 7
    if term.endswith("L"):
        return today == number(term[:-1]) % 7 and (day + timedelta(days=7)).month != day.month
    if "#" in term:
        weekday, _, nth = term.partition("#")
        return today == number(weekday) % 7 and (day.day - 1) // 7 + 1 == int(nth)
    return today in {n % 7 for n in numbers(term, 0, 7)}


def walk(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """All fires in [start, end), by looking at the wall clock once in each real minute."""
    cron, rules = Cron.read(expression), time_zone(zone)
    fires: list[datetime] = []
    # Longer before the start than any clock goes back, so that the first minute knows what was shown.
    instant = start - timedelta(hours=4)
    furthest = instant.astimezone(rules).replace(tzinfo=None)
    while (instant := instant + MINUTE) < end:
        wall = instant.astimezone(rules).replace(tzinfo=None)
        new = minutes_between(furthest, wall)
        furthest = max(furthest, wall)
        # A fixed time is due when the dial reaches it or leaps over it for the first time.
        if any(map(cron.shows, new)) if cron.is_fixed_time else cron.shows(wall):
            fires.append(instant)
    return [fire for fire in fires if fire >= start]


def minutes_between(earlier: datetime, later: datetime) -> Iterator[datetime]:
    while (earlier := earlier + MINUTE) <= later:
        yield earlier


def window(change: str) -> tuple[datetime, datetime]:
    """A day and a half on both sides of a change of the clock."""
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    return instant - timedelta(hours=36), instant + timedelta(hours=36)


def golden_fires(zone: str, change: str) -> dict[str, str]:
    """Per expression, the fires around one change: their minutes from it, which is what a reader wants to check."""
    start, end = window(change)
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    return {
        expression: " ".join(f"{(fire - instant) // MINUTE:+d}" for fire in walk(expression, zone, start, end))
        for expression in GOLDEN_EXPRESSIONS
    }


def golden_file() -> list[dict[str, Any]]:
    return [
        {"zone": zone, "change": change, "note": note, "minutes from the change": golden_fires(zone, change)}
        for zone, change, note in CLOCK_CHANGES
    ]


def golden_cases() -> Iterator[Any]:
    for day in json.loads(GOLDEN.read_text()):
        for expression, fires in day["minutes from the change"].items():
            where = day["zone"], day["change"]
            yield pytest.param(*where, expression, fires, id=f"{' '.join(where)} {expression} ({day['note']})")


@pytest.mark.parametrize(("zone", "change", "_note"), CLOCK_CHANGES)
def test_the_clock_of_the_zone_really_changes_at_that_instant(zone: str, change: str, _note: str) -> None:
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    before, after = ((instant - back).astimezone(time_zone(zone)).utcoffset() for back in (MINUTE, timedelta(0)))
    assert before != after


def test_the_golden_file_is_what_the_walk_over_real_minutes_finds() -> None:
    assert json.loads(GOLDEN.read_text()) == golden_file()


@pytest.mark.parametrize(("zone", "change", "expression", "expected"), list(golden_cases()))
def test_the_fires_around_a_change_of_the_clock_are_the_golden_ones(
    zone: str, change: str, expression: str, expected: str
) -> None:
    start, end = window(change)
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    fires = Schedule.parse(expression, zone).fires(after=start - MINUTE, until=end - MINUTE)
    assert " ".join(f"{(fire - instant) / MINUTE:+g}" for fire in fires) == expected


def terms(low: int, high: int) -> st.SearchStrategy[str]:
    one = st.integers(low, high)
    pair = st.lists(one, min_size=2, max_size=2, unique=True).map(sorted)
    step = st.integers(1, high)
    return st.one_of(
        one.map(str),
        pair.map(lambda p: f"{p[0]}-{p[1]}"),
        st.builds(lambda p, s: f"{p[0]}-{p[1]}/{s}", pair, step),
        st.builds(lambda n, s: f"{n}/{s}", one, step),
        st.builds(lambda s: f"*/{s}", step),
        st.just("*"),
    )


def lists(term: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(term, min_size=1, max_size=3).map(",".join)


MINUTES = st.one_of(st.just("*"), lists(terms(0, 59)), st.sampled_from(["0", "*/30", "*/15", "0,30", "0-59"]))
# The clock changes at night.
HOURS = st.one_of(
    st.just("*"), lists(terms(0, 3)), lists(terms(0, 23)), st.sampled_from(["0", "1", "2", "23", "22-23"])
)
DAYS = st.one_of(st.just("*"), lists(st.one_of(terms(1, 31), st.sampled_from(["L", "LW"]))))
MONTHS = st.one_of(st.just("*"), st.just("*"), lists(terms(1, 12)), st.just("MAR,APR,SEP-NOV"))
WEEKDAYS = st.one_of(
    st.just("*"), lists(st.one_of(terms(0, 7), st.sampled_from(["SUN", "FRI-SAT", "0L", "5L", "SUN#1", "6#4", "7#2"])))
)
# Where the day fields exclude the change of the clock, nothing is learned of it: let most leave it in.
DATES = st.one_of(st.just(("*", "*", "*")), st.tuples(DAYS, MONTHS, WEEKDAYS))
EXPRESSIONS = st.builds(lambda minute, hour, dates: " ".join((minute, hour, *dates)), MINUTES, HOURS, DATES)
AROUND = st.timedeltas(min_value=timedelta(hours=-5), max_value=timedelta(hours=5))


@settings(max_examples=400)
@given(
    where=st.sampled_from(CLOCK_CHANGES),
    expression=EXPRESSIONS,
    questions=st.lists(AROUND, min_size=1, max_size=20),
    hours=st.integers(2, 30),
)
def test_any_schedule_asked_anywhere_around_a_change_agrees_with_the_walk(
    where: tuple[str, str, str], expression: str, questions: list[timedelta], hours: int
) -> None:
    zone, change, _ = where
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    start, end = instant - timedelta(hours=hours), instant + timedelta(hours=hours)
    walked = walk(expression, zone, start, end)
    try:
        schedule = Schedule.parse(expression, zone)
    except InvalidExpressionError:
        assert walked == []
        return
    fires = list(schedule.fires(after=start - MINUTE, until=end - MINUTE))
    assert fires == walked
    assert fires == sorted(set(fires))
    for question in questions:
        asked = instant + question
        later = walked[bisect_right(walked, asked) :]
        answer = schedule.next_after(asked)
        if later and asked >= start:
            assert answer == later[0]
        elif asked >= start:
            assert answer is None or answer >= end


@settings(max_examples=400)
@given(where=st.sampled_from(CLOCK_CHANGES), expression=EXPRESSIONS, first=AROUND, second=AROUND)
def test_next_fires_grow_with_the_question_and_leave_none_out(
    where: tuple[str, str, str], expression: str, first: timedelta, second: timedelta
) -> None:
    zone, change, _ = where
    instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
    try:
        schedule = Schedule.parse(expression, zone)
    except InvalidExpressionError:
        return
    earlier, later = sorted((instant + first, instant + second))
    early, late = schedule.next_after(earlier), schedule.next_after(later)
    if early is None or late is None:
        assert late is None
        return
    assert earlier < early <= late
    assert late > later
    assert early == late or early <= later, "a fire between the questions was passed over"
    assert schedule.next_after(early - datetime.resolution) == early, "the fire is not seen from just before it"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_file(), indent=1) + "\n")
