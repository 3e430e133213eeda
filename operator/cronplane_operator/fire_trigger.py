"""APScheduler's trigger, over our schedules: the only way in which APScheduler learns a fire time."""

from datetime import datetime

from apscheduler.triggers.base import BaseTrigger

from cronplane_core.timeline import FireSource
from cronplane_operator.database_clock import DatabaseClock


class FireTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no type information
    """Answers with the first fire that is still to come by the database's clock.

    Whatever lies between the fire just met and that one is owed too; the claim settles it, by the cron's policy. So
    APScheduler never lists an outage's fires one by one, and two crons of one schedule can share a trigger; then the
    answer for the one is the other's too, for as long as that fire has not come.
    """

    __slots__ = ("_answer", "_asked", "_clock", "source")

    def __init__(self, *, source: FireSource, clock: DatabaseClock) -> None:
        self.source = source
        self._clock = clock
        self._asked: datetime | None = None
        self._answer: datetime | None = None

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """Give the next fire (aware, UTC) or None; `now` is this machine's clock, which does not count here."""
        del now
        instant = self._clock.now()
        if previous_fire_time is not None:
            instant = max(previous_fire_time, instant)
        if self._asked is None or self._answer is None or not self._asked <= instant < self._answer:
            self._asked, self._answer = instant, self.source.next_after(instant)
        return self._answer
