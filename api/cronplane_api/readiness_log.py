"""Tells in the log what keeps this process from serving, as it changes: who looks after a release reads it there.

It decides nothing; a probe is answered by what the database says at that moment.
"""

import asyncio
from collections.abc import Iterable

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.readiness import find_readiness
from cronplane_core.schema_revision import Readiness

# Seconds between two looks, while something is in the way and while nothing is.
_UNREADY_PAUSE = 1.0
_READY_PAUSE = 15.0


async def log_readiness(engine: AsyncEngine, *, entries: Iterable[str]) -> None:
    """Look until cancelled, and log each change: what is waited for, that it came, and a schema that is newer."""
    names = list(entries)
    told: Readiness | None = None
    while True:
        found = await _look(engine, names)
        if found != told:
            _tell(found)
            told = found
        await asyncio.sleep(_READY_PAUSE if found.obstacle is None else _UNREADY_PAUSE)


async def _look(engine: AsyncEngine, entries: list[str]) -> Readiness:
    try:
        async with transaction(engine) as connection:
            return await find_readiness(connection, entries=entries)
    except DatabaseUnavailableError as error:
        return Readiness(obstacle=str(error))


def _tell(readiness: Readiness) -> None:
    log = structlog.stdlib.get_logger("cronplane.api")
    if readiness.obstacle is not None:
        log.warning("not ready", obstacle=readiness.obstacle)
    elif readiness.notice is not None:
        log.warning("ready", notice=readiness.notice)
    else:
        log.info("ready")
