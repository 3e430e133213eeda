"""What tests share: a real PostgreSQL with a fresh database for each test, its clock, and a runner that tells all."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import settings
from pydantic import SecretStr
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_repository
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.cron_repository import Cron, Definition, NewCron, Policy, insert_crons
from cronplane_core.database import connection_string, create_engine, parse_url, transaction
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_core.lease import LeaseState
from cronplane_core.organization_repository import Organization, create_organization
from cronplane_core.run_repository import Run
from cronplane_core.run_states import Decision, RunState
from cronplane_core.run_transitions import FinishedRun, NewRun, StartedAttempt
from cronplane_core.settings import RunnerSettings
from cronplane_entries.registry import CronRegistry
from cronplane_migrations.migrate import migrate
from cronplane_operator.account_scan import ScanReport
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner
from cronplane_operator.runner_metrics import Load

# How long an example takes says how busy the machine is; what hangs is stopped by a guard.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
DISTRIBUTIONS = Path(__file__).parent / "distributions"
PROGRAMS = Path(__file__).parent / "programs"
SERVICE_ROLE = "cronplane_service"
# Only so that a test that would hang fails instead; nothing is measured by it.
HANG_GUARD = 60.0
SHOWN_LINES = 100


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
    return cron_writer(engine, organization)


def cron_writer(engine: AsyncEngine, organization: Organization) -> AddCron:
    """Give what `add_cron` is, for a database of one's own."""

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
            new = NewCron(id=uuid4(), definition=definition, created_by="test")
            [cron] = await insert_crons(connection, organization_id=organization_id, crons=[new])
            return cron

    return add


AddMany = Callable[..., Awaitable[list[UUID]]]


@pytest.fixture
def add_many(database: Database, add_cron: AddCron) -> AddMany:
    """Write that many crons alike in one statement, and give their ids."""

    async def add(count: int, **definition: Any) -> list[UUID]:
        model = await add_cron("model", **{**definition, "enabled": False})
        rows = database.execute(
            """
            WITH cron AS (
                INSERT INTO scheduler.cron_jobs (organization_id, name, cron_expr, tz, entrypoint, user_payload,
                                                 execution_payload, timeout, created_by, updated_by)
                SELECT organization_id, 'cron ' || n, cron_expr, tz, entrypoint, user_payload, execution_payload,
                       timeout, created_by, updated_by
                FROM scheduler.cron_jobs, generate_series(1, %s) AS n WHERE id = %s
                RETURNING *
            )
            INSERT INTO scheduler.cron_job_versions
                   (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
            SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM cron
            RETURNING cron_id
            """,
            [count, model.id],
        )
        return [cron_id for (cron_id,) in rows]

    return add


Queue = Callable[..., Awaitable[Run]]


@pytest.fixture
def queue(engine: AsyncEngine, add_cron: AddCron) -> Queue:
    """Queue a run by hand."""

    async def queue(entrypoint: str, payload: dict[str, Any], **others: Any) -> Run:
        cron = await add_cron(entrypoint=entrypoint, payload=payload, enabled=False, **others)
        async with transaction(engine) as connection:
            return await run_repository.insert_manual_run(
                connection, cron=cron, created_by="test", execution_payload=None
            )

    return queue


class End(NamedTuple):
    """How a run of an entry ends, wherever it runs."""

    entrypoint: str
    payload: dict[str, Any]
    status: str
    reason: str


ENDS = [
    End("no_op", {}, "completed", "Completed"),
    End("no_op_async", {}, "completed", "Completed"),
    End("print_much", {}, "completed", "Completed"),
    End("fail", {"text": "it did not work"}, "error", "ExecutorFailed"),
    End("refuse_to_run", {}, "error", "ValidatorFailed"),
    End("return_value", {"text": "nan"}, "error", "ResultInvalid"),
    End("exit_hard", {}, "error", "WorkerExited"),
    End("segfault", {}, "error", "WorkerCrashed"),
    End("raise_exit", {}, "error", "ExecutorExited"),
    End("cancel_itself", {}, "error", "ExecutorCancelled"),
    End("no_op", {"unknown": 1}, "error", "PayloadInvalid"),
]


@pytest.fixture(params=ENDS, ids=lambda end: f"{end.entrypoint}-{end.reason}")
def end(request: pytest.FixtureRequest) -> End:
    """Each of the ends that are the same in a pod and in the runner."""
    chosen: End = request.param
    return chosen


@pytest.fixture
def ends() -> list[End]:
    """All of them at once."""
    return ENDS


