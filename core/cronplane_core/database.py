"""How this project opens PostgreSQL: one kind of engine, and foreign errors turned into ours at this border.

It holds no query of its own.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from cronplane_core.errors import CronplaneError

_MILLISECOND = timedelta(milliseconds=1)


class DatabaseError(CronplaneError):
    """Root of what goes wrong between this process and PostgreSQL."""


class DatabaseUrlError(DatabaseError):
    """The address of the database cannot be read; write it as postgresql://user@host:5432/name."""


class DatabaseUnavailableError(DatabaseError):
    """PostgreSQL does not answer, or ended the connection; the same call may succeed later."""


def parse_url(address: str) -> URL:
    """Read `postgresql://…`, with or without a driver's name, as an address for psycopg.

    Raises:
        DatabaseUrlError: it is no PostgreSQL address. The message does not repeat it, since it may hold a password.

    """
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise DatabaseUrlError(
            "The database's address cannot be read: write postgresql://user@host:5432/name"
        ) from error
    if url.get_backend_name() not in {"postgresql", "postgres"}:
        raise DatabaseUrlError(f"Cronplane needs PostgreSQL, not {url.get_backend_name()}: write postgresql://…")
    return url.set(drivername="postgresql+psycopg")


def connection_string(url: URL) -> str:
    """Give `url` as libpq reads it, for a connection that bypasses SQLAlchemy (LISTEN needs one)."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def create_engine(
    url: URL, *, pool_size: int, application_name: str, patience: timedelta = timedelta(seconds=60)
) -> AsyncEngine:
    """Open a pool of at most `pool_size` connections; each session speaks UTC.

    PostgreSQL ends a transaction of ours, and lets go of its locks, when we have said nothing in it for `patience`.
    """
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=False,
        hide_parameters=True,
        connect_args={
            "application_name": application_name,
            "connect_timeout": 5,
            "options": f"-c timezone=UTC -c idle_in_transaction_session_timeout={patience // _MILLISECOND}",
        },
    )


def is_unavailable(error: BaseException) -> bool:
    """Tell an absent database from a wrong statement.

    SQLSTATE classes 08 (connection), 40 (rolled back, as after a deadlock), 53 (resources), 57 (operator intervention),
    25006 (read-only standby) and 25P03 (ended, since it was idle for too long) are conditions of the server, and the
    same transaction may succeed later; a broken connection has no SQLSTATE at all.
    """
    if isinstance(error, PoolTimeoutError | OSError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate is None:
        return error.connection_invalidated or type(error.orig).__name__ in {"OperationalError", "ConnectionTimeout"}
    return sqlstate[:2] in {"08", "40", "53", "57"} or sqlstate in {"25006", "25P03"}


def violated_constraint(error: IntegrityError) -> str | None:
    """Name the constraint or unique index that refused a row, or None if the server does not say."""
    diagnostics = getattr(error.orig, "diag", None)
    return None if diagnostics is None else diagnostics.constraint_name


@asynccontextmanager
async def autocommit(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Lend a connection on which each statement stands alone, which spares a single one two round trips.

    A statement that writes is committed by itself, before its answer comes.

    Raises:
        DatabaseUnavailableError: PostgreSQL was not there.

    """
    with _ours():
        async with engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Run one transaction, committed at the end of the block.

    Raises:
        DatabaseUnavailableError: PostgreSQL was not there; whether a commit under way took effect is then unknown.

    """
    with _ours():
        async with engine.begin() as connection:
            yield connection


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        if is_unavailable(error):
            raise DatabaseUnavailableError("PostgreSQL does not answer; try again shortly") from error
        raise
