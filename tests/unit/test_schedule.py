"""Which schedules are accepted, what they answer at the edges, and how they read.

The days on which the clock changes are compared with an independent walk in `test_schedule_golden.py`.
"""

import copy
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronplane_core import time_zones
from cronplane_core.errors import CronplaneError
from cronplane_core.schedule import (
    MACROS,
    InvalidExpressionError,
    Schedule,
    ScheduleError,
    UnknownTimeZoneError,
    describe,
)
from cronplane_core.time_zones import time_zone, zone_names

NOW = datetime(2026, 1, 1, tzinfo=UTC)

ACCEPTED = {
    "* * * * *": "2026-01-01T00:01",
    "*/15 * * * *": "2026-01-01T00:15",
    "5/20 * * * *": "2026-01-01T00:05",
    "30 10-20/5 * * *": "2026-01-01T10:30",
    "0 9 * * 0": "2026-01-04T09:00",
    "0 9 * * 7": "2026-01-04T09:00",
    "0 9 * * SUN": "2026-01-04T09:00",
    "0 9 * * 6-7": "2026-01-03T09:00",
    "0 9 * * MON-FRI": "2026-01-01T09:00",
    "0 9 * * mon-fri": "2026-01-01T09:00",
    "0 0 1 feb,APR *": "2026-02-01T00:00",
    "0 0 29 2 *": "2028-02-29T00:00",
    "0 0 31 1,2 *": "2026-01-31T00:00",
    "0 0 L * *": "2026-01-31T00:00",
    "0 0 L 2 *": "2026-02-28T00:00",
    "0 0 LW * *": "2026-01-30T00:00",
    "0 0 * * 5L": "2026-01-30T00:00",
    "0 0 * * MON#2": "2026-01-12T00:00",
    "0 0 * 2 MON#5": "2044-02-29T00:00",
    "@yearly": "2027-01-01T00:00",
    "@annually": "2027-01-01T00:00",
    "@monthly": "2026-02-01T00:00",
    "@weekly": "2026-01-04T00:00",
    "@daily": "2026-01-02T00:00",
    "@midnight": "2026-01-02T00:00",
    "@hourly": "2026-01-01T01:00",
    # Both day fields restricted: either suffices. A star in one: both must hold.
    "0 0 13 * FRI": "2026-01-02T00:00",
    "0 0 2 * MON": "2026-01-02T00:00",
    "0 0 */2 * FRI": "2026-01-09T00:00",
    "0 0 31 2 MON": "2026-02-02T00:00",
    "0 0 13 * */5": "2026-02-13T00:00",
}
REFUSED = {
    "": "0 fields",
    "* * * *": "4 fields",
    "* * * * * *": "6 fields",
    "0 * * * * * 2026": "7 fields",
    "@reboot": "@daily",
    "@every 5m": "@daily",
    "@Daily": "@daily",
    "@daily x": "@daily",
    "60 * * * *": "minute field '60'",
    "-1 * * * *": "minute field '-1'",
    "* 24 * * *": "hour field '24'",
    "0 0 0 * *": "day-of-month field '0'",
    "0 0 32 * *": "day-of-month field '32'",
    "0 0 1 13 *": "month field '13'",
    "0 0 1 0 *": "month field '0'",
    "0 0 * * 8": "day-of-week field '8'",
    "*/0 * * * *": "minute field '*/0'",
    "*/x * * * *": "minute field '*/x'",
    "1/ * * * *": "minute field '1/'",
    "5-1 * * * *": "low to high",
    "0 0 * * FRI-MON": "low to high",
    "0 22-2 * * *": "low to high",
    "5-5/2 * * * *": "'5-5' is one value",
    "0 0 * * MON-1/2": "'MON-1' is one value",
    "1,,2 * * * *": "minute field",
    ", * * * *": "minute field",
    "1.5 * * * *": "minute field",
    "H * * * *": "minute field",
    "? * * * *": "minute field",
    "0 0 ? * MON": "day-of-month field '?'",
    "0 0 1 * ?": "day-of-week field '?'",
    "0 0 15W * *": "day-of-month field",
    "0 0 L-3 * *": "day-of-month field",
    "0 0 * * L": "day-of-week field",
    "0 0 * * MONL": "day-of-week field",
    "0 0 * * MON#6": "day-of-week field",
    "0 0 * * MON#0": "day-of-week field",
    "MON * * * *": "minute field",
    "0 0 * MON *": "month field",
    "0 0 31 2 *": "can never fire",
    "0 0 30 FEB *": "can never fire",
    "0 0 31 4,6,9,11 *": "can never fire",
    "0 0 30 2 */2": "can never fire",
    "0 0 */31 2 MON#5": "can never fire",
    "* * * * *\n": "one line",
    "* * *\n* *": "one line",
    "*\t* * * *": "printable",
    "* * * * *\x00": "printable",
    "٣ * * * *": "plain digits",
    "\uff13 * * * *": "plain digits",
    "*\u00a0* * * *": "printable",
    "\ud800 * * * *": "printable",
    "0 0 * * \uff2dON": "printable",
    ",".join(["1"] * 2048) + " * * * *": "4103 characters",
    " " * 250 + "* * * * *": "259 characters",
}
UNKNOWN_ZONES = [
    "",
    " ",
    "Mars/Phobos",
    "../../etc/passwd",
    "/etc/localtime",
    "Europe",
    "Europe/",
    "Europe/../Europe/Berlin",
    "europe/berlin",
    "Europe/Berlin ",
    "Europe/Berlin\x00",
    "+02:00",
    "UTC+2",
    "CEST",
    "localtime",
    "posixrules",
    "posix/Europe/Berlin",
    "right/UTC",
    "zone.tab",
    "tzdata.zi",
    "__init__.py",
    "\ud800",
    "x" * 100_000,
]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fire_times(expression: str, zone: str, after: str, until: str) -> list[str]:
    fires = Schedule.parse(expression, zone).fires(after=at(after), until=at(until))
    return [fire.strftime("%dT%H:%M") for fire in fires]