class Journal(RunRecorder):
    """A recorder that also remembers, so that a test can wait for what it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[FinishedRun] = []
        self.claims: list[NewRun] = []
        self.epochs: list[int] = []
        self.failures: list[Exception] = []
        self.obstacles: list[str] = []
        self.scans: list[ScanReport] = []
        self.loads: list[Load] = []
        self.sights = 0
        self.started_runs: list[UUID] = []
        self.retries: list[UUID] = []
        self.waiting_runs: list[UUID] = []
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

    def leader_seen(self, lease: LeaseState | None) -> None:
        super().leader_seen(lease)
        self.sights += 1
        self._changed.set()

    def claimed(self, runs: Sequence[NewRun]) -> None:
        super().claimed(runs)
        self.claims.extend(runs)
        self._changed.set()

    def started(self, attempts: Sequence[StartedAttempt]) -> None:
        super().started(attempts)
        self.started_runs.extend(attempt.run.id for attempt in attempts)
        self._changed.set()

    def retry_scheduled(self, *, run: RunState, decision: Decision) -> None:
        super().retry_scheduled(run=run, decision=decision)
        self.retries.append(run.id)
        self._changed.set()

    def handed_on(self, *, run: RunState) -> None:
        super().handed_on(run=run)
        self.waiting_runs.append(run.id)
        self._changed.set()

    def finished(self, runs: Sequence[FinishedRun]) -> None:
        super().finished(runs)
        self.runs.extend(runs)
        self._changed.set()

    def term_failed(self, *, error: Exception) -> None:
        super().term_failed(error=error)
        self.failures.append(error)
        self._changed.set()

    def scanned(self, report: ScanReport) -> None:
        super().scanned(report)
        self.scans.append(report)
        self._changed.set()

    def observed(self, load: Load) -> None:
        super().observed(load)
        self.loads.append(load)
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
        settings = {"database_url": url, "drain_grace": timedelta(seconds=0.5), **settings}
        journal = Journal()
        runner = Runner(settings=RunnerSettings(**settings), registry=entries, recorder=journal)
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


# Faults


@pytest.fixture
def seed() -> str:
    """What every random choice of a test follows from; it is printed when the test fails, and can be given again."""
    chosen = os.environ.get("CRONPLANE_TEST_SEED") or secrets.token_hex(4)
    sys.stdout.write(f"CRONPLANE_TEST_SEED={chosen}\n")
    return chosen


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgresql]:
    """A PostgreSQL that a test may stop."""
    directory = Path(tempfile.mkdtemp(prefix="cronplane-test-", dir=_fast_folder()))
    directory.chmod(0o755)
    with EmbeddedPostgresql(directory / "data", {"fsync": "off"}) as server:
        yield server
    shutil.rmtree(directory)


@pytest.fixture
def migrate_on(entries: CronRegistry) -> Callable[[EmbeddedPostgresql], Database]:
    """Make a migrated database on a server of the test's own."""

    def migrate_on(server: EmbeddedPostgresql) -> Database:
        owner_url = parse_url(server.url())
        migrate(owner_url, entries=[str(entry) for entry in entries], service_role=SERVICE_ROLE)
        return Database(name="postgres", owner_url=owner_url, url=owner_url.set(username=SERVICE_ROLE))

    return migrate_on


