"""When a CronJob of Kubernetes fires, so that it can be held against when a cron of ours does.

Kubernetes 1.34 reads a schedule with `ParseStandard` of robfig/cron 3.0.1 and asks it for the next fire after the last
one. What the library does is in its documentation; what it does on the days on which a clock changes is not, and was
found by asking it (tests/unit/kubernetes_fires_golden.json holds its answers). It differs from cron as most know it:

- 7 is no weekday, `?` is `*`, and a step above 1 takes the star away: `*/2` in one of the two day fields counts as a
  restriction, so that a date needs to satisfy either field and not both.
- It does not compute a date, it walks to one: while a unit does not match, it goes to the beginning of the next unit,
  by the wall clock for months and days and by the real one for hours and minutes. A minute that the clock skips never
  comes, one that is repeated comes twice, and a walk over a changing clock can lead past a day or into a wrong one.

This module follows that walk, faults included. It refuses to improve it, and to know anything of our own schedules.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronplane_cli.errors import CommandError
from cronplane_core.time_zones import time_zone

_SECOND, _MINUTE, _HOUR, _DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_SEARCH_YEARS = 5
_NOON = 12
_EVERY = "@every "
_DESCRIPTORS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_NUMBER = re.compile(r"\+?\d+", re.ASCII)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = rf"(\d+\.?\d*|\.\d+)({'|'.join(_UNITS)})"
_DURATION = re.compile(rf"([-+]?)((?:{_PART})+|0)", re.ASCII)
_NANOSECONDS = 10**9


class KubernetesScheduleError(CommandError):
    """Kubernetes would refuse this schedule."""


class _Bounds(NamedTuple):
    name: str
    least: int
    most: int
    names: Mapping[str, int] = {}


def _numbered(names: str, first: int) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(names.split(), first)}


_FIELDS = (
    _Bounds("minute", 0, 59),
    _Bounds("hour", 0, 23),
    _Bounds("day-of-month", 1, 31),
    _Bounds("month", 1, 12, _numbered("jan feb mar apr may jun jul aug sep oct nov dec", 1)),
    _Bounds("day-of-week", 0, 6, _numbered("sun mon tue wed thu fri sat", 0)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReading:
    """The values that one field names; `is_star` if it puts no restriction on the day."""

    values: frozenset[int]
    is_star: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalSchedule:
    """`@every`: it fires that long after the last fire, or after the CronJob was made, whatever the clock shows."""

    interval: timedelta
    time_zone: str

    def next_after(self, instant: datetime) -> datetime:
        """Return the fire that follows one at `instant`."""
        return instant.replace(microsecond=0) + self.interval


@dataclass(frozen=True, slots=True, kw_only=True)
class WallClockSchedule:
    """Five fields on the wall clock of a time zone, an IANA name."""

    expression: str
    minutes: FieldReading
    hours: FieldReading
    days: FieldReading
    months: FieldReading
    weekdays: FieldReading
    time_zone: str
    _zone: ZoneInfo = field(repr=False, compare=False)

    @property
    def needs_either_day(self) -> bool:
        """Whether a date needs to satisfy only one of the two day fields."""
        return not (self.days.is_star or self.weekdays.is_star)

    def next_after(self, instant: datetime) -> datetime | None:
        """Return the fire that follows one at `instant`, in UTC; None if there is none within five years."""
        if not all(reading.values for reading in (self.minutes, self.hours, self.months)):
            return None
        walk = _Walk(schedule=self, zone=self._zone, moment=instant.astimezone(UTC).replace(microsecond=0) + _SECOND)
        last_year = walk.local.year + _SEARCH_YEARS
        while walk.local.year <= last_year:
            if walk.finds_month() and walk.finds_day() and walk.finds_hour() and walk.finds_minute():
                return walk.moment
        return None

    def matches_day(self, local: datetime) -> bool:
        """Whether it fires on the day that a wall clock shows, its month aside."""
        day, weekday = local.day in self.days.values, local.isoweekday() % 7 in self.weekdays.values
        return day or weekday if self.needs_either_day else day and weekday


KubernetesSchedule = IntervalSchedule | WallClockSchedule


@dataclass(slots=True, kw_only=True)
class _Walk:
    """A moment on its way to the next fire; each step says whether its unit was found before the next larger began."""

    schedule: WallClockSchedule
    zone: ZoneInfo
    moment: datetime
    # Units that are passed over begin at their beginning, but only the first is put there; the others follow from it.
    _is_at_beginning: bool = False

    @property
    def local(self) -> datetime:
        return self.moment.astimezone(self.zone)

    def finds_month(self) -> bool:
        while self.local.month not in self.schedule.months.values:
            self._begin(lambda local: local.replace(day=1, hour=0, minute=0, second=0))
            self._go_to(_month_later(self.local))
            if self.local.month == 1:
                return False
        return True

    def finds_day(self) -> bool:
        while not self.schedule.matches_day(self.local):
            self._begin(lambda local: local.replace(hour=0, minute=0, second=0))
            self._go_to(self.local + _DAY)
            # Where midnight is skipped, that led to an hour before it or behind it.
            hour = self.local.hour
            self.moment += _HOUR * (24 - hour if hour > _NOON else -hour)
            if self.local.day == 1:
                return False
        return True

    def finds_hour(self) -> bool:
        while self.local.hour not in self.schedule.hours.values:
            self._begin(lambda local: local.replace(minute=0, second=0))
            self.moment += _HOUR
            if self.local.hour == 0:
                return False
        return True

    def finds_minute(self) -> bool:
        while self.local.minute not in self.schedule.minutes.values:
            self._begin(lambda local: local.replace(second=0))
            self.moment += _MINUTE
            if self.local.minute == 0:
                return False
        return self._finds_second()

    def _finds_second(self) -> bool:
        """Fires fall on the first second of a minute; behind it, everything is looked at again in the next minute."""
        if self.moment.second == 0:
            return True
        self._is_at_beginning = True
        self.moment = self.moment.replace(second=0) + _MINUTE
        return False

    def _begin(self, beginning: Callable[[datetime], datetime]) -> None:
        if not self._is_at_beginning:
            self._is_at_beginning = True
            self._go_to(beginning(self.local))

    def _go_to(self, local: datetime) -> None:
        """Go to what a wall clock shows.

        Go reads a time that is skipped or repeated by the offset in force that many hours from it.
        """
        shown = local.replace(tzinfo=UTC)
        near = shown - _offset(shown, self.zone)
        self.moment = shown - _offset(near, self.zone)


def read_schedule(text: str, time_zone_name: str) -> KubernetesSchedule:
    """Read a schedule in a time zone; one that begins with `TZ=` or `CRON_TZ=` says by itself in which.

    Raises:
        KubernetesScheduleError: Kubernetes would refuse it.

    """
    if text.startswith(("TZ=", "CRON_TZ=")):
        zone, space, text = text.partition("=")[2].partition(" ")
        if not space:
            raise KubernetesScheduleError("the schedule has a time zone and nothing else")
        time_zone_name = zone or "UTC"
        text = text.strip()
    try:
        zone_rules = time_zone(time_zone_name)
    except KeyError as unknown:
        raise KubernetesScheduleError(f"unknown time zone {time_zone_name[:64]!a}") from unknown
    if text.startswith(_EVERY):
        return IntervalSchedule(interval=_interval(text.removeprefix(_EVERY)), time_zone=time_zone_name)
    return _wall_clock(text, time_zone_name, zone_rules)


def _wall_clock(text: str, time_zone_name: str, zone_rules: ZoneInfo) -> WallClockSchedule:
    if text.startswith("@") and text not in _DESCRIPTORS:
        raise KubernetesScheduleError(f"Kubernetes knows no {text[:64]!a}")
    fields = _DESCRIPTORS.get(text, text).split()
    if len(fields) != len(_FIELDS):
        raise KubernetesScheduleError(f"Kubernetes wants five fields, and here are {len(fields)}")
    minutes, hours, days, months, weekdays = map(_field, fields, _FIELDS)
    return WallClockSchedule(
        expression=text,
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=weekdays,
        time_zone=time_zone_name,
        _zone=zone_rules,
    )


def _field(text: str, bounds: _Bounds) -> FieldReading:
    terms = [_term(term, bounds) for term in text.split(",") if term]
    values = frozenset[int]().union(*(term.values for term in terms))
    return FieldReading(values=values, is_star=any(term.is_star for term in terms))


def _term(text: str, bounds: _Bounds) -> FieldReading:
    span, *steps = text.split("/")
    step = _step(text, steps, bounds)
    is_star = span.split("-")[0] in {"*", "?"}
    first, last = (bounds.least, bounds.most) if is_star else _span(span, bounds, is_open=bool(steps))
    if not bounds.least <= first <= last <= bounds.most:
        raise _refused(text, bounds, f"allowed are {bounds.least} to {bounds.most}, from low to high")
    return FieldReading(values=frozenset(range(first, last + 1, step)), is_star=is_star and step == 1)


def _step(text: str, steps: list[str], bounds: _Bounds) -> int:
    if len(steps) > 1:
        raise _refused(text, bounds, "it has more than one step")
    step = _number(steps[0], text, bounds) if steps else 1
    if step == 0:
        raise _refused(text, bounds, "a step is at least 1")
    return step


def _span(text: str, bounds: _Bounds, *, is_open: bool) -> tuple[int, int]:
    """Read `5` or `5-7`; with a step, `5` goes on to the field's end."""
    ends = [_value(end, text, bounds) for end in text.split("-")]
    if len(ends) > 2:  # noqa: PLR2004 - a range has two ends
        raise _refused(text, bounds, "it has more than one hyphen")
    if len(ends) == 1:
        return ends[0], bounds.most if is_open else ends[0]
    return ends[0], ends[1]


