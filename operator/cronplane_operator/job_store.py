"""APScheduler's job store, answering from memory.

APScheduler stops for good when a store raises, so this one has nothing that could: what it holds is written to
`apscheduler_jobs` by the claim and by the reconciler, never from here. This is also the border between the two clocks:
every `next_run_time` inside is the database's, and only the time to wake up is told in this machine's.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heappush
from uuid import UUID

from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore, ConflictingIdError, JobLookupError

from cronplane_core.timeline import FireSource
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.fire_trigger import FireTrigger

JOB_STORE = "default"
EXECUTOR = "default"


class CronJob(Job):  # type: ignore[misc]  # APScheduler has no type information
    """One cron as APScheduler sees it: only when it fires next, for which generation, and by which trigger.

    It is made without `Job.__init__`, which inspects a callable that we do not have, at 50 µs each.
    """

    __slots__ = ("_jobstore_alias", "cron_id", "generation", "id", "next_run_time", "organization_id", "trigger")

    executor = EXECUTOR
    name = "cron"
    coalesce = True
    max_instances = 1
    misfire_grace_time = None

    def __init__(
        self,
        *,
        cron_id: UUID,
        organization_id: UUID,
        generation: int,
        trigger: FireTrigger,
        next_run_time: datetime,
    ) -> None:
        self.id = str(cron_id)
        self.cron_id = cron_id
        self.organization_id = organization_id
        self.generation = generation
        self.trigger = trigger
        self.next_run_time: datetime | None = next_run_time
        self._jobstore_alias = JOB_STORE

    @property
    def source(self) -> FireSource:
        """What knows when the cron fires."""
        source: FireSource = self.trigger.source
        return source

    def _get_run_times(self, now: datetime) -> list[datetime]:
        # The store said that the job is due by the database's clock; APScheduler would ask this machine's again.
        del now
        return [] if self.next_run_time is None else [self.next_run_time]

    def _modify(self, **changes: datetime) -> None:
        self.next_run_time = changes["next_run_time"]


class CronJobStore(BaseJobStore):  # type: ignore[misc]  # APScheduler has no type information
    """Every scheduled cron, ordered by its next fire. `looks` counts how often APScheduler asked what is due."""

    def __init__(self, *, clock: DatabaseClock, batch: int) -> None:
        super().__init__()
        self._clock = clock
        self._batch = batch
        self._jobs: dict[str, CronJob] = {}
        # An entry whose job has gone, or moved on, is stale and dropped when it comes to the top.
        self._heap: list[tuple[datetime, str]] = []
        self.looks = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def lookup_job(self, job_id: str) -> CronJob | None:
        """Find a job by its id, the cron's id as text."""
        return self._jobs.get(job_id)

    def get_due_jobs(self, now: datetime) -> list[CronJob]:
        """Give up to one batch of jobs that are due by the database's clock; `now`, this machine's, does not count."""
        del now
        self.looks += 1
        instant = self._clock.now()
        due: dict[str, CronJob] = {}
        while len(due) < self._batch and (job := self._first()) is not None and self._heap[0][0] <= instant:
            heappop(self._heap)
            due[job.id] = job
        for job in due.values():
            self._push(job)
        return list(due.values())

    def get_next_run_time(self) -> datetime | None:
        """Give the time to wake up, by this machine's clock, or None if nothing is scheduled."""
        job = self._first()
        if job is None or job.next_run_time is None:
            return None
        wait = (job.next_run_time - self._clock.now()).total_seconds()
        return datetime.now(UTC) + timedelta(seconds=max(self._clock.real_seconds(wait), 0.0))

    def next_fire(self) -> datetime | None:
        """Give the earliest fire of all (aware, UTC, by the database's clock), or None if nothing is scheduled."""
        job = self._first()
        return None if job is None else job.next_run_time

    def get_all_jobs(self) -> list[CronJob]:
        """Give every job, soonest first."""
        return sorted(self._jobs.values(), key=_order)

    def add_job(self, job: CronJob) -> None:
        """Take in a job that is not here yet."""
        if job.id in self._jobs:
            raise ConflictingIdError(job.id)
        self._jobs[job.id] = job
        self._push(job)

    def update_job(self, job: CronJob) -> None:
        """Take in a job's new next fire."""
        if job.id not in self._jobs:
            raise JobLookupError(job.id)
        self._jobs[job.id] = job
        self._push(job)

    def put(self, job: CronJob) -> None:
        """Take in a job, in place of the one of the same cron if there is one."""
        self._jobs[job.id] = job
        self._push(job)

    def remove_job(self, job_id: str) -> None:
        """Forget a job; it does not fire again."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            raise JobLookupError(job_id)
        job.next_run_time = None

    def discard(self, job_id: str) -> None:
        """Forget a job, if there is one."""
        if job_id in self._jobs:
            self.remove_job(job_id)

    def remove_all_jobs(self) -> None:
        """Forget every job."""
        self._jobs.clear()
        self._heap.clear()

    def _first(self) -> CronJob | None:
        while self._heap:
            instant, job_id = self._heap[0]
            job = self._jobs.get(job_id)
            if job is not None and job.next_run_time == instant:
                return job
            heappop(self._heap)
        return None

    def _push(self, job: CronJob) -> None:
        if job.next_run_time is not None:
            heappush(self._heap, (job.next_run_time, job.id))
        if len(self._heap) > 2 * len(self._jobs) + 1024:
            self._heap = list(self._entries())
            heapify(self._heap)

    def _entries(self) -> Iterator[tuple[datetime, str]]:
        return ((job.next_run_time, job.id) for job in self._jobs.values() if job.next_run_time is not None)


def _order(job: CronJob) -> datetime:
    return job.next_run_time or datetime.max.replace(tzinfo=UTC)
