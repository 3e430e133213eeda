"""How long this process has not heard of a leader, as a metric, so that having none rings an alarm.

It is what was last read of the lease, grown older by this machine's clock since: with PostgreSQL away the age goes on
growing. It is read by other threads than the one that writes it, and keeps all it knows in one immutable record. It
decides nothing, and knows nobody but the lease.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import lease as leases
from cronplane_core.database import DatabaseUnavailableError, autocommit
from cronplane_core.lease import LeaseState

# Seconds: a scrape more often than this is answered from memory, and one that PostgreSQL keeps waiting is, too.
_LOOK_INTERVAL = 1.0
_LOOK_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What is known: the lease as read `at` (seconds of this machine's clock), and whether the last look succeeded."""

    lease: LeaseState | None
    at: float | None
    is_database_up: bool


class Leadership(Collector):
    """The lease as this process last saw it."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sight = _Sight(lease=None, at=None, is_database_up=False)
        self._looked_at = -inf

    def saw(self, lease: LeaseState | None) -> None:
        """Take in what was just read; None says that nobody has ever led."""
        self._sight = _Sight(lease=lease, at=self._monotonic(), is_database_up=True)

    def lost_sight(self) -> None:
        """Learn that PostgreSQL does not say."""
        self._sight = _Sight(lease=self._sight.lease, at=self._sight.at, is_database_up=False)

    @property
    def age(self) -> float:
        """Seconds since the lease was last renewed, by all that is known; infinite if nobody is known to have led."""
        sight = self._sight
        if sight.lease is None or sight.at is None:
            return inf
        return max(sight.lease.age.total_seconds(), 0.0) + self._monotonic() - sight.at

    def is_fresh(self, *, within: float) -> bool:
        """Tell whether PostgreSQL has answered in the last `within` seconds."""
        at = self._sight.at
        return at is not None and self._monotonic() - at <= within

    async def look(self, engine: AsyncEngine) -> None:
        """Read the lease, at most about once a second however often it is asked; an absent PostgreSQL is only noted."""
        if self._monotonic() - self._looked_at < _LOOK_INTERVAL:
            return
        self._looked_at = self._monotonic()
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT), autocommit(engine) as connection:
                self.saw(await leases.read(connection))
        except (DatabaseUnavailableError, DBAPIError, TimeoutError):
            # Any other refusal means that the schema is not there yet, and so no leader either.
            self.lost_sight()

    def collect(self) -> Iterator[Metric]:
        """Give the metrics, as of now."""
        sight = self._sight
        yield GaugeMetricFamily(
            "cronplane_leader_age_seconds",
            "Seconds since the leader last renewed its lease; +Inf if none is known",
            value=self.age,
        )
        yield GaugeMetricFamily(
            "cronplane_leader_epoch",
            "Number of the leader's term, as last seen",
            value=0 if sight.lease is None else sight.lease.epoch,
        )
        yield GaugeMetricFamily(
            "cronplane_database_up",
            "Whether PostgreSQL answered this process when it was last asked",
            value=sight.is_database_up,
        )
