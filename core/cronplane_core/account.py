"""Whether every fire of a cron is accounted for exactly once: computed anew from the schedules that were in force.

What the runner recorded is held against what it should have recorded. It shares nothing with the runner but the rule of
which version is in force when (`timeline`), and it reads neither clock nor database.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from cronplane_core.timeline import ScheduleVersion, Timeline

_INSTANT = timedelta(microseconds=1)


class ViolationKind(enum.StrEnum):
    """What is wrong with the record of a cron."""

    GAP = "gap"
    DUPLICATE = "duplicate"
    NOT_OWED = "not_owed"
    MISCOUNTED = "miscounted"
    EARLY_START = "early_start"
    UNCLAIMED = "unclaimed"
    OVERDUE = "overdue"
    REENTERED = "reentered"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that the guarantee rules out: of which cron, at which instant (aware, UTC), and which run shows it."""

    kind: ViolationKind
    cron_id: UUID
    at: datetime
    run_id: UUID | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFires:
    """A run of the schedule: one fire, or a `missed` range of `count` fires from `first` to `last` (aware, UTC)."""

    run_id: UUID
    first: datetime
    last: datetime
    count: int
    started_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CronAccount:
    """A cron's versions and its record, each in order of time. Fires earlier than `settled_before` must be in it."""

    cron_id: UUID
    versions: tuple[ScheduleVersion, ...]
    settled_before: datetime
    recorded: tuple[RecordedFires, ...]


def audit(account: CronAccount) -> Iterator[Violation]:
    """Find every fire that is missing, recorded twice, recorded though it was not owed, or started too early."""
    yield from _early_starts(account)
    owed = _OwedFires(account.versions)
    last: RecordedFires | None = None
    for record in account.recorded:
        if last is not None and record.first <= last.last:
            message = f"run {last.run_id} accounts for this fire already"
            yield _violation(account, record, ViolationKind.DUPLICATE, message)
            continue
        last = record
        yield from (_gap(account, fire) for fire in owed.take(before=record.first))
        yield from _differences(account, record, list(owed.take(before=record.last + _INSTANT)))
    yield from (_gap(account, fire) for fire in owed.take(before=account.settled_before))


class _OwedFires:
    """The fires that a cron owed, taken one after the other."""

    def __init__(self, versions: tuple[ScheduleVersion, ...]) -> None:
        self._timeline = Timeline(versions)
        self._next = self._timeline.next_after(versions[0].effective_from) if versions else None

    def take(self, *, before: datetime) -> Iterator[datetime]:
        """Yield those that were not taken yet and are earlier than `before`."""
        while self._next is not None and self._next < before:
            fire, self._next = self._next, self._timeline.next_after(self._next)
            yield fire


def first_unsettled(account: CronAccount) -> datetime | None:
    """Give the first fire that nobody has claimed so far, or None if there is none to come."""
    return Timeline(account.versions).next_after(account.settled_before - _INSTANT)


def _differences(account: CronAccount, record: RecordedFires, owed: Sequence[datetime]) -> Iterator[Violation]:
    """Hold a record against the fires that were owed within it; those that another record has are not among them."""
    if not owed:
        yield _violation(account, record, ViolationKind.NOT_OWED, "no schedule in force said that the cron fires then")
    elif record.first != owed[0] or record.last != owed[-1]:
        yield _violation(account, record, ViolationKind.NOT_OWED, "its bounds are no fires of the schedule in force")
    elif record.count != len(owed):
        message = f"it says that it stands for {record.count} fires, and there were {len(owed)}"
        yield _violation(account, record, ViolationKind.MISCOUNTED, message)


def _early_starts(account: CronAccount) -> Iterator[Violation]:
    for record in account.recorded:
        if record.started_at is not None and record.started_at < record.first:
            message = f"it started at {record.started_at.isoformat()}, before its time"
            yield _violation(account, record, ViolationKind.EARLY_START, message)


def _gap(account: CronAccount, fire: datetime) -> Violation:
    message = "the cron was to fire then, and no run says what became of it"
    return Violation(kind=ViolationKind.GAP, cron_id=account.cron_id, at=fire, run_id=None, message=message)


def _violation(account: CronAccount, record: RecordedFires, kind: ViolationKind, message: str) -> Violation:
    return Violation(kind=kind, cron_id=account.cron_id, at=record.first, run_id=record.run_id, message=message)
