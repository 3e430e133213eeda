"""Makes the Jobs of attempts that are to run in pods: bounded, in turns between organizations, apart from claiming.

A Job's name derives from run and attempt, so that making it twice meets the first one. What Kubernetes refuses is tried
again until the cron's catch-up window is over; while Kubernetes is away, everything waits. The launcher starts no run:
an attempt in a pod passes the start gate by itself, or the Job of its container is let go on by `image_gate`.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from cronplane_core import attempt_job_repository as attempt_jobs
from cronplane_core import failpoints
from cronplane_core import lease as leases
from cronplane_core.attempt_job_repository import AttemptJob, UnlaunchedAttempt
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.kubernetes_client import (
    JOBS,
    Body,
    KubernetesClient,
    KubernetesRefusedError,
    KubernetesUnavailableError,
    ResourceConflictError,
)
from cronplane_core.run_states import AttemptEnd, EndedAttempt
from cronplane_core.settings import PodProfile, PodSettings
from cronplane_operator.claim_decision import DEFAULT_CATCHUP_WINDOW
from cronplane_operator.event_waits import any_set_or_elapsed
from cronplane_operator.fair_queue import FairQueue
from cronplane_operator.image_entries import ImageEntries, RefusedBody
from cronplane_operator.job_manifest import JobPlace, image_job, is_job_of, job, job_name, service_account
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.pod_attempt_record import PodAttemptRecord
from cronplane_operator.pod_outcome import is_quota, without_usage

# Seconds between two looks at the table, if nobody tells.
_LOOK_PAUSE = 1.0
_UNAVAILABLE_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LOOK_BATCH = 2000
_RECORD_BATCH = 100
_SHORTEST_REFUSAL_PAUSE = timedelta(seconds=5)
_LONGEST_REFUSAL_PAUSE = timedelta(seconds=60)
_NO_PROFILE = PodProfile()


@dataclass(slots=True)
class LaunchState:
    """How launching goes; `trouble` is why it does not get on, or empty."""

    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """When an attempt is tried again whose Job was refused, and how long that was put off."""

    until: datetime
    pause: timedelta


class JobLauncher:
    """Launches for one term. `profiles` names the pod profile of each entry that runs in pods.

    `images` tells which of them make containers their attempts' bodies.
    """

    def __init__(
        self,
        *,
        term: TermContext,
        client: KubernetesClient,
        settings: PodSettings,
        place: JobPlace,
        profiles: Mapping[str, str],
        images: ImageEntries,
        state: LaunchState,
        precedence: LaunchPrecedence,
        on_launched: Callable[[], None],
    ) -> None:
        self._term = term
        self._client = client
        self._settings = settings
        self._place = place
        self._profiles = profiles
        self._images = images
        self._state = state
        self._precedence = precedence
        self._on_launched = on_launched
        self._attempts = PodAttemptRecord(term)
        self._refused: dict[UUID, _Refusal] = {}
        self._made: list[AttemptJob] = []
        self._pause = 0.0
        self._rests = False

    async def run(self) -> None:
        """Launch until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more.

        """
        claimed, changed = self._term.runs_claimed.subscribe(), self._term.runs_changed.subscribe()
        while True:
            claimed.clear()
            changed.clear()
            try:
                while await self._launch_batch():
                    pass
            except DatabaseUnavailableError as error:
                self._term.recorder.database_away(doing="launching", error=error)
            if self._rests:
                await asyncio.sleep(self._pause)
            await any_set_or_elapsed(claimed, changed, seconds=_LOOK_PAUSE)

    async def _launch_batch(self) -> bool:
        """Launch what there is; tells whether there may be more."""
        async with transaction(self._term.engine) as connection:
            now = await leases.check(connection, lease=self._term.lease)
            self._refused = {run_id: each for run_id, each in self._refused.items() if each.until > now - _A_WHILE}
            found = await attempt_jobs.read_unlaunched(
                connection,
                entrypoints=list(self._profiles),
                now=now,
                besides=[run_id for run_id, each in self._refused.items() if each.until > now],
                limit=_LOOK_BATCH,
            )
        if not found:
            if not self._refused:
                self._state.trouble = ""
            return False
        queue: FairQueue[UnlaunchedAttempt] = FairQueue()
        for attempt in found:
            queue.put(attempt.organization_id, attempt)
        await self._launch_all(queue, now=now)
        return len(found) == _LOOK_BATCH and not self._rests

    async def _launch_all(self, queue: FairQueue[UnlaunchedAttempt], *, now: datetime) -> None:
        self._rests = False
        launches = (self._launch_from(queue, now=now) for _ in range(min(self._settings.pod_launches, len(queue))))
        with self._precedence.held():
            failures = [each for each in await asyncio.gather(*launches, return_exceptions=True) if each is not None]
        await self._record()
        if failures:
            raise failures[0]

    async def _launch_from(self, queue: FairQueue[UnlaunchedAttempt], *, now: datetime) -> None:
        while not self._rests and (taken := queue.take(1)):
            await self._launch(taken[0], now=now)
            if len(self._made) >= _RECORD_BATCH:
                await self._record()

    async def _launch(self, attempt: UnlaunchedAttempt, *, now: datetime) -> None:
        profile = self._profile(attempt)
        body = await self._body(attempt, profile)
        if body is None:
            return
        try:
            made = await self._make(attempt, body)
        except KubernetesUnavailableError as error:
            self._put_off(error)
        except KubernetesRefusedError as error:
            await self._refuse(attempt, error, now=now)
        else:
            self._state.trouble, self._pause = "", 0.0
            self._refused.pop(attempt.run_id, None)
            if made is not None:
                self._made.append(self._attempt_job(attempt, made, profile))

    async def _body(self, attempt: UnlaunchedAttempt, profile: PodProfile) -> Body | None:
        """Give the Job to make for an attempt; None if there is to be none."""
        if attempt.entrypoint not in self._images:
            return job(attempt, place=self._place, settings=self._settings, profile=profile)
        told = await self._attempts.read_pending(attempt.run_id, attempt.number)
        if told is None or told.entrypoint not in self._images:
            return None
        body = await self._images.body(told)
        if isinstance(body, RefusedBody):
            await self._attempts.end_unbegun(told.run_id, told.number, body.ended, error=body.error)
            return None
        return image_job(attempt, body, told=told, place=self._place, settings=self._settings, profile=profile)

    def _profile(self, attempt: UnlaunchedAttempt) -> PodProfile:
        return self._settings.pod_profiles.get(self._profiles[attempt.entrypoint], _NO_PROFILE)

    async def _make(self, attempt: UnlaunchedAttempt, body: Body) -> Body | None:
        """Give the attempt's Job, made now or before; None if one of its name is another's, or still going away."""
        try:
            return await self._create(body)
        except ResourceConflictError:
            name = job_name(attempt.run_id, attempt.number)
            found = await self._client.get(JOBS, name=name, namespace=self._place.namespace)
        if found["metadata"].get("deletionTimestamp"):
            return None
        if is_job_of(found, installation=self._place.installation, run_id=attempt.run_id, number=attempt.number):
            return found
        await self._attempts.end_unbegun(attempt.run_id, attempt.number, _conflict(name, self._place.namespace))
        return None

    async def _create(self, body: Body) -> Body:
        failpoints.reach(Failpoint.JOB_CREATE)
        made = await self._client.create(JOBS, body, namespace=self._place.namespace)
        failpoints.reach(Failpoint.JOB_CREATED)
        return made

    def _put_off(self, error: KubernetesUnavailableError) -> None:
        """Let all launching rest, for as long as Kubernetes says, or longer each time."""
        if self._rests:
            return
        self._rests = True
        told = error.retry_after
        self._pause = min(told if told is not None else max(2 * self._pause, _UNAVAILABLE_PAUSE), _LONGEST_PAUSE)
        self._state.trouble = str(error)

    async def _refuse(self, attempt: UnlaunchedAttempt, error: KubernetesRefusedError, *, now: datetime) -> None:
        reason = "Quota" if is_quota(str(error)) else "JobRefused"
        told = "Kubernetes takes no Job for it at the moment. {}"
        self._state.trouble, message = told.format(error), told.format(without_usage(str(error)))
        if now >= attempt.since + (attempt.catchup_window or DEFAULT_CATCHUP_WINDOW):
            await self._give_up(attempt, reason=reason, message=message)
            return
        before = self._refused.get(attempt.run_id)
        pause = _SHORTEST_REFUSAL_PAUSE if before is None else min(2 * before.pause, _LONGEST_REFUSAL_PAUSE)
        self._refused[attempt.run_id] = _Refusal(until=now + pause, pause=pause)
        await self._attempts.note(attempt.run_id, attempt.number, reason=reason, message=message)

    async def _give_up(self, attempt: UnlaunchedAttempt, *, reason: str, message: str) -> None:
        """End a run for which there was no Job in its whole catch-up window."""
        if attempt.number > 1:
            ended = EndedAttempt(end=AttemptEnd.ERROR, reason=reason, message=message, may_retry=False)
            await self._attempts.end_unbegun(attempt.run_id, attempt.number, ended)
            return
        await self._attempts.miss(attempt.run_id, reason=reason, message=message)

    def _attempt_job(self, attempt: UnlaunchedAttempt, made: Body, profile: PodProfile) -> AttemptJob:
        return AttemptJob(
            run_id=attempt.run_id,
            number=attempt.number,
            namespace=self._place.namespace,
            name=made["metadata"]["name"],
            uid=made["metadata"]["uid"],
            service_account=service_account(self._settings, profile),
        )

    async def _record(self) -> None:
        """Note whose Jobs were made; what is not noted, because PostgreSQL is away, is found and adopted."""
        made, self._made = self._made, []
        if not made:
            return
        async with transaction(self._term.engine) as connection:
            await leases.check(connection, lease=self._term.lease)
            await attempt_jobs.keep(connection, jobs=made)
        self._term.recorder.launched(jobs=len(made))
        self._on_launched()


_A_WHILE = timedelta(minutes=10)


def _conflict(name: str, namespace: str) -> EndedAttempt:
    return EndedAttempt(
        end=AttemptEnd.ERROR,
        reason="NameConflict",
        message=f"Job {namespace}/{name} is there and was not made by this installation; delete it.",
    )