@pytest.mark.parametrize(("expression", "first"), ACCEPTED.items())
def test_cron_expressions_are_accepted_and_fire_first_when_cron_would(expression: str, first: str) -> None:
    assert Schedule.parse(expression, "UTC").next_after(NOW) == at(first)


@pytest.mark.parametrize(("expression", "reason"), REFUSED.items(), ids=lambda text: ascii(text)[:40])
def test_other_expressions_are_refused_with_a_reason_to_act_on(expression: str, reason: str) -> None:
    with pytest.raises(InvalidExpressionError) as refused:
        Schedule.parse(expression, "UTC")
    message = str(refused.value)
    assert reason in message
    assert message.isprintable()
    assert len(message) < 700


@pytest.mark.parametrize("name", UNKNOWN_ZONES, ids=lambda text: ascii(text)[:40])
def test_names_outside_the_iana_database_are_refused(name: str) -> None:
    with pytest.raises(UnknownTimeZoneError, match="use an IANA name") as refused:
        Schedule.parse("* * * * *", name)
    assert len(str(refused.value)) < 700


def test_every_name_of_the_pinned_database_is_a_zone() -> None:
    assert len(zone_names()) > 500
    assert {time_zone(name).key for name in zone_names()} == zone_names()


def test_zones_do_not_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyThePinnedFiles:
        @staticmethod
        def from_file(rules: BinaryIO, *, key: str) -> ZoneInfo:
            opened.append(Path(rules.name))
            return ZoneInfo.from_file(rules, key=key)

    opened: list[Path] = []
    monkeypatch.setattr(time_zones, "ZoneInfo", OnlyThePinnedFiles)
    time_zone.cache_clear()
    assert time_zone("Europe/Berlin").utcoffset(at("2026-07-01T00:00")) == timedelta(hours=2)
    assert opened == [Path(str(files("tzdata"))) / "zoneinfo/Europe/Berlin"]


