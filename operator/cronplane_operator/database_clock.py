"""The database's clock, as this process reckons it between two looks at `scheduler.now()`.

It errs on the late side: an instant it gives has been reached by the database. The rate is measured too, so that a test
may run the database's clock faster. Nothing but this class reads this machine's clock.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from cronplane_core.database import transaction

_NOW = text("SELECT scheduler.now()")


@dataclass(frozen=True, slots=True)
class _Sample:
    """The database's time, read at some moment between `asked` and `seconds` of this machine's clock."""

    database: datetime
    asked: float
    seconds: float

    @property
    def uncertainty(self) -> float:
        return self.seconds - self.asked


class DatabaseClock:
    """Gives the database's time without asking it each time; `measure` is called every second or so."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sample: _Sample | None = None
        self._rate = 1.0

    def now(self) -> datetime:
        """Give the database's time (aware, UTC), or a moment before it."""
        if self._sample is None:
            raise RuntimeError("the clock has not been measured yet")
        elapsed = (self._monotonic() - self._sample.seconds) * self._rate
        return self._sample.database + timedelta(seconds=elapsed)

    def real_seconds(self, seconds: float) -> float:
        """Translate a span of database time, in seconds, into seconds of this machine's clock: at most as many.

        A clock that stands, or that was set back a little, would have everybody wait for long, or forever.
        """
        return seconds / max(self._rate, 1.0)

    async def measure(self, engine: AsyncEngine) -> None:
        """Look at the database's clock twice: the pair shows its rate even right after the clock was set."""
        async with transaction(engine) as connection:
            first = await self._look(connection)
            second = await self._look(connection)
        self._rate = self._rate_until(second) if self._is_steady(second) else _rough_rate(first, second)
        self._sample = second

    async def _look(self, connection: AsyncConnection) -> _Sample:
        asked = self._monotonic()
        database: datetime = (await connection.execute(_NOW)).scalar_one()
        return _Sample(database, asked, self._monotonic())

    def _is_steady(self, sample: _Sample) -> bool:
        """Tell a clock that ran on from one that was set, which says nothing of its rate."""
        if self._sample is None:
            return False
        tolerance = timedelta(seconds=1) + 0.2 * abs(sample.database - self._sample.database)
        return abs(sample.database - self.now()) < tolerance

    def _rate_until(self, sample: _Sample) -> float:
        before = self._sample
        if before is None or sample.seconds - before.seconds < _SHORTEST_BASE:
            return self._rate
        # An answer that was long on its way says little of when it was true, and timeouts go by the rate.
        if before.uncertainty + sample.uncertainty > _MOST_UNCERTAINTY * (sample.seconds - before.seconds):
            return self._rate
        rate = _rate(before, sample)
        return 1.0 if abs(rate - 1.0) < _UNIT_RATE_TOLERANCE else rate


# Over a shorter span the network's jitter would pass for a clock that runs fast or slow.
_SHORTEST_BASE = 0.2
_UNIT_RATE_TOLERANCE = 0.02
_MOST_UNCERTAINTY = 0.05
_ROUGHLY_UNIT = 3.0


def _rough_rate(first: _Sample, second: _Sample) -> float:
    """Tell a clock that runs fast from two looks right after each other; the slowest that it may be has to show it.

    If the first answer was long on its way, next to nothing lies between the two, and the slowest has to do.
    """
    slowest = (second.database - first.database).total_seconds() / max(second.seconds - first.asked, 1e-9)
    if slowest <= _ROUGHLY_UNIT:
        return 1.0
    return _rate(first, second) if first.uncertainty <= 2 * second.uncertainty else slowest


def _rate(earlier: _Sample, later: _Sample) -> float:
    seconds = later.seconds - earlier.seconds
    return (later.database - earlier.database).total_seconds() / seconds if seconds > 0 else 1.0
