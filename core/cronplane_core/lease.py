"""The leader's lease: one row that names the holder, an epoch that grows at each change of leader, and an end.

A leader's writes check the lease inside their own transaction, so that a leader that was replaced changes nothing,
however late it wakes. Nothing here waits or decides what a leader does.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.errors import CronplaneError

LEASE_NAME = "runner"


class LeaseLostError(CronplaneError):
    """This process is no longer the leader: it must stop acting and may stand for leader again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a leader shows to prove itself. `holder` is a name unique to one start of one process."""

    holder: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """The lease as anybody may read it: `age` is how long ago it was renewed, both by the database's clock.

    `renewed_at` (aware, UTC) is None if the leader's version does not write it.
    """

    holder: str
    epoch: int
    renewed_at: datetime | None
    age: timedelta


_NOW = text("SELECT scheduler.now()")
_ACQUIRE = text(
    """
    INSERT INTO scheduler.leases AS lease (name, holder, epoch, expires_at, renewed_at)
    SELECT :name, :holder, 1, now + :duration, now FROM scheduler.now() AS now
    ON CONFLICT (name) DO UPDATE
    SET holder = excluded.holder, epoch = lease.epoch + 1, expires_at = excluded.expires_at,
        renewed_at = excluded.renewed_at
    WHERE lease.expires_at <= scheduler.now()
    RETURNING epoch
    """
)
_RENEW = text(
    """
    UPDATE scheduler.leases SET expires_at = now + :duration, renewed_at = now
    FROM scheduler.now() AS now
    WHERE name = :name AND holder = :holder AND epoch = :epoch
    RETURNING true
    """
)
# A leader of a version that did not write `renewed_at` counts from the end of its lease, the least that is known.
_READ = text(
    """
    SELECT holder, epoch, renewed_at, now - coalesce(renewed_at, least(expires_at, now)) AS age
    FROM scheduler.leases, scheduler.now() AS now WHERE name = :name
    """
)
_RELEASE = text(
    """
    UPDATE scheduler.leases SET expires_at = scheduler.now()
    WHERE name = :name AND holder = :holder AND epoch = :epoch AND expires_at > scheduler.now()
    """
)
# A shared lock keeps a successor from taking over between this check and the commit. An end that has passed does not
# matter here: it allows a successor, but as long as the epoch is ours there has been none.
_CHECK = text(
    """
    SELECT scheduler.now() FROM scheduler.leases
    WHERE name = :name AND holder = :holder AND epoch = :epoch
    FOR SHARE
    """
)


async def acquire(connection: AsyncConnection, *, holder: str, duration: timedelta) -> Lease | None:
    """Become the leader if nobody is, with a new epoch; None while somebody else holds the lease."""
    epoch = await connection.scalar(_ACQUIRE, {"name": LEASE_NAME, "holder": holder, "duration": duration})
    return None if epoch is None else Lease(holder=holder, epoch=epoch)


async def renew(connection: AsyncConnection, *, lease: Lease, duration: timedelta) -> None:
    """Hold the lease for `duration` from now on.

    Raises:
        LeaseLostError: somebody else has taken it.

    """
    if not await connection.scalar(_RENEW, {**_identity(lease), "duration": duration}):
        raise _lost(lease)


async def release(connection: AsyncConnection, *, lease: Lease) -> None:
    """Let a successor in at once; nothing happens if the lease is not ours any more."""
    await connection.execute(_RELEASE, _identity(lease))


async def check(connection: AsyncConnection, *, lease: Lease) -> datetime:
    """Fence the surrounding transaction: until it ends nobody else becomes leader. Returns the database's time, UTC.

    Raises:
        LeaseLostError: somebody else has taken the lease; the transaction must be rolled back.

    """
    now: datetime | None = await connection.scalar(_CHECK, _identity(lease))
    if now is None:
        raise _lost(lease)
    return now


async def read(connection: AsyncConnection) -> LeaseState | None:
    """Tell who leads, or led last, and since when nothing was heard of it; None if nobody ever has."""
    row = (await connection.execute(_READ, {"name": LEASE_NAME})).one_or_none()
    if row is None:
        return None
    return LeaseState(holder=row.holder, epoch=row.epoch, renewed_at=row.renewed_at, age=row.age)


async def database_time(connection: AsyncConnection) -> datetime:
    """Give the database's time (aware, UTC), for those who change runs without leading."""
    now: datetime = (await connection.execute(_NOW)).scalar_one()
    return now


def _identity(lease: Lease) -> dict[str, object]:
    return {"name": LEASE_NAME, "holder": lease.holder, "epoch": lease.epoch}


def _lost(lease: Lease) -> LeaseLostError:
    return LeaseLostError(f"Another runner leads since epoch {lease.epoch} ended; standing for leader again")