def test_one_root_catches_every_refusal_of_this_module() -> None:
    assert issubclass(InvalidExpressionError, ScheduleError)
    assert issubclass(UnknownTimeZoneError, ScheduleError)
    assert issubclass(ScheduleError, CronplaneError)


def test_equal_words_share_one_schedule() -> None:
    schedule = Schedule.parse("0 9 * * 1-5", "Europe/Berlin")
    assert Schedule.parse("  0  9 * *   1-5 ", "Europe/Berlin") is schedule
    assert schedule.expression == "0 9 * * 1-5"
    assert Schedule.parse("0 9 * * 1-5", "UTC") != schedule
    assert len({schedule, Schedule.parse("0 9 * * 1-5", "Europe/Berlin"), Schedule.parse("@daily", "UTC")}) == 2


def test_a_schedule_is_copied_and_sent_as_its_words_and_stays_the_shared_one() -> None:
    schedule = Schedule.parse("@daily", "Europe/Berlin")
    assert copy.copy(schedule) is schedule
    assert copy.deepcopy({"of": schedule})["of"] is schedule
    assert len(pickle.dumps(schedule)) < 200


@pytest.fixture
def restless_threads() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("restless_threads")
def test_threads_that_share_a_schedule_do_not_disturb_each_other() -> None:
    schedule = Schedule.parse("*/7 3,17 */3 * 1-5", "Europe/Berlin")
    questions = [NOW + timedelta(hours=7 * n) for n in range(400)]
    alone = [schedule.next_after(question) for question in questions]
    with ThreadPoolExecutor(4) as threads:
        together = [list(threads.map(schedule.next_after, questions)) for _ in range(4)]
    assert together == [alone] * 4


def test_the_fire_after_a_fire_is_the_next_one() -> None:
    schedule = Schedule.parse("*/10 * * * *", "UTC")
    assert schedule.next_after(at("2026-01-01T00:10")) == at("2026-01-01T00:20")
    assert schedule.next_after(at("2026-01-01T00:09:59.999999")) == at("2026-01-01T00:10")
    assert schedule.next_after(at("2026-01-01T00:10:00.000001")) == at("2026-01-01T00:20")
    assert schedule.next_after(at("2026-01-01T00:10:59.5")) == at("2026-01-01T00:20")


def test_any_aware_instant_is_understood_and_the_answer_is_in_utc() -> None:
    noon_in_tokyo = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=9)))
    fire = Schedule.parse("30 * * * *", "Asia/Kathmandu").next_after(noon_in_tokyo)
    assert fire == at("2026-01-01T03:45")
    assert fire is not None
    assert fire.tzinfo is UTC


def test_a_naive_question_is_refused() -> None:
    schedule, naive = Schedule.parse("@daily", "UTC"), NOW.replace(tzinfo=None)
    with pytest.raises(ScheduleError, match="aware"):
        schedule.next_after(naive)
    with pytest.raises(ScheduleError, match="aware"):
        list(schedule.fires(after=NOW, until=naive))
    with pytest.raises(ScheduleError, match="aware"):
        schedule.shortest_interval(from_=naive)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/New_York"])
@pytest.mark.parametrize("expression", ["* * * * *", "0 0 * * *", "0 0 29 2 *", "0 0 1 1 *"])
def test_at_the_end_of_the_calendar_there_is_no_next_fire(expression: str, zone: str) -> None:
    schedule = Schedule.parse(expression, zone)
    assert schedule.next_after(datetime.max.replace(tzinfo=UTC)) is None
    last = list(schedule.fires(after=at("9999-12-30T00:00"), until=datetime.max.replace(tzinfo=UTC)))
    assert all(earlier < later for earlier, later in pairwise(last))


def test_a_wildcard_that_lies_in_a_skipped_hour_each_year_has_no_next_fire() -> None:
    # Cairo's clock skips the first hour of April's last Friday.
    assert Schedule.parse("* 0 * 4 5L", "Africa/Cairo").next_after(NOW) is None
    assert Schedule.parse("0 0 * 4 5L", "Africa/Cairo").next_after(NOW) == at("2026-04-23T22:00")


