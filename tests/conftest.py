"""What tests share: a real PostgreSQL with a fresh database for each test, its clock, and a runner that tells all."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.cron_repository import Cron, Definition, Policy, insert_cron
from cronplane_core.database import connection_string, create_engine, parse_url, transaction
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_core.organization_repository import Organization, create_organization
from cronplane_core.run_transitions import FinishedRun, NewRun
from cronplane_core.settings import RunnerSettings
from cronplane_entries.registry import CronRegistry
from cronplane_migrations.migrate import migrate
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner

DISTRIBUTIONS = Path(__file__).parent / "distributions"
SERVICE_ROLE = "cronplane_service"
# Only so that a test that would hang fails instead; nothing is measured by it.
HANG_GUARD = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """A fresh, migrated database."""

    name: str
    owner_url: URL
    url: URL

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run a statement as the owner, and give its rows."""
        with psycopg.connect(connection_string(self.owner_url), autocommit=True) as connection:
            cursor = connection.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def set_clock(self, now: datetime, *, speed: float = 1.0) -> None:
        """Let `scheduler.now()` be `now` at this moment, and run at `speed` from there."""
        self.execute(
            f"""
            CREATE OR REPLACE FUNCTION scheduler.now() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS
            $$ SELECT timestamptz '{now.isoformat()}'
                 + (clock_timestamp() - timestamptz '{self.execute("SELECT clock_timestamp()")[0][0].isoformat()}')
                   * {speed} $$
            """
        )


def _fast_folder() -> Path | None:
    """Give memory to keep databases in, if there is enough: a database per test is mostly copying files."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 2**30 else None


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[EmbeddedPostgresql]:
    directory = Path(tempfile.mkdtemp(prefix="cronplane-test-", dir=_fast_folder()))
    directory.chmod(0o755)
    # Tests need no durability, and the time it takes is better spent on more of them.
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200"}
    with EmbeddedPostgresql(directory / "data", settings) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def entries() -> Iterator[CronRegistry]:
    """Every entry, those of the trial distribution included, which worker processes find on PYTHONPATH."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(DISTRIBUTIONS))
    patch.setenv("PYTHONPATH", str(DISTRIBUTIONS))
    registry = CronRegistry()
    registry.load()
    yield registry
    patch.undo()


