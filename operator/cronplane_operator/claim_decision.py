"""What becomes of the fires that a cron owes: decided from records alone, so that it can be tested and recomputed.

Nothing here reads the clock or the database.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID, uuid4

from cronplane_core.run_transitions import LockedCron, NewRun
from cronplane_core.tables import RunStatus
from cronplane_core.timeline import FireSource, fires_between

DEFAULT_CATCHUP_WINDOW = timedelta(hours=6)


class DueJob(NamedTuple):
    """A job of APScheduler's whose fires from `first` up to, not including, `next_run_time` are owed (aware, UTC).

    `next_run_time` is None if the cron does not fire again.
    """

    cron_id: UUID
    generation: int
    first: datetime
    next_run_time: datetime | None
    source: FireSource


@dataclass(frozen=True, slots=True, kw_only=True)
class OwedFires:
    """The fires that one claim settles, as far as any policy asks: `last_but_one` is None if there is only one."""

    first: datetime
    last_but_one: datetime | None
    last: datetime
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be recorded of a fire, and why: a stable word and a sentence."""

    status: RunStatus
    reason: str
    message: str


@lru_cache(maxsize=4096)
def owed_fires(source: FireSource, first: datetime, before: datetime | None) -> OwedFires:
    """Count the fires from `first` on, earlier than `before`.

    Kept for a while, because after an outage many crons that share a schedule owe the same fires.
    """
    last_but_one, last, count = None, first, 0
    for fire in fires_between(source, first=first, before=before):
        last_but_one, last, count = (last if count else None), fire, count + 1
    return OwedFires(first=first, last_but_one=last_but_one, last=last, count=count)


def decide(cron: LockedCron, job: DueJob, *, now: datetime) -> list[NewRun]:
    """Say what is recorded of the owed fires: catch-up `latest`, then overlap `skip`.

    The newest owed fire runs if it is not older than the catch-up window; all before it are missed, in one range.
    """
    owed = owed_fires(job.source, job.first, job.next_run_time)
    window = DEFAULT_CATCHUP_WINDOW if cron.catchup_window is None else cron.catchup_window
    if now - owed.last > window:
        return [_missed(cron, owed, until=owed.last, count=owed.count, verdict=_outside_window(window))]
    newest = _run(cron, scheduled_for=owed.last, verdict=_newest_verdict(cron), now=now)
    if owed.last_but_one is None:
        return [newest]
    return [_missed(cron, owed, until=owed.last_but_one, count=owed.count - 1, verdict=_SUPERSEDED), newest]


_QUEUED = Verdict(status=RunStatus.QUEUED, reason="Claimed", message="The fire is claimed and waits for a worker.")
_NOT_ENABLED = Verdict(
    status=RunStatus.SKIPPED, reason="NotEnabled", message="The cron was paused or deleted before the fire was claimed."
)
_NOT_GRANTED = Verdict(
    status=RunStatus.SKIPPED,
    reason="EntryNotGranted",
    message="The organization may not use the cron's entry any more.",
)
_SUPERSEDED = Verdict(
    status=RunStatus.MISSED,
    reason="Superseded",
    message="No runner claimed these fires in time, and catch-up runs only the latest.",
)


def _outside_window(window: timedelta) -> Verdict:
    return Verdict(
        status=RunStatus.MISSED,
        reason="OutsideCatchupWindow",
        message=f"No runner claimed these fires within the catch-up window of {window.total_seconds():.0f} s.",
    )


def _newest_verdict(cron: LockedCron) -> Verdict:
    if not cron.enabled:
        return _NOT_ENABLED
    if not cron.is_granted:
        return _NOT_GRANTED
    if cron.active_run_id is not None:
        return Verdict(
            status=RunStatus.SKIPPED,
            reason="OverlapSkip",
            message=f"Run {cron.active_run_id} of this cron was not over, and overlap is skip.",
        )
    return _QUEUED


def _run(cron: LockedCron, *, scheduled_for: datetime, verdict: Verdict, now: datetime) -> NewRun:
    return NewRun(
        id=uuid4(),
        organization_id=cron.organization_id,
        cron_id=cron.id,
        scheduled_for=scheduled_for,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        generation=cron.generation,
        deadline=None if cron.run_timeout is None else now + cron.run_timeout,
    )


def _missed(cron: LockedCron, owed: OwedFires, *, until: datetime, count: int, verdict: Verdict) -> NewRun:
    return NewRun(
        id=uuid4(),
        organization_id=cron.organization_id,
        cron_id=cron.id,
        scheduled_for=owed.first,
        status=RunStatus.MISSED,
        reason=verdict.reason,
        message=verdict.message,
        generation=cron.generation,
        missed_until=until,
        missed_count=count,
    )
