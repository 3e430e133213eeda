"""IANA time zones from the pinned `tzdata` package, and from nowhere else.

`zoneinfo.ZoneInfo(name)` prefers the operating system's files, so two machines with different system packages would
compute different fire times for one cron. This module refuses to look there: names and rules come from one wheel, whose
version the lock file fixes, and the process-wide search path (`zoneinfo.TZPATH`) stays as it is.
"""

from functools import cache
from importlib.resources import files
from zoneinfo import ZoneInfo


@cache
def zone_names() -> frozenset[str]:
    """Every name that `time_zone` knows, links such as `Asia/Calcutta` included; case matters."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="ascii").split())


@cache
def time_zone(name: str) -> ZoneInfo:
    """Return the rules of one IANA zone, the same object at each call; it cannot be pickled, send the name instead.

    Raises:
        KeyError: `name` is not in `zone_names()`; nothing is read from disk then, whatever path it spells.
    """
    if name not in zone_names():
        raise KeyError(name)
    with files("tzdata").joinpath("zoneinfo", *name.split("/")).open("rb") as rules:
        return ZoneInfo.from_file(rules, key=name)