def test_fires_leave_out_the_start_and_include_the_end() -> None:
    assert fire_times("0 * * * *", "UTC", "2026-01-01T00:00", "2026-01-01T03:00") == [
        "01T01:00",
        "01T02:00",
        "01T03:00",
    ]


def test_fires_stop_at_their_limit() -> None:
    schedule, until = Schedule.parse("* * * * *", "UTC"), NOW + timedelta(days=9000)
    assert len(list(schedule.fires(after=NOW, until=until, limit=3))) == 3
    assert list(schedule.fires(after=NOW, until=until, limit=0)) == []
    assert len(list(islice(schedule.fires(after=NOW, until=until), 4000))) == 4000


def test_fires_are_next_after_repeated() -> None:
    schedule, fire = Schedule.parse("*/20 1-3 * * *", "Europe/Berlin"), at("2026-10-24T12:00")
    for yielded in schedule.fires(after=fire, until=at("2026-10-26T12:00")):
        assert schedule.next_after(fire) == yielded
        fire = yielded
    assert schedule.next_after(fire) == at("2026-10-27T00:00")


def test_a_fixed_time_that_the_clock_skips_fires_once_when_it_has_changed() -> None:
    assert fire_times("30 2 * * *", "Europe/Paris", "2026-03-28T12:00", "2026-03-29T12:00") == ["29T01:00"]
    assert fire_times("0,30 2,3 * * *", "Europe/Paris", "2026-03-28T12:00", "2026-03-29T12:00") == [
        "29T01:00",
        "29T01:30",
    ]


def test_a_wildcard_that_the_clock_skips_does_not_fire() -> None:
    assert fire_times("*/30 2 * * *", "Europe/Paris", "2026-03-28T12:00", "2026-03-29T12:00") == []


def test_a_fixed_time_that_the_clock_repeats_fires_once() -> None:
    assert fire_times("30 2 * * *", "Europe/Paris", "2026-10-24T12:00", "2026-10-25T12:00") == ["25T00:30"]


def test_a_wildcard_that_the_clock_repeats_fires_twice() -> None:
    expected = ["25T00:00", "25T00:30", "25T01:00", "25T01:30"]
    assert fire_times("*/30 2 * * *", "Europe/Paris", "2026-10-24T12:00", "2026-10-25T12:00") == expected


def test_a_fixed_time_on_a_date_that_was_skipped_fires_when_the_next_date_begins() -> None:
    # Samoa went from 29 December 2011 to the 31st.
    assert fire_times("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00", "2012-01-01T00:00") == [
        "29T22:00",
        "30T10:00",
        "30T22:00",
        "31T22:00",
    ]


@pytest.mark.parametrize(
    ("expression", "zone", "shortest"),
    [
        ("* * * * *", "Europe/Berlin", timedelta(minutes=1)),
        ("*/7 * * * *", "UTC", timedelta(minutes=4)),
        ("0,1 0 1 1 *", "UTC", timedelta(minutes=1)),
        ("59,0 23,0 * * *", "UTC", timedelta(minutes=1)),
        ("0 9 * * *", "UTC", timedelta(days=1)),
        ("0 9 * * *", "Europe/Berlin", timedelta(hours=23)),
        ("0 2,3 * * *", "Europe/Berlin", timedelta(hours=1)),
        ("30 1,3 * * *", "Europe/Berlin", timedelta(hours=1)),
        ("30 2 * * *", "Europe/Berlin", timedelta(hours=23, minutes=30)),
        ("0 0 1 * *", "UTC", timedelta(days=28)),
        ("0 0 29 2 *", "UTC", timedelta(days=400)),
        ("*/45 * * * *", "Australia/Lord_Howe", timedelta(minutes=15)),
        ("50 */2 * * *", "Europe/Berlin", timedelta(hours=1)),
        ("0 */3 * * *", "Antarctica/Troll", timedelta(hours=1)),
    ],
)
def test_the_shortest_interval_is_known_for_schedules_that_hide_it(
    expression: str, zone: str, shortest: timedelta
) -> None:
    assert Schedule.parse(expression, zone).shortest_interval(from_=at("2026-01-10T08:17")) == shortest


