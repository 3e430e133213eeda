"""When a cron fires: the one place that computes it, so that validation, preview and firing cannot disagree.

A schedule is a cron expression of five fields, read on the wall clock of a time zone. cronsim reads the fields and
finds the days in the calendar, which has no zone; this module turns the nominal minutes of those days into instants, by
the folds of PEP 495. With `first` and `second` for what a nominal minute means under `fold=0` and under `fold=1`:

    first == second   the minute happens once
    first <  second   the clock goes back, and the minute happens twice
    first >  second   the clock skips the minute: it changes at some instant in (second, first]

Daylight saving, as Vixie cron treats it: a schedule is *fixed-time* when neither its minute nor its hour field begins
with `*`, and each of its nominal minutes fires once, the first time it happens or, if skipped, as soon as the clock has
changed. Every other schedule is a *wildcard* and follows the wall clock: skipped minutes never fire, repeated ones fire
twice.

It refuses to read a clock, to guess a time zone, and to compare two datetimes of one zone (Python ignores the fold
there): instants are aware datetimes in UTC, nominal minutes are naive ones.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import dropwhile, islice, takewhile
from operator import sub
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from cronsim.explain import explain

from cronplane_core import time_zones
from cronplane_core.errors import CronplaneError

MAX_EXPRESSION_LENGTH = 256
MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_MINUTE = timedelta(minutes=1)
_DAY = timedelta(days=1)
_A_DAY = tuple(timedelta(minutes=minute) for minute in range(24 * 60))
# The search needs an end, or it would walk to the year 9999 for a fire that never comes. The rarest date there is, a
# 29 February on a given weekday, returns within 40 years, even across 2100.
_SEARCH_YEARS = 50
# Any date will do: what fires at all fires within the search's years of every date.
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_ORDINAL_ENDINGS = {"1th": "1st", "2th": "2nd", "3th": "3rd"}
# Name, cronsim's attribute, and what it may hold.
_FIELDS = (
    ("minute", "minutes", "0-59"),
    ("hour", "hours", "0-23"),
    ("day-of-month", "days", "1-31, L (the last day) or LW (the last weekday)"),
    ("month", "months", "1-12 or JAN-DEC"),
    (
        "day-of-week",
        "weekdays",
        "0-7 or SUN-SAT (0 and 7 are Sunday), 5L (the last Friday) or MON#2 (the second Monday)",
    ),
)


class ScheduleError(CronplaneError):
    """A schedule, or a question to one, that has no meaning; the message says what to write instead."""


class InvalidExpressionError(ScheduleError):
    """The cron expression is refused; the message names the field and what it may hold."""


class UnknownTimeZoneError(ScheduleError):
    """The time zone is not a name of the IANA database."""


class _Reading(NamedTuple):
    """What a nominal time means under `fold=0` and under `fold=1`, as instants in UTC."""

    first: datetime
    second: datetime

    @property
    def is_skipped(self) -> bool:
        return self.first > self.second

    @property
    def is_repeated(self) -> bool:
        return self.first < self.second


@dataclass(frozen=True, slots=True)
class Schedule:
    """A cron expression on the wall clock of a time zone; made by `Schedule.parse`, safe to share between threads.

    `expression` is as written, single-spaced (`@daily` stays `@daily`); `time_zone` is an IANA name. Two schedules are
    equal when both are.
    """

    expression: str
    time_zone: str
    # Matches midnights only, and is copied before it walks: threads share it, and a copy is cheaper than parsing again.
    _calendar: CronSim = field(repr=False, compare=False)
    _minutes_of_day: tuple[timedelta, ...] = field(repr=False, compare=False)
    _zone: ZoneInfo = field(repr=False, compare=False)
    _is_fixed_time: bool = field(repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, time_zone: str) -> "Schedule":
        """Read a schedule; asked again for the same words, it answers with the same object (the last 4096 are kept).

        Raises:
            InvalidExpressionError: the expression is not cron's, or no date of the calendar satisfies it.
            UnknownTimeZoneError: the zone is not an IANA name.
        """
        return _parse(_normalize(expression), time_zone)

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the first fire strictly after an aware `instant`, in UTC.

        None when none follows within 50 years, or before the calendar of `datetime` ends in the zone (year 9999).

        Raises:
            ScheduleError: `instant` is naive.
        """
        following = self._next_fixed_time if self._is_fixed_time else self._next_wildcard
        # OverflowError is how datetime says that its calendar ends.
        with suppress(OverflowError):
            return following(_utc(instant))
        return None

    def fires(self, *, after: datetime, until: datetime, limit: int | None = None) -> Iterator[datetime]:
        """Yield the fires in (after, until], in UTC and in order, at most `limit` of them.

        Raises:
            ScheduleError: `after` or `until` is naive.
        """
        end = _utc(until)
        yield from islice(takewhile(lambda fire: fire <= end, self._fires_after(_utc(after))), limit)

    def _fires_after(self, instant: datetime) -> Iterator[datetime]:
        if not self._is_fixed_time:
            while (fire := self.next_after(instant)) is not None:
                yield fire
                instant = fire
            return
        with suppress(OverflowError):
            for fire in self._fixed_times(instant):
                # Those that the clock skips in one go fire together.
                if fire > instant:
                    yield fire
                    instant = fire

    def shortest_interval(self, *, from_: datetime, horizon: timedelta = timedelta(days=400)) -> timedelta:
        """Return the exact shortest time between two consecutive fires in (from_, from_ + horizon].

        With fewer than two fires there it is `horizon`. The default spans every change of the clock in a year.

        Raises:
            ScheduleError: `from_` is naive.
        """
        after, until = _utc(from_), _utc(from_) + horizon
        minutes = self._minutes_of_day
        within_a_day = _shortest_gap(minutes, default=horizon)
        shortest, fires = horizon, list[datetime]()
        for day in self._days_between(after, until):
            if not self._runs_straight(day, after, until):
                fires.extend(self._fires_of(day, minutes))
                continue
            # Such days are alike inside: look into one, and place the first fire and the last of each.
            shortest = within_a_day
            if shortest == _MINUTE:
                return shortest
            fires.extend(self._fires_of(day, (minutes[0], minutes[-1])))
        fires = sorted(fire for fire in fires if after < fire <= until)
        return min(shortest, _shortest_gap(fires, default=horizon))

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        # The zone cannot be pickled, and a copy should stay the shared object.
        return Schedule.parse, (self.expression, self.time_zone)

    def _next_fixed_time(self, instant: datetime) -> datetime | None:
        # In a repeated hour, the minutes ahead on the dial have already had their turn: pass them over.
        return next((fire for fire in self._fixed_times(instant) if fire > instant), None)

    def _fixed_times(self, instant: datetime) -> Iterator[datetime]:
        return map(self._once, self._nominal_minutes(after=instant.astimezone(self._zone)))

    def _next_wildcard(self, instant: datetime) -> datetime | None:
        local = instant.astimezone(self._zone)
        fire = self._next_reading(after=instant, local=local)
        reading = _read(local, self._zone)
        if not reading.is_repeated or local.fold:
            return fire
        # The clock is about to go back: minutes behind us on the dial come again before any that follow the change.
        change = _clock_change(reading.first, reading.second, self._zone)
        if fire is not None and fire < change:
            return fire
        return self._next_reading(
            after=change - datetime.resolution, local=change.astimezone(self._zone) - datetime.resolution
        )

    def _nominal_minutes(self, *, after: datetime) -> Iterator[datetime]:
        """Minutes that match on the dial, naive and in the calendar's order, later than the time that `after` shows."""
        after = after.replace(tzinfo=None, fold=0)
        midnight = _midnight(after)
        for day in _days(self._calendar, first=midnight):
            start = bisect_right(self._minutes_of_day, after - midnight) if day == midnight else 0
            for index in range(start, len(self._minutes_of_day)):
                yield day + self._minutes_of_day[index]

    def _next_reading(self, *, after: datetime, local: datetime) -> datetime | None:
        """First instant beyond `after` at which the clock shows a nominal minute beyond `local`."""
        for nominal in self._nominal_minutes(after=local):
            reading = _read(nominal, self._zone)
            if not reading.is_skipped:
                return reading.first if reading.first > after else reading.second
        return None

    def _once(self, nominal: datetime) -> datetime:
        """The one fire of a nominal minute in a fixed-time schedule."""
        reading = _read(nominal, self._zone)
        return _clock_change(reading.second, reading.first, self._zone) if reading.is_skipped else reading.first

    def _fires_of(self, day: datetime, minutes: Iterable[timedelta]) -> Iterator[datetime]:
        """The fires, in no order and maybe twice, of the given minutes of a nominal day."""
        for minute in minutes:
            if self._is_fixed_time:
                yield self._once(day + minute)
            elif not (reading := _read(day + minute, self._zone)).is_skipped:
                yield from reading

    def _days_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Nominal midnights of the days that match and have a minute in (after, until]."""
        days = _days(self._calendar, first=_midnight(after.astimezone(self._zone) - _DAY))
        later = dropwhile(lambda day: _read(day + _DAY, self._zone).second <= after, days)
        return takewhile(lambda day: _read(day, self._zone).first <= until, later)

    def _runs_straight(self, day: datetime, after: datetime, until: datetime) -> bool:
        """Whether a nominal day lies within (after, until] and the clock does not change in it."""
        # The latest reading of its end, or a change that repeats the minutes before midnight would go unseen.
        start, end = _read(day, self._zone).first, _read(day + _DAY, self._zone).second
        return after < start and end <= until and end - start == _DAY


@lru_cache(maxsize=4096)
def describe(schedule: Schedule) -> str:
    """Say a schedule in English for people: "At 09:00 on Monday through Friday, Europe/Paris"."""
    text = explain(" ".join(_five_fields(schedule.expression)))
    # cronsim says "and" where either of two day fields suffices, and ends every ordinal from ten up in "th".
    text = text.replace(" and on ", " or on ")
    text = re.sub(r"(?<=[02-9])[123]th\b", lambda ordinal: _ORDINAL_ENDINGS[ordinal[0]], text)
    return f"{text}, {schedule.time_zone}"


def _normalize(expression: str) -> str:
    if len(expression) > MAX_EXPRESSION_LENGTH:
        raise InvalidExpressionError(
            f"the cron expression has {len(expression)} characters, {MAX_EXPRESSION_LENGTH} are allowed: "
            "use ranges and steps, or several crons"
        )
    if not (expression.isascii() and expression.isprintable()):
        raise InvalidExpressionError(
            f"the cron expression {expression!a} holds characters that are not printable ASCII: "
            "use plain digits, letters, spaces and * , - / # only, on one line"
        )
    return " ".join(expression.split())


@lru_cache(maxsize=4096)
def _parse(expression: str, time_zone: str) -> Schedule:
    minute, hour, *date_fields = _five_fields(expression)
    for position, text in enumerate((minute, hour, *date_fields)):
        _check_field(position, text)
    calendar = _calendar(" ".join(date_fields))
    if calendar is None:
        raise InvalidExpressionError(
            f"the cron expression {expression!r} can never fire: no date has that day, month and weekday together"
        )
    return Schedule(
        expression=expression,
        time_zone=time_zone,
        _calendar=calendar,
        _minutes_of_day=_minutes_of_day(minute, hour),
        _zone=_zone(time_zone),
        _is_fixed_time=not (minute.startswith("*") or hour.startswith("*")),
    )


def _five_fields(expression: str) -> list[str]:
    fields = _macro(expression).split() if expression.startswith("@") else expression.split()
    if (count := len(fields)) != len(_FIELDS):
        raise InvalidExpressionError(
            f"the cron expression {expression!r} has {count} fields, cron has five: minute, hour, day-of-month, month, "
            "day-of-week (there is no field for seconds or years)"
        )
    return fields


def _macro(expression: str) -> str:
    try:
        return MACROS[expression]
    except KeyError as unknown:
        raise InvalidExpressionError(
            f"{expression!r} is no macro of cron's calendar: use five fields or one of {', '.join(MACROS)}"
        ) from unknown


# Many schedules differ in their times only, or in their dates; what they share is read once and kept once.
@lru_cache(maxsize=4096)
def _calendar(date_fields: str) -> CronSim | None:
    """The days that match, or None if none ever does."""
    try:
        calendar = CronSim(f"0 0 {date_fields}", _EPOCH)
    except CronSimError:
        return None
    return None if next(_days(calendar, first=_EPOCH), None) is None else calendar


@lru_cache(maxsize=4096)
def _minutes_of_day(minute: str, hour: str) -> tuple[timedelta, ...]:
    times = CronSim(f"{minute} {hour} * * *", _EPOCH)
    return tuple(_A_DAY[60 * h + m] for h in sorted(times.hours) for m in sorted(times.minutes))


@lru_cache(maxsize=4096)
def _check_field(position: int, text: str) -> None:
    _values(position, text)
    for term in text.split(","):
        span, step, _ = term.partition("/")
        # cronsim takes 5-5/2 for 5/2, which runs on to the field's end; other crons take it for 5.
        if step and "-" in span and len(_values(position, span)) == 1:
            raise InvalidExpressionError(
                f"the {_FIELDS[position][0]} field {text!r} is not valid: {span!r} is one value, which takes no step"
            )


def _values(position: int, text: str) -> Collection[object]:
    """What one field means by itself, in cronsim's terms."""
    name, attribute, allowed = _FIELDS[position]
    fields = ["*"] * len(_FIELDS)
    fields[position] = text
    try:
        values: Collection[object] = getattr(CronSim(" ".join(fields), _EPOCH), attribute)
    except CronSimError as refused:
        raise InvalidExpressionError(
            f"the {name} field {text!r} is not valid: use *, {allowed}; lists 1,2, ranges 1-5 from low to high, "
            "and steps */2 from 1 up"
        ) from refused
    return values


