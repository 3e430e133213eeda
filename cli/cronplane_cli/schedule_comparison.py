"""Holds a CronJob's schedule against ours, and finds the words in which we read it as Kubernetes does.

The two are compared by their fires, never by their text: what is read alike may be written differently, and what is
written alike may be read differently. Everything here is a pure function of the schedules and a range of time; it
refuses to guess what somebody may have meant.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice, product

from cronplane_cli.kubernetes_schedule import FieldReading, IntervalSchedule, KubernetesSchedule, WallClockSchedule
from cronplane_core.schedule import MACROS, Schedule, ScheduleError
from cronplane_core.time_zones import time_zone

HORIZON = timedelta(days=400)
MOST_DIFFERENCES = 5
_DAY = timedelta(days=1)
_MINUTES_OF_AN_HOUR, _HOURS_OF_A_DAY = 60, 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A fire of one side only; `at` shows the wall clock of the schedule's zone, with its offset."""

    at: datetime
    is_ours: bool

    def __str__(self) -> str:
        fires, not_so = ("Cronplane", "Kubernetes") if self.is_ours else ("Kubernetes", "Cronplane")
        return f"{self.at.isoformat()}: {fires} fires, {not_so} does not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What becomes of a schedule.

    `expression` is how to write it here, None if it cannot be; `as_written` are the first fires that differ with the
    text that the CronJob has, and `remaining` those that differ even as it is written here. `refusal` says why we do
    not read the CronJob's own text, if we do not.
    """

    expression: str | None
    as_written: tuple[Difference, ...] = ()
    remaining: tuple[Difference, ...] = ()
    is_interval: bool = False
    refusal: str | None = None

    @property
    def is_exact(self) -> bool:
        """Whether what is written here fires when Kubernetes does, as far as was looked."""
        return self.expression is not None and not self.is_interval and not self.remaining

    @property
    def is_rewritten(self) -> bool:
        """Whether the CronJob's own words would not do."""
        return bool(self.as_written) or self.refusal is not None


def compare(theirs: KubernetesSchedule, *, after: datetime, horizon: timedelta = HORIZON) -> Comparison:
    """Find how to write a schedule here, and what differs, in (after, after + horizon] or until its first fire."""
    if isinstance(theirs, IntervalSchedule):
        refusal = "an interval is counted from the last fire, and may be any"
        return Comparison(expression=_near(theirs.interval), is_interval=True, refusal=refusal)
    first = theirs.next_after(after)
    if first is None:
        return Comparison(expression=None, refusal="it never fires")
    # What fires on 29 February is to be seen once, too.
    until = max(after + horizon, first)
    try:
        literal = Schedule.parse(theirs.expression, theirs.time_zone)
    except ScheduleError as error:
        return _rewritten(theirs, Comparison(expression=None, refusal=str(error)), after=after, until=until)
    found = tuple(differences(theirs, literal, after=after, until=until))
    comparison = Comparison(expression=literal.expression, as_written=found, remaining=found)
    return _rewritten(theirs, comparison, after=after, until=until) if found else comparison


def differences(
    theirs: WallClockSchedule, ours: Schedule, *, after: datetime, until: datetime, limit: int = MOST_DIFFERENCES
) -> Iterator[Difference]:
    """Yield the first fires in (after, until] that only one side has."""
    return islice(_differences(theirs, ours, after=after, until=until), limit)


def _rewritten(theirs: WallClockSchedule, written: Comparison, *, after: datetime, until: datetime) -> Comparison:
    """Take the first way to write it without a difference, else one that differs last."""
    readable = [written] if written.expression is not None else []
    for expression, ours in _ways_to_write(theirs).items():
        if expression == written.expression:
            continue
        found = tuple(differences(theirs, ours, after=after, until=until))
        way = replace(written, expression=expression, remaining=found)
        if not found:
            return way
        readable.append(way)
    # The later the first difference, the fewer they are: those that remain are on days on which the clock changes.
    return max(readable, key=lambda way: way.remaining[0].at, default=written)