@pytest.mark.parametrize(
    ("expression", "start", "shortest"),
    [
        ("5,59 */23 6 * *", "2010-11-01T00:00", timedelta(minutes=6)),
        ("5,35 */23 6 * *", "2010-11-07T02:30:30", timedelta(minutes=30)),
    ],
)
def test_the_shortest_interval_sees_minutes_that_come_again_after_midnight(
    expression: str, start: str, shortest: timedelta
) -> None:
    # In Newfoundland one minute of 7 November 2010 had passed when the clock went back into the 6th.
    schedule = Schedule.parse(expression, "America/St_Johns")
    assert schedule.shortest_interval(from_=at(start), horizon=timedelta(days=10)) == shortest


TIMES = st.tuples(
    st.sampled_from(["0", "30", "*/25", "59", "0,59", "7,50"]), st.sampled_from(["*", "*/5", "0", "1-3", "0,23", "2"])
)
DATES = st.sampled_from(["* * *", "1 * *", "L * *", "* * 0,6", "* * 5#1", "30,31 3,10 *", "*/9 * *"])
ZONES = st.sampled_from(
    ["UTC", "Europe/Berlin", "Africa/Cairo", "America/St_Johns", "Antarctica/Troll", "Pacific/Apia", "America/Havana"]
)


@settings(max_examples=200)
@given(times=TIMES, dates=DATES, zone=ZONES, start=st.integers(0, 730 * 24 * 60), days=st.integers(1, 60))
def test_the_shortest_interval_is_that_of_all_fires_listed(
    times: tuple[str, str], dates: str, zone: str, start: int, days: int
) -> None:
    schedule = Schedule.parse(" ".join((*times, dates)), zone)
    after, horizon = at("2010-01-01") + timedelta(minutes=start), timedelta(days)
    fires = list(schedule.fires(after=after, until=after + horizon))
    listed = min((later - earlier for earlier, later in pairwise(fires)), default=horizon)
    assert schedule.shortest_interval(from_=after, horizon=horizon) == listed


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("* * * * *", "Every minute, UTC"),
        ("*/15 * * * *", "Every 15th minute of every hour, UTC"),
        ("*/21 * * * *", "Every 21st minute of every hour, UTC"),
        ("0 9 * * 1-5", "At 09:00 on Monday through Friday, UTC"),
        ("@daily", "At 00:00 every day, UTC"),
        ("0,30 9,10 * * *", "At 09:00, 09:30, 10:00, and 10:30 every day, UTC"),
        ("*/30 2 * * *", "Every 30th minute from 02:00 through 02:59, UTC"),
        ("0 0 29 2 *", "At 00:00 on February 29, UTC"),
        ("0 0 L * *", "At 00:00 on the last day of every month, UTC"),
        ("0 0 LW * *", "At 00:00 on the last weekday of every month, UTC"),
        ("0 0 * * 5L", "At 00:00 on the last Friday of the month, UTC"),
        ("0 0 * * mon#2", "At 00:00 on the second Monday of the month, UTC"),
        (
            "0 0 11,12,13,21,22,23,31 * *",
            "At 00:00 on the 11th, the 12th, the 13th, the 21st, the 22nd, the 23rd, and the 31st day of month, UTC",
        ),
        ("0 0 13 * FRI", "At 00:00 on the 13th day of month or on Friday, UTC"),
        ("0 0 */2 * FRI", "At 00:00 on every second day of month if it's on Friday, UTC"),
    ],
)
def test_schedules_read_as_english(expression: str, text: str) -> None:
    assert describe(Schedule.parse(expression, "UTC")) == text


@pytest.mark.parametrize("expression", [*ACCEPTED, *MACROS])
def test_every_accepted_schedule_can_be_described(expression: str) -> None:
    text = describe(Schedule.parse(expression, "Europe/Paris"))
    assert text.endswith(", Europe/Paris")
    assert not text.startswith(",")
