"""What fires a cron owes over time, across the edits, pauses and resumes in between.

A version is in force for the instants after its `effective_from`, up to and including its successor's. This is the only
place that knows that rule; the runner claims by it, and what it answers can be recomputed from `cron_job_versions`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from typing import Protocol

from cronplane_core.schedule import Schedule


class FireSource(Protocol):
    """Something that knows when a cron fires: a schedule, or a timeline of them."""

    def next_after(self, instant: datetime) -> datetime | None:
        """Give the first fire strictly after `instant`, both aware and in UTC, or None if there is none."""

    def __hash__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleVersion:
    """A schedule and since when it was in force (aware, UTC); `schedule` is None while the cron was not enabled."""

    effective_from: datetime
    schedule: Schedule | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """The versions of one cron in the order in which they came into force."""

    versions: tuple[ScheduleVersion, ...]

    def next_after(self, instant: datetime) -> datetime | None:
        """Give the first fire strictly after `instant` of whatever version is in force then, or None."""
        for version, successor in zip_longest(self.versions, self.versions[1:]):
            fire = _next_within(version, after=instant, until=successor.effective_from if successor else None)
            if fire is not None:
                return fire
        return None


def _next_within(version: ScheduleVersion, *, after: datetime, until: datetime | None) -> datetime | None:
    start = max(after, version.effective_from)
    if version.schedule is None or (until is not None and start >= until):
        return None
    fire = version.schedule.next_after(start)
    return fire if fire is None or until is None or fire <= until else None


def fires_between(source: FireSource, *, first: datetime, before: datetime | None) -> Iterator[datetime]:
    """Yield `first`, which must be a fire of `source`, and every later one earlier than `before` (None: no bound)."""
    fire: datetime | None = first
    while fire is not None and (before is None or fire < before):
        yield fire
        fire = source.next_after(fire)


def collapse(versions: Iterable[ScheduleVersion]) -> FireSource:
    """Give the plainest source for `versions`: the schedule itself if there is but one, so that crons can share it."""
    known = tuple(versions)
    if len(known) == 1 and known[0].schedule is not None:
        return known[0].schedule
    return Timeline(known)