def _value(text: str, term: str, bounds: _Bounds) -> int:
    return bounds.names[text.lower()] if text.lower() in bounds.names else _number(text, term, bounds)


def _number(text: str, term: str, bounds: _Bounds) -> int:
    if not _NUMBER.fullmatch(text) or len(text) > len(str(2**63)):
        raise _refused(term, bounds, f"{text[:64]!a} is no number")
    return int(text)


def _refused(text: str, bounds: _Bounds, why: str) -> KubernetesScheduleError:
    return KubernetesScheduleError(f"Kubernetes refuses {text[:64]!a} in the {bounds.name} field: {why}")


def _interval(text: str) -> timedelta:
    """Read a duration of Go; an interval has whole seconds, and at least one."""
    written = _DURATION.fullmatch(text)
    if written is None:
        raise KubernetesScheduleError(f"{text[:64]!a} is no duration, such as 1h30m")
    nanoseconds = sum(_nanoseconds(re.findall(_PART, text)))
    seconds = 0 if written[1] == "-" else nanoseconds // _NANOSECONDS
    if nanoseconds >= 2**63:
        raise KubernetesScheduleError(f"{text[:64]!a} is too long a duration")
    return timedelta(seconds=max(seconds, 1))


def _nanoseconds(parts: Iterable[tuple[str, str]]) -> Iterable[int]:
    for number, unit in parts:
        whole, _, fraction = number.partition(".")
        yield int(whole or 0) * _UNITS[unit] + int(fraction or 0) * _UNITS[unit] // 10 ** len(fraction)


def _month_later(local: datetime) -> datetime:
    """The same day of the next month; days that it lacks run on into the one after it."""
    years, month = divmod(local.month, 12)
    first = local.replace(year=local.year + years, month=month + 1, day=1)
    return first + _DAY * (local.day - 1)


def _offset(instant: datetime, zone: ZoneInfo) -> timedelta:
    return instant.astimezone(zone).utcoffset() or timedelta(0)
