"""How Kubernetes reads a schedule, held against what its own library answers.

`kubernetes_fires_golden.json` holds fires of robfig/cron 3.0.1, which Kubernetes 1.34 is built with, around changes of
the clock. To write it anew, with Go: copy tests/programs/kubernetes_fires.go into an empty folder, and there
`go mod init fires`, `go get github.com/robfig/cron/v3@v3.0.1`, `go build`; then, with ZONEINFO set to the folder
`zoneinfo` of the package tzdata: `python tests/unit/test_kubernetes_schedule.py ./fires`.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronplane_cli.kubernetes_schedule import (
    IntervalSchedule,
    KubernetesScheduleError,
    WallClockSchedule,
    read_schedule,
)
from cronplane_core.time_zones import time_zone

GOLDEN = Path(__file__).with_name("kubernetes_fires_golden.json")
# A zone, the first instant of a new offset, and what is unusual about it.
CLOCK_CHANGES = [
    ("Europe/Berlin", "2027-03-28T01:00", "02:00 to 03:00"),
    ("Europe/Berlin", "2027-10-31T01:00", "03:00 to 02:00"),
    ("America/New_York", "2027-03-14T07:00", "behind UTC"),
    ("America/New_York", "2027-11-07T06:00", "behind UTC"),
    ("Africa/Cairo", "2027-04-29T22:00", "skips midnight, ahead of UTC"),
    ("Africa/Cairo", "2027-10-28T21:00", "repeats the last hour of a day"),
    ("America/Santiago", "2026-09-06T04:00", "skips midnight, behind UTC"),
    ("Australia/Lord_Howe", "2027-04-03T15:00", "half an hour back"),
    ("Australia/Lord_Howe", "2027-10-02T15:30", "half an hour forward"),
    ("Antarctica/Troll", "2027-03-28T01:00", "two hours forward"),
    ("UTC", "2027-06-01T00:00", "no change"),
]
SCHEDULES = [
    "30 2 * * *",
    "0 0 * * *",
    "30 1 * * *",
    "15 5 * * *",
    "*/40 1-2 * * *",
    "0 */6 * * *",
    "20 * * * *",
    "0 5 * * 5",
    "0 5 * * 0",
    "0 4 */2 * 1",
    "0 4 1,15 * 0",
    "0 4 ? * ?",
    "30 23 28-31 3,4,10 *",
    "0 0 1 * *",
    "@weekly",
    "@every 11h30m",
]
REFUSED = [
    "",
    "* * * *",
    "* * * * * *",
    "60 * * * *",
    "* 24 * * *",
    "* * 0 * *",
    "* * 32 * *",
    "* * * 0 *",
    "* * * 13 *",
    "* * * * 7",
    "* * * * 5-7",
    "* * * * FRI-SUN",
    "*/0 * * * *",
    "5-1 * * * *",
    "1-2-3 * * * *",
    "1/2/3 * * * *",
    "-1 * * * *",
    "MON * * * *",
    "L * * * *",
    "* * L * *",
    "* * * * MON#2",
    "1- * * * *",
    "/5 * * * *",
    "٣ * * * *",
    "9223372036854775808 * * * *",
    "@reboot",
    "@Daily",
    "@every",
    "@every 1d",
    "@every",
    "@every 1h 30m",
    "@every 5",
    "@every 2562048h",
]
TAKEN = [
    ("+5 * * * *", "5 * * * *"),
    ("05 * * * *", "5 * * * *"),
    (",5,, * * * *", "5 * * * *"),
    ("*-5 * * * *", "* * * * *"),
    ("?/30 * * * *", "0,30 * * * *"),
    ("50/5 * * * *", "50,55 * * * *"),
    ("5-5/2 * * * *", "5 * * * *"),
    ("0 0 * jan mon-FRI", "0 0 * 1 1-5"),
    ("@midnight", "0 0 * * *"),
    ("@annually", "0 0 1 1 *"),
    ("0 0 */1 * 1", "0 0 * * 1"),
]
BEFORE, BEHIND = timedelta(days=2), timedelta(days=3)
NOW = datetime(2027, 1, 1, tzinfo=UTC)


def fires(schedule: IntervalSchedule | WallClockSchedule, *, after: datetime, until: datetime) -> Iterator[datetime]:
    fire = schedule.next_after(after)
    while fire is not None and fire <= until:
        yield fire
        fire = schedule.next_after(fire)


def golden() -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return answers


@pytest.mark.parametrize(("zone", "at", "note"), CLOCK_CHANGES)
def test_fires_are_those_of_kubernetes_around_a_change_of_the_clock(zone: str, at: str, note: str) -> None:
    change = datetime.fromisoformat(at).replace(tzinfo=UTC)
    [place] = [place for place in golden() if (place["zone"], place["change"]) == (zone, at)]
    assert list(place["fires"]) == SCHEDULES
    for text, expected in place["fires"].items():
        schedule = read_schedule(text, zone)
        found = [
            fire.replace(tzinfo=None).isoformat()
            for fire in fires(schedule, after=change - BEFORE, until=change + BEHIND)
        ]
        assert found == expected, text


@pytest.mark.parametrize("text", REFUSED)
def test_what_kubernetes_refuses_is_refused(text: str) -> None:
    with pytest.raises(KubernetesScheduleError):
        read_schedule(text, "UTC")


@pytest.mark.parametrize(("text", "plain"), TAKEN)
def test_what_kubernetes_takes_is_read_as_it_does(text: str, plain: str) -> None:
    found, meant = read_schedule(text, "UTC"), read_schedule(plain, "UTC")
    until = NOW + timedelta(days=40)
    assert list(fires(found, after=NOW, until=until)) == list(fires(meant, after=NOW, until=until))


def test_a_step_takes_the_star_away_so_that_either_day_field_will_do() -> None:
    stepped, plain = read_schedule("0 0 */7 * 1", "UTC"), read_schedule("0 0 1-31/7 * 1", "UTC")
    assert isinstance(stepped, WallClockSchedule)
    assert stepped.needs_either_day
    # 1, 8, 15, 22 and 29 January, and the Mondays: 4, 11, 18 and 25.
    days = [fire.day for fire in fires(stepped, after=NOW - timedelta(1), until=NOW + timedelta(days=30))]
    assert days == [1, 4, 8, 11, 15, 18, 22, 25, 29]
    assert days == [fire.day for fire in fires(plain, after=NOW - timedelta(1), until=NOW + timedelta(days=30))]


@pytest.mark.parametrize("text", ["0 0 31 2 *", ", * * * *", "* , * * *", "0 0 * , *", "0 0 30 2 ,"])
def test_a_schedule_may_never_fire(text: str) -> None:
    schedule = read_schedule(text, "UTC")
    assert schedule.next_after(NOW) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h30m", 5400), ("1.5h", 5400), ("90s", 90), ("1500ms", 1), ("1ns", 1), ("0", 1), ("-2h", 1), ("+.5h", 1800)],
)
def test_an_interval_has_whole_seconds_and_at_least_one(text: str, seconds: int) -> None:
    schedule = read_schedule(f"@every {text}", "UTC")
    assert schedule.next_after(NOW) == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize("prefix", ["TZ", "CRON_TZ"])
def test_a_zone_in_the_schedule_is_the_one_that_counts(prefix: str) -> None:
    assert read_schedule(f"{prefix}=Asia/Tokyo 0 9 * * *", "UTC").time_zone == "Asia/Tokyo"


@pytest.mark.parametrize("text", ["TZ=UTC", "TZ=Mars/Phobos 0 9 * * *"])
def test_a_zone_without_a_schedule_or_unknown_is_refused(text: str) -> None:
    with pytest.raises(KubernetesScheduleError):
        read_schedule(text, "UTC")


def one_of(least: int, most: int) -> st.SearchStrategy[str]:
    values = st.integers(least, most)
    ranges = st.tuples(values, values).map(lambda ends: f"{min(ends)}-{max(ends)}")
    steps = st.tuples(st.one_of(st.just("*"), ranges), st.integers(1, most)).map(lambda parts: f"{parts[0]}/{parts[1]}")
    return st.lists(st.one_of(st.just("*"), values.map(str), ranges, steps), min_size=1, max_size=2).map(",".join)


def members(text: str, least: int, most: int) -> set[int]:
    """Read a field by the rules of `one_of`, sharing nothing with the code under test."""
    found: set[int] = set()
    for term in text.split(","):
        span, _, step = term.partition("/")
        first, _, last = f"{least}-{most}".partition("-") if span == "*" else span.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
        if step:
            found -= set(range(int(first), int(last) + 1)) - set(range(int(first), int(last) + 1, int(step)))
    return found


@settings(max_examples=25, deadline=None)
@given(
    minute=one_of(0, 59),
    hour=one_of(0, 23),
    day=one_of(1, 31),
    weekday=one_of(0, 6),
    days_on=st.integers(0, 1500),
)
def test_where_no_clock_changes_fires_are_the_minutes_that_match(
    minute: str, hour: str, day: str, weekday: str, days_on: int
) -> None:
    schedule = read_schedule(f"{minute} {hour} {day} * {weekday}", "Asia/Tokyo")
    start = NOW + timedelta(days=days_on)
    until = start + timedelta(days=2)
    assert list(fires(schedule, after=start, until=until)) == list(
        _matching_minutes((minute, hour, day, weekday), after=start, until=until)
    )


def _matching_minutes(texts: tuple[str, str, str, str], *, after: datetime, until: datetime) -> Iterator[datetime]:
    minutes, hours, days, weekdays = (
        set().union(*(members(term, *bounds) for term in text.split(",")))
        for text, bounds in zip(texts, ((0, 59), (0, 23), (1, 31), (0, 6)), strict=True)
    )
    stars = [any(term in {"*", "*/1"} for term in text.split(",")) for text in texts[2:]]
    moment = after
    while (moment := moment + timedelta(minutes=1)) <= until:
        local = moment.astimezone(time_zone("Asia/Tokyo"))
        matches = [local.day in days, local.isoweekday() % 7 in weekdays]
        if local.minute in minutes and local.hour in hours and (all(matches) if any(stars) else any(matches)):
            yield moment


def test_text_that_is_no_schedule_is_refused_in_words_that_name_the_field() -> None:
    with pytest.raises(KubernetesScheduleError, match="day-of-week"):
        read_schedule("0 0 * * 7", "UTC")


def _ask(program: str) -> None:
    """Write the golden fires anew."""
    questions = [
        {
            "schedule": schedule,
            "zone": zone,
            "after": (datetime.fromisoformat(at) - BEFORE).isoformat() + "Z",
            "until": (datetime.fromisoformat(at) + BEHIND).isoformat() + "Z",
        }
        for zone, at, _ in CLOCK_CHANGES
        for schedule in SCHEDULES
    ]
    asked = "\n".join(map(json.dumps, questions))
    told = subprocess.run([program], input=asked, capture_output=True, text=True, check=True).stdout.splitlines()
    answers = iter(map(json.loads, told))
    places = [
        {"zone": zone, "change": at, "note": note, "fires": {schedule: next(answers) for schedule in SCHEDULES}}
        for zone, at, note in CLOCK_CHANGES
    ]
    GOLDEN.write_text("[\n" + ",\n".join(map(json.dumps, places)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    _ask(sys.argv[1])