def _zone(name: str) -> ZoneInfo:
    try:
        return time_zones.time_zone(name)
    except KeyError as unknown:
        raise UnknownTimeZoneError(
            f"unknown time zone {name[:64]!a}: use an IANA name in its exact spelling, such as UTC or Europe/Paris"
        ) from unknown


def _utc(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ScheduleError(f"{instant.isoformat()} has no time zone: ask with an aware datetime, best in UTC")
    return instant.astimezone(UTC)


def _days(calendar: CronSim, *, first: datetime) -> Iterator[datetime]:
    """Midnights that match, from a given one on, that one included."""
    walk = copy(calendar)
    walk.dt = first
    with suppress(StopIteration, OverflowError):  # no match for 50 years; the end of the year 9999
        while True:
            walk.advance()
            if walk.dt.year > first.year + _SEARCH_YEARS:
                return
            yield walk.dt
            walk.dt += _DAY


def _midnight(local: datetime) -> datetime:
    return local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)


def _read(nominal: datetime, zone: ZoneInfo) -> _Reading:
    return _Reading(
        nominal.replace(tzinfo=zone, fold=0).astimezone(UTC), nominal.replace(tzinfo=zone, fold=1).astimezone(UTC)
    )


def _clock_change(before: datetime, until: datetime, zone: ZoneInfo) -> datetime:
    """The instant in (before, until] from which the zone has the offset that it has at `until`; a whole second."""
    start, settled = before.replace(microsecond=0), until.astimezone(zone).utcoffset()

    def has_changed(seconds: int) -> bool:
        return (start + timedelta(seconds=seconds)).astimezone(zone).utcoffset() == settled

    span = int((until - start).total_seconds())
    return start + timedelta(seconds=bisect_left(range(span), x=True, key=has_changed))


def _shortest_gap(times: Sequence[datetime] | Sequence[timedelta], *, default: timedelta) -> timedelta:
    """The shortest gap between neighbours in a sorted sequence; equal times are one."""
    gaps = map(sub, times[1:], times)
    return min(filter(None, gaps), default=default)
