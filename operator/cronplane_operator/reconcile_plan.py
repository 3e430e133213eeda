"""What must change for APScheduler to equal the table: computed from the two states, never from an event.

Everything here is pure; the reconciler reads the states and carries the plan out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest
from uuid import UUID

from cronplane_core.job_state_repository import CronState, StoredVersion
from cronplane_core.schedule import Schedule
from cronplane_core.timeline import FireSource, ScheduleVersion, Timeline, collapse

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownJob:
    """What the runner holds of a cron: its generation and its next fire (aware, UTC), None if it does not fire."""

    generation: int
    next_run_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Jobs to take over as they are stored, crons whose job must be computed anew, and jobs without a cron."""

    adopted: tuple[CronState, ...]
    outdated: tuple[CronState, ...]
    removed: tuple[UUID, ...]


def plan(desired: Iterable[CronState], actual: Mapping[UUID, KnownJob], *, complete: bool) -> Plan:
    """Compare the crons as they are stored with the jobs that the runner holds.

    `complete` says that `desired` names every cron, so that a job whose cron is not among them goes.
    """
    adopted, outdated, seen = [], [], set()
    for cron in desired:
        seen.add(cron.id)
        if not _is_computed(cron):
            outdated.append(cron)
        elif actual.get(cron.id) != KnownJob(generation=cron.generation, next_run_time=cron.next_run_time):
            adopted.append(cron)
    removed = tuple(cron_id for cron_id in actual if cron_id not in seen) if complete else ()
    return Plan(adopted=tuple(adopted), outdated=tuple(outdated), removed=removed)


def _is_computed(cron: CronState) -> bool:
    """Tell whether the stored job is of the cron as it is now; one that still owes fires of before an edit is not."""
    if cron.job_generation != cron.generation:
        return False
    return cron.next_run_time is None or cron.next_run_time > cron.effective_from


def current_source(cron: CronState) -> FireSource:
    """Give what knows the fires of a cron as it is now; one that is not enabled has none."""
    return collapse([_version(cron)])


def owed_source(cron: CronState, versions: Sequence[StoredVersion]) -> tuple[FireSource, datetime | None]:
    """Give the fires that a cron owes since its job was stored, across the edits since, and the first of them.

    `versions` are all of the cron's. A cron without a stored job owes nothing of before it was made.
    """
    settled = _settled_until(cron, versions)
    if settled is None:
        return collapse([]), None
    later = [version.effective_from for version in versions[1:]]
    relevant = [
        _version(version)
        for version, successor in zip_longest(versions, later)
        if successor is None or successor > settled
    ]
    return collapse(relevant), Timeline(tuple(relevant)).next_after(settled)


def _settled_until(cron: CronState, versions: Sequence[StoredVersion]) -> datetime | None:
    """Give the instant up to which every fire has been claimed, or was never owed; None if none is left to come.

    That is just before the stored next fire; an edit that came before that fire made it void, and counts from itself.
    """
    if cron.job_generation is None:
        return versions[0].effective_from
    candidates = [version.effective_from for version in versions if version.generation > cron.job_generation][:1]
    if cron.next_run_time is not None:
        candidates.append(cron.next_run_time - _INSTANT)
    return min(candidates, default=None)


def _version(version: CronState | StoredVersion) -> ScheduleVersion:
    schedule = Schedule.parse(version.cron_expr, version.tz) if version.enabled else None
    return ScheduleVersion(effective_from=version.effective_from, schedule=schedule)