def _ways_to_write(theirs: WallClockSchedule) -> dict[str, Schedule]:
    """Parts of the CronJob's text, where we can read them, joined with plain lists of the values that they mean."""
    minute, hour, day, month, weekday = MACROS.get(theirs.expression, theirs.expression).replace("?", "*").split()
    times = (f"{minute} {hour}", f"{_times(theirs.minutes, 60)} {_times(theirs.hours, 24)}")
    # A star in a day field would ask for both of them.
    days, weekdays = (0, 0) if theirs.needs_either_day else (31, 7)
    plain = f"{_values(theirs.days, days)} {_values(theirs.months, 12)} {_values(theirs.weekdays, weekdays)}"
    ways = {}
    for time, date in product(times, (f"{day} {month} {weekday}", plain)):
        with suppress(ScheduleError):
            schedule = Schedule.parse(f"{time} {date}", theirs.time_zone)
            ways[schedule.expression] = schedule
    return ways


def _times(reading: FieldReading, count_of_all: int) -> str:
    """Write a field of times, with a star if that can be: such schedules follow the clock, as Kubernetes does."""
    for step in range(2, count_of_all // 2 + 1):
        if reading.values == set(range(0, count_of_all, step)):
            return f"*/{step}"
    return _values(reading, count_of_all)


def _values(reading: FieldReading, count_of_all: int) -> str:
    if len(reading.values) == count_of_all:
        return "*"
    return ",".join(_ranges(sorted(reading.values)))


def _ranges(values: list[int]) -> Iterator[str]:
    begin = 0
    for end, value in enumerate(values):
        if end + 1 < len(values) and values[end + 1] == value + 1:
            continue
        yield str(value) if begin == end else f"{values[begin]}-{value}"
        begin = end + 1


def _near(interval: timedelta) -> str | None:
    """Five fields that fire in the same interval, if an hour or a day is a multiple of it."""
    minutes, seconds = divmod(int(interval.total_seconds()), 60)
    hours, odd_minutes = divmod(minutes, _MINUTES_OF_AN_HOUR)
    if seconds or not minutes:
        return None
    if not hours and _MINUTES_OF_AN_HOUR % minutes == 0:
        return f"*/{minutes} * * * *" if minutes > 1 else "* * * * *"
    if hours and not odd_minutes and _HOURS_OF_A_DAY % hours == 0:
        return {1: "0 * * * *", _HOURS_OF_A_DAY: "0 0 * * *"}.get(hours, f"0 */{hours} * * *")
    return None


def _differences(
    theirs: WallClockSchedule, ours: Schedule, *, after: datetime, until: datetime
) -> Iterator[Difference]:
    alike = _DaysAlike(theirs=theirs, ours=ours)
    their_fire, our_fire = theirs.next_after(after), ours.next_after(after)
    while (fire := _first(their_fire, our_fire)) is not None and fire <= until:
        if their_fire == our_fire:
            last = alike.last_fire_of_day(fire)
            their_fire, our_fire = theirs.next_after(last), ours.next_after(last)
            continue
        yield Difference(at=fire.astimezone(time_zone(theirs.time_zone)), is_ours=fire == our_fire)
        if fire == our_fire:
            our_fire = ours.next_after(fire)
        else:
            their_fire = theirs.next_after(fire)


def _first(*fires: datetime | None) -> datetime | None:
    return min((fire for fire in fires if fire is not None), default=None)


class _DaysAlike:
    """Passes over the rest of a day on which both sides fire, since a schedule has the same times on each day.

    Not over days on which the clock changes: those are what one has to look at.
    """

    def __init__(self, *, theirs: WallClockSchedule, ours: Schedule) -> None:
        self._theirs = theirs
        self._ours = ours
        self._zone = time_zone(theirs.time_zone)
        hours, minutes = sorted(theirs.hours.values), sorted(theirs.minutes.values)
        self._times = [timedelta(hours=hour, minutes=minute) for hour, minute in product(hours, minutes)]
        self._has_same_times: bool | None = None

    def last_fire_of_day(self, fire: datetime) -> datetime:
        """Give the last fire of a day of which `fire` is one of both sides; `fire` itself if that is not certain."""
        local = fire.astimezone(self._zone)
        midnight = local.replace(hour=0, minute=0, fold=0)
        start, end = midnight.astimezone(UTC), (midnight + _DAY).replace(fold=1).astimezone(UTC)
        if end - start != _DAY or not self._theirs.matches_day(local):
            return fire
        if self._has_same_times is None:
            fires = self._ours.fires(after=start - datetime.resolution, until=end - datetime.resolution)
            self._has_same_times = list(fires) == [start + time for time in self._times]
        return start + self._times[-1] if self._has_same_times else fire