@pytest.fixture(scope="session")
def template(postgresql_server: EmbeddedPostgresql, entries: CronRegistry) -> str:
    """The name of a migrated database to copy."""
    name = "migrated_template"
    with psycopg.connect(postgresql_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = parse_url(postgresql_server.url(database=name))
    migrate(url, entries=[str(entry) for entry in entries], service_role=SERVICE_ROLE)
    return name


@pytest.fixture
def create_database(postgresql_server: EmbeddedPostgresql) -> Iterator[Callable[[str], Database]]:
    """Make databases as copies of another (`template0` for an empty one); they go when the test ends."""
    made: list[str] = []
    with psycopg.connect(postgresql_server.url(), autocommit=True) as connection:

        def create(template: str) -> Database:
            name = f"test_{uuid4().hex}"
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
            made.append(name)
            return Database(
                name=name,
                owner_url=parse_url(postgresql_server.url(database=name)),
                url=parse_url(postgresql_server.url(database=name, user=SERVICE_ROLE)),
            )

        yield create
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(create_database: Callable[[str], Database], template: str) -> Database:
    return create_database(template)


@pytest.fixture
async def engine(database: Database) -> AsyncIterator[AsyncEngine]:
    """Connections as the service's role, so that what it is granted is proven by every test."""
    engine = create_engine(database.url, pool_size=10, application_name="test")
    yield engine
    await engine.dispose()


@pytest.fixture
async def organization(engine: AsyncEngine) -> Organization:
    async with transaction(engine) as connection:
        return await create_organization(connection, name="acme")


@pytest.fixture
async def other_organization(engine: AsyncEngine) -> Organization:
    async with transaction(engine) as connection:
        return await create_organization(connection, name="the competition")


@pytest.fixture
def statements(engine: AsyncEngine) -> list[tuple[str, Any]]:
    """Every statement that `engine` sends, with its parameters, as the driver gets them."""
    sent: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        sent.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    return sent


AddCron = Callable[..., Awaitable[Cron]]


@pytest.fixture
def add_cron(engine: AsyncEngine, organization: Organization) -> AddCron:
    """Write a cron as the registration would, with a payload that is taken as it is."""

    async def add(
        name: str = "a cron",
        *,
        cron_expr: str = "* * * * *",
        tz: str = "UTC",
        entrypoint: str = "no_op",
        payload: dict[str, Any] | None = None,
        enabled: bool = True,
        organization_id: UUID = organization.id,
        **policy: Any,
    ) -> Cron:
        definition = Definition(
            name=name,
            cron_expr=cron_expr,
            tz=tz,
            entrypoint=entrypoint,
            user_payload=payload or {},
            execution_payload=payload or {},
            policy=replace(Policy(timeout=timedelta(hours=1)), **policy),
            enabled=enabled,
        )
        async with transaction(engine) as connection:
            return await insert_cron(
                connection, cron_id=uuid4(), organization_id=organization_id, definition=definition, created_by="test"
            )

    return add


class Journal(RunRecorder):
    """A recorder that also remembers, so that a test can wait for what it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[FinishedRun] = []
        self.claims: list[NewRun] = []
        self.epochs: list[int] = []
        self.failures: list[Exception] = []
        self.obstacles: list[str] = []
        self._changed = asyncio.Event()

    def became_leader(self, *, holder: str, epoch: int) -> None:
        super().became_leader(holder=holder, epoch=epoch)
        self.epochs.append(epoch)
        self._changed.set()

    def stepped_down(self, *, reason: str) -> None:
        super().stepped_down(reason=reason)
        self._changed.set()

    def waiting(self, *, obstacle: str) -> None:
        super().waiting(obstacle=obstacle)
        self.obstacles.append(obstacle)
        self._changed.set()

    def claimed(self, runs: Sequence[NewRun]) -> None:
        super().claimed(runs)
        self.claims.extend(runs)
        self._changed.set()

    def finished(self, runs: Sequence[FinishedRun]) -> None:
        super().finished(runs)
        self.runs.extend(runs)
        self._changed.set()

    def term_failed(self, *, error: Exception) -> None:
        super().term_failed(error=error)
        self.failures.append(error)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that was recorded makes `condition` true."""
        async with asyncio.timeout(HANG_GUARD):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def of(self, cron_id: UUID) -> list[FinishedRun]:
        """Give the finished runs of one cron, in the order in which they finished."""
        return [run for run in self.runs if run.cron_id == cron_id]


@dataclass(slots=True)
class RunningRunner:
    """A runner at work in this process."""

    runner: Runner
    journal: Journal
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Drain and end."""
        self.runner.stop()
        async with asyncio.timeout(HANG_GUARD):
            await self.task


StartRunner = Callable[..., Awaitable[RunningRunner]]


@pytest.fixture
async def start_runner(database: Database, entries: CronRegistry) -> AsyncIterator[StartRunner]:
    """Start runners on the test's database; they end with the test, and must not have failed."""
    started: list[RunningRunner] = []

    async def start(*, wait: bool = True, **settings: Any) -> RunningRunner:
        url = SecretStr(database.url.render_as_string(hide_password=False))
        settings.setdefault("drain_grace", timedelta(seconds=0.5))
        journal = Journal()
        runner = Runner(settings=RunnerSettings(database_url=url, **settings), registry=entries, recorder=journal)
        running = RunningRunner(runner, journal, asyncio.create_task(runner.run()))
        started.append(running)
        if wait:
            async with asyncio.timeout(HANG_GUARD):
                await runner.leading.wait()
        return running

    yield start
    for running in started:
        await running.stop()
        assert running.journal.failures == []
