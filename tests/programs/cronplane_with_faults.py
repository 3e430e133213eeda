"""The real command line, in a process that can be told to break (see `fault_entries`) or whose clock is wrong.

`CRONPLANE_TEST_CLOCK_OFFSET` is by how many seconds this machine's clock is ahead, as Python tells it. The database is
not affected, and neither are spans of time: `time.monotonic` is right.
"""

import datetime as dt
import os
import time
from typing import Self

_FOR_WORKERS = ("CRONPLANE_ATTEMPT", "CRONPLANE_TEST_FAILPOINT", "CRONPLANE_TEST_KILLS", "CRONPLANE_TEST_SEED")
_right_time = time.time
_RightDatetime = dt.datetime


class _AnyDatetime(type):
    """Takes every datetime for an instance of the wrong one, whoever made it."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RightDatetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _RightDatetime)


class _WrongDatetime(dt.datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> Self:
        return cls.fromtimestamp(time.time(), dt.UTC).replace(tzinfo=None)


def _set_clock_wrong(seconds: float) -> None:
    """Put every way to ask for the time of day off by `seconds`."""
    vars(dt)["datetime"] = _WrongDatetime
    vars(time)["time"] = lambda: _right_time() + seconds


if offset := os.environ.get("CRONPLANE_TEST_CLOCK_OFFSET"):
    _set_clock_wrong(float(offset))

# Only now, since modules take `datetime` from its module when they are imported.
from cronplane_cli.main import main  # noqa: E402
from cronplane_operator import worker_pool  # noqa: E402

vars(worker_pool)["_INHERITED"] = (*worker_pool._INHERITED, *_FOR_WORKERS)
main()