class Lines:
    """What a program says, read as it comes, so that the program is never held up by us."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=[stream], daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    def count(self, text: str) -> int:
        with self._changed:
            return sum(1 for line in self._lines if text in line)

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """Wait until so many lines have this text, and give the last of them."""

        def found() -> list[str]:
            return [line for line in self._lines if text in line]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= times, HANG_GUARD), f"{text!r} in {self._lines}"
            return found()[times - 1]

    def close(self) -> None:
        self._reader.join()

    def show(self, title: str) -> None:
        """Print what was said, which pytest keeps for a test that fails."""
        sys.stdout.writelines([f"--- {title}\n", *self._lines[-SHOWN_LINES:]])


@pytest.fixture
def make_lines() -> Callable[[IO[str]], Lines]:
    """Read what a program says that a test has started by itself."""
    return Lines


@dataclass(frozen=True, slots=True, kw_only=True)
class CronplaneProcess:
    """A role as a process, which can be killed, stopped and made to go on."""

    process: subprocess.Popen[str]
    log: Lines

    def wait_killed(self) -> None:
        assert self.process.wait(HANG_GUARD) == -signal.SIGKILL

    def kill(self) -> None:
        self.process.kill()
        self.wait_killed()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> None:
        """Ask it to drain and end."""
        self.send(signal.SIGTERM)
        assert self.process.wait(HANG_GUARD) == 0

    @property
    def address(self) -> str:
        """Where an API is served."""
        return "http://" + self.log.wait_for("Uvicorn running on").partition("http://")[2].split()[0].strip('",')


StartProcess = Callable[..., CronplaneProcess]


@pytest.fixture
def start_process(database: Database, entries: CronRegistry, seed: str) -> Iterator[StartProcess]:
    """Start roles as processes, armed with a failpoint if one is named (see `fault_entries`); none outlives the test.

    Settings are named as their classes name them.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CRONPLANE_")}
    installation_key = secrets.token_urlsafe(32)
    with ExitStack() as stack:

        def start(
            role: str, *, failpoint: str = "", distributions: str = str(DISTRIBUTIONS), **settings: object
        ) -> CronplaneProcess:
            settings = {
                "database_url": connection_string(database.url),
                "installation_key": installation_key,
                "port": 0,
                "metrics_port": 0,
                "drain_grace": 0.5,
                "test_failpoint": failpoint,
                "test_seed": seed,
                **settings,
            }
            process = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "cronplane_with_faults.py"), role],
                stderr=subprocess.PIPE,
                text=True,
                env={
                    **inherited,
                    **{f"CRONPLANE_{name.upper()}": str(value) for name, value in settings.items()},
                    "PYTHONPATH": distributions,
                },
            )
            stack.enter_context(process)
            assert process.stderr is not None
            log = Lines(process.stderr)
            stack.callback(log.show, role)
            stack.callback(log.close)
            stack.callback(process.kill)
            return CronplaneProcess(process=process, log=log)

        yield start


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """Another way to the test's database, on which connections break as ordered (see `postgresql_relay`)."""

    url: URL
    process: subprocess.Popen[str]
    told: Lines

    def order(self, **rates: object) -> None:
        """Break connections at these rates from now on, and no others."""
        orders = self.told.count("ordered")
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(rates) + "\n")
        self.process.stdin.flush()
        self.told.wait_for("ordered", times=orders + 1)


@pytest.fixture
def relay(database: Database, seed: str) -> Iterator[Relay]:
    directory = Path(tempfile.mkdtemp(prefix="cronplane-relay-"))
    upstream = Path(str(database.url.query["host"])) / ".s.PGSQL.5432"
    process = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "postgresql_relay.py"), str(directory), str(upstream), seed],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        told = Lines(process.stdout)
        told.wait_for("ready")
        yield Relay(url=database.url.set(query={"host": str(directory)}), process=process, told=told)
        process.kill()
        told.close()
    shutil.rmtree(directory)


Until = Callable[..., Awaitable[None]]
_TELL_CHANGES = """
    CREATE OR REPLACE FUNCTION public.tell_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('test_changed', ''); RETURN NULL; END $$;
"""
_TELL_CHANGE = """
    CREATE OR REPLACE TRIGGER tell_change AFTER INSERT OR UPDATE OR DELETE ON scheduler.{table}
    EXECUTE FUNCTION public.tell_change();
"""


@pytest.fixture
def until(database: Database) -> Until:
    """Wait until a query gives true; it is asked whenever runs, attempts, jobs or leases change."""

    tables = ("cron_runs", "cron_attempts", "apscheduler_jobs", "leases")
    database.execute(_TELL_CHANGES + "".join(_TELL_CHANGE.format(table=table) for table in tables))
    address = connection_string(database.owner_url)

    async def until(query: str, parameters: Sequence[object] = ()) -> None:
        async with asyncio.timeout(HANG_GUARD), await psycopg.AsyncConnection.connect(address, autocommit=True) as own:
            await own.execute("LISTEN test_changed")
            while True:
                cursor = await own.execute(query, parameters)
                if await cursor.fetchone() == (True,):
                    return
                async for _ in own.notifies(stop_after=1):
                    pass

    return until


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The file in which the entry `keep_ledger` writes down what it does; name it in the payload."""
    return tmp_path / "ledger"


@pytest.fixture
def assert_nothing_is_lost(
    database: Database, ledger: Path, until: Until, entries: CronRegistry
) -> Callable[[], Awaitable[None]]:
    """Let the runners bring everything that is due to its end, then hold fires against rows, and rows against effects.

    A runner must be there; the clock goes on at the speed of time.
    """
    fault_entries = import_module("fault_entries")

    async def check() -> None:
        database.set_clock(database.execute("SELECT scheduler.now()")[0][0])
        await until(fault_entries.SETTLED)
        engine = create_engine(database.url, pool_size=1, application_name="test")
        violations = [violation async for violation in find_violations(engine, grace=Grace())]
        await engine.dispose()
        assert violations == []
        outcomes = {(run_id, number): outcome for run_id, number, outcome in database.execute(fault_entries.ATTEMPTS)}
        assert list(fault_entries.discrepancies(fault_entries.read_ledger(ledger), outcomes)) == []

    return check
