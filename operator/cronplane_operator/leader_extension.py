"""What goes on beside the runner while it leads, such as what has to do with a cluster; the runner knows nothing of it.

An extension ends with the term and begins anew with the next one. What it cannot do for want of something other than
PostgreSQL or the lease is its own business: an error that it lets out ends the term, and no cron fires meanwhile.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.lease import Lease
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.run_recorder import RunRecorder


class ChangeSignal:
    """Tells any number of loops that something has changed; each clears its own event."""

    def __init__(self) -> None:
        self._events: list[asyncio.Event] = []

    def subscribe(self) -> asyncio.Event:
        """Give an event that is set at each change from now on."""
        event = asyncio.Event()
        self._events.append(event)
        return event

    def set(self) -> None:
        """Tell everybody."""
        for event in self._events:
            event.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class TermContext:
    """What a term shares with its extensions.

    `crons_changed` and `runs_changed` are set when a hint came that the tables were changed by others, `runs_claimed`
    when this leader has queued runs. They are hints: what they tell of has to be found without them, too.
    """

    engine: AsyncEngine
    lease: Lease
    recorder: RunRecorder
    clock: DatabaseClock
    crons_changed: ChangeSignal
    runs_changed: ChangeSignal
    runs_claimed: ChangeSignal = field(default_factory=ChangeSignal)


class LeaderExtension(Protocol):
    """Something that a leader does besides."""

    def loops(self, term: TermContext) -> Sequence[Coroutine[None, None, None]]:
        """Give what is to go on until it is cancelled, at the end of the term."""
