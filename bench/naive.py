"""The naive form of this system: APScheduler with its stock job store, one insert and one update per run.

Each cron is a job with APScheduler's own cron trigger in an `SQLAlchemyJobStore`; its default of ten threads run them.
A run reads its cron, inserts its row into our own `cron_runs`, calls the entry, and updates the row, through the ORM.
"""

import threading
import time
from datetime import UTC, datetime
from uuid import UUID, uuid4

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import URL, DateTime, Engine, create_engine
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from bench.distributions.bench_entries import NothingToDo, do_nothing
from bench.server import add_crons, connect

_THREADS = 10
_engines: list[Engine] = []


class Base(DeclarativeBase):
    """The tables, mapped as they are."""


class CronJob(Base):
    """A cron, as far as a run needs it."""

    __tablename__ = "cron_jobs"
    __table_args__ = ({"schema": "scheduler"},)
    id: Mapped[UUID] = mapped_column(primary_key=True)
    organization_id: Mapped[UUID]
    execution_payload: Mapped[dict[str, object]] = mapped_column(JSONB)
    generation: Mapped[int]


class CronRun(Base):
    """A run."""

    __tablename__ = "cron_runs"
    __table_args__ = ({"schema": "scheduler"},)
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    organization_id: Mapped[UUID]
    cron_id: Mapped[UUID]
    scheduled_for: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    trigger_kind: Mapped[str]
    status: Mapped[str]
    reason: Mapped[str]
    message: Mapped[str]
    generation: Mapped[int]
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


def run_cron(cron_id: str) -> None:
    """Read the cron, insert its run, do nothing, and update the run."""
    with Session(_engines[0]) as session:
        cron = session.get_one(CronJob, UUID(cron_id))
        run = CronRun(
            organization_id=cron.organization_id,
            cron_id=cron.id,
            scheduled_for=datetime.now(UTC),
            trigger_kind="schedule",
            status="running",
            reason="Started",
            message="Started.",
            generation=cron.generation,
            started_at=datetime.now(UTC),
        )
        session.add(run)
        session.commit()
        do_nothing(NothingToDo.model_validate(cron.execution_payload))
        run.status, run.reason, run.finished_at = "completed", "Completed", datetime.now(UTC)
        session.commit()


def measure(url: URL, *, count: int) -> float:
    """Let `count` jobs come due at once; returns the seconds until the last has run."""
    engine = create_engine(url, pool_size=_THREADS)
    _engines[:] = [engine]
    with connect(url) as connection:
        add_crons(connection, count=count, cron_expr="0 12 * * *")
        crons = [str(row[0]) for row in connection.execute("SELECT id FROM scheduler.cron_jobs").fetchall()]
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=url.render_as_string(hide_password=False))},
        executors={"default": ThreadPoolExecutor(_THREADS)},
        job_defaults={"misfire_grace_time": None},
        timezone=UTC,
    )
    all_done = _count_down(scheduler, count)
    scheduler.start(paused=True)
    due = datetime.now(UTC)
    for cron_id in crons:
        # Due as soon as the scheduler may look.
        scheduler.add_job(run_cron, CronTrigger(hour=12, timezone=UTC), args=[cron_id], next_run_time=due)
    started = time.perf_counter()
    scheduler.resume()
    all_done.wait()
    elapsed = time.perf_counter() - started
    scheduler.shutdown()
    engine.dispose()
    return elapsed


def start_lags(url: URL, *, count: int) -> list[float]:
    """Let `count` jobs come due at once; gives how many seconds after the first of them each run started."""
    measure(url, count=count)
    with connect(url) as connection:
        rows = connection.execute(
            "SELECT extract(epoch FROM started_at - min(started_at) OVER ()) FROM scheduler.cron_runs"
        ).fetchall()
    return [float(str(lag)) for (lag,) in rows]


def _count_down(scheduler: BackgroundScheduler, count: int) -> threading.Event:
    left, all_done, lock = [count], threading.Event(), threading.Lock()

    def on_executed(_: object) -> None:
        with lock:
            left[0] -= 1
            if not left[0]:
                all_done.set()

    scheduler.add_listener(on_executed, EVENT_JOB_EXECUTED)
    return all_done
