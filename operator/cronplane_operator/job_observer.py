"""Looks at the Jobs of attempts: ends what ended without telling, says what is held up, keeps logs, cleans up.

Level-triggered: each look compares the table with a whole list of Jobs; whoever tells that something has happened only
makes the next look come sooner. What the process in a pod tells by itself does not pass here. A container of the
payload's tells nothing: it is let in from here, and ended when it is to end.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cronplane_core import attempt_job_repository as attempt_jobs
from cronplane_core import lease as leases
from cronplane_core.attempt_job_repository import UnsettledJob
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.kubernetes_client import (
    EVENTS,
    JOBS,
    PODS,
    Body,
    KubernetesClient,
    KubernetesError,
    KubernetesRefusedError,
    ResourceConflictError,
    ResourceNotFoundError,
)
from cronplane_core.run_states import ATTEMPT_TIMEOUT, AttemptEnd, EndedAttempt
from cronplane_core.run_transitions import FinishedAttempt
from cronplane_core.settings import PodSettings
from cronplane_operator import image_outcome, pod_outcome
from cronplane_operator.event_waits import any_set_or_elapsed
from cronplane_operator.image_gate import ImageGate
from cronplane_operator.job_manifest import (
    ATTEMPT_LABEL,
    CONTAINER,
    INSTALLATION_LABEL,
    KEPT,
    RUN_LABEL,
    SETTLED_LABEL,
    JobPlace,
    made_mark,
)
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.pod_attempt_record import PodAttemptRecord
from cronplane_operator.pod_outcome import Obstacle

MAXIMUM_LOG_BYTES = 64 * 1024
_JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
# Seconds between two looks while there are Jobs, and while nobody knows of any.
_LOOK_PAUSE = 3.0
_IDLE_PAUSE = 30.0
# Looks that are asked for sooner come at most this often.
_SHORTEST_PAUSE = 0.5
_LONGEST_BACKOFF = 30.0
_AT_ONCE = 16
# A pod that has not begun after so long shows why.
_HELD_UP = timedelta(seconds=5)
# What was cancelled or lost has this long to end by itself before its Job is deleted.
_LEAVE = timedelta(seconds=40)
# What is said of a run since it passed the gate.
_STARTED = "Started"
_CANCELLED = EndedAttempt(end=AttemptEnd.CANCELLED, reason="CancelRequested", message="Somebody cancelled the run.")
_JOB_DELETED = EndedAttempt(
    end=AttemptEnd.LOST,
    reason="JobDeleted",
    message="Somebody deleted the Job while its attempt was under way; how far it got is not known.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What shows why attempts do not begin: pods that are not over, by their Jobs' names, and refusals, by UIDs."""

    alive: Mapping[str, Sequence[Body]]
    refused: Mapping[str, str]

    def pods(self, known: UnsettledJob) -> Sequence[Body]:
        return self.alive.get(known.job.name, [])

    def obstacle(self, known: UnsettledJob) -> Obstacle:
        return pod_outcome.obstacle(self.pods(known), refused=self.refused.get(known.job.uid))


_NOTHING_SEEN = _Sight(alive={}, refused={})


class JobObserver:
    """Observes for one term. `wake` is set by whoever saw something happen to a Job."""

    def __init__(
        self,
        *,
        term: TermContext,
        client: KubernetesClient,
        settings: PodSettings,
        place: JobPlace,
        gate: ImageGate,
        precedence: LaunchPrecedence,
        wake: asyncio.Event,
    ) -> None:
        self._term = term
        self._client = client
        self._settings = settings
        self._place = place
        self._gate = gate
        self._precedence = precedence
        self._wake = wake
        self._attempts = PodAttemptRecord(term)
        self._now = datetime.min.replace(tzinfo=UTC)

    async def run(self) -> None:
        """Look again and again until cancelled.

        Raises:
            LeaseLostError: this process is not the leader any more.

        """
        backoff = _SHORTEST_PAUSE
        while True:
            await self._precedence.give_way()
            self._wake.clear()
            pause = _LOOK_PAUSE
            try:
                pause = _LOOK_PAUSE if await self.look() else _IDLE_PAUSE
                backoff = _SHORTEST_PAUSE
            except DatabaseUnavailableError as error:
                self._term.recorder.database_away(doing="observing jobs", error=error)
            except KubernetesError as error:
                self._term.recorder.pods_unseen(reason=str(error))
                backoff = pause = min(2 * backoff, _LONGEST_BACKOFF)
            await asyncio.sleep(_SHORTEST_PAUSE)
            await any_set_or_elapsed(self._wake, seconds=pause)

    async def look(self) -> int:
        """Compare once, and do what is to be done; gives how many Jobs there are that are not settled."""
        async with transaction(self._term.engine) as connection:
            self._now = await leases.check(connection, lease=self._term.lease)
            # Before the list: a Job that is noted and not listed is gone.
            known = await attempt_jobs.read_unsettled(connection)
        selector = f"{INSTALLATION_LABEL}={self._place.installation},{SETTLED_LABEL}!=true"
        listed = await self._client.list_all(JOBS, namespace=self._place.namespace, selector=selector)
        jobs = {body["metadata"]["uid"]: body for body in listed}
        held_up = [each for each in known if self._is_held_up(each, jobs.get(each.job.uid))]
        sight = await self._sight(held_up) if held_up else _NOTHING_SEEN
        await self._in_turn([self._look_at(each, jobs.get(each.job.uid), sight) for each in known])
        noted = {each.job.uid for each in known}
        await self._leave_none_over([body for body in listed if body["metadata"]["uid"] not in noted])
        return len(listed)

    async def _in_turn(self, looks: Sequence[Coroutine[None, None, None]]) -> None:
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(look: Coroutine[None, None, None]) -> None:
            async with room:
                await look

        failures = await asyncio.gather(*(one(look) for look in looks), return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    async def _look_at(self, known: UnsettledJob, body: Body | None, sight: _Sight) -> None:
        if body is None:
            await self._gone(known)
        elif pod_outcome.is_finished(body):
            await self._finished(known, body)
        elif not known.is_waiting and known.under_way is None:
            if self._is_left_over(known):
                await self._settle(known, await self._pods(known))
                await self._delete(known.job.name, known.job.uid)
        elif made_mark(body) is not None:
            await self._look_at_image(known, body, sight)
        elif self._is_held_up(known, body):
            await self._held_up(known, sight)

    async def _look_at_image(self, known: UnsettledJob, body: Body, sight: _Sight) -> None:
        """Bring on an attempt whose body is a container: in at its gate, and out when it is to end."""
        if known.is_waiting:
            await self._gate.let_in(known, body, now=self._now)
        elif body["metadata"].get("deletionTimestamp") or known.deadline is None:
            return
        elif known.is_cancel_requested or known.deadline <= self._now:
            await self._take_away(known)
        elif body["spec"].get("suspend"):
            await self._gate.resume(known.job, deadline=known.deadline, now=self._now)
        elif pod_outcome.is_running(body):
            if known.reason != _STARTED:
                await self._attempts.note_begun(known.job.run_id, known.job.number)
        elif self._is_held_up(known, body) and not pod_outcome.has_begun(sight.pods(known)):
            await self._held_up(known, sight)

    async def _take_away(self, known: UnsettledJob) -> None:
        """Have a container told to end (SIGTERM), then killed; its Job is gone when it is, and so ends the attempt."""
        if (log := await self._log(known, await self._pods(known))) is not None:
            await self._attempts.keep_log(known.job, log)
        await self._delete(known.job.name, known.job.uid, waits=True)

    async def _gone(self, known: UnsettledJob) -> None:
        if known.is_waiting:
            await self._attempts.forget(known.job)
            return
        if known.under_way is not None:
            ended = FinishedAttempt(nonce=known.under_way, ended=self._after_deletion(known))
            await self._attempts.end_under_way(known.job.run_id, ended)
        await self._attempts.settle(known.job, None)

    def _after_deletion(self, known: UnsettledJob) -> EndedAttempt:
        if known.is_cancel_requested:
            return _CANCELLED
        is_late = known.deadline is not None and known.deadline <= self._now
        return ATTEMPT_TIMEOUT if is_late else _JOB_DELETED

    async def _finished(self, known: UnsettledJob, body: Body) -> None:
        pods = await self._pods(known)
        if known.under_way is not None:
            await self._attempts.end_under_way(known.job.run_id, _finished_attempt(known.under_way, body, pods))
        elif known.is_waiting:
            await self._attempts.end_unbegun(known.job.run_id, known.job.number, _without_result(body, pods))
        await self._settle(known, pods)
        await self._mark(known)

    def _is_held_up(self, known: UnsettledJob, body: Body | None) -> bool:
        """Say whether a pod takes so long to begin its attempt that it shows why; a container's has passed the gate."""
        has_yet_to_begin = known.is_waiting or (known.under_way is not None and _is_podless_image(body))
        return has_yet_to_begin and self._now - known.awaited_since >= _HELD_UP

    async def _held_up(self, known: UnsettledJob, sight: _Sight) -> None:
        """Say what keeps an attempt from beginning, or end it if that has gone on for too long."""
        pods, found = sight.pods(known), sight.obstacle(known)
        if self._now - known.awaited_since < self._settings.pod_start_timeout:
            if found.reason != known.reason:
                run_id, number = known.job.run_id, known.job.number
                await self._attempts.note(run_id, number, reason=found.reason, message=found.message)
            return
        ended = EndedAttempt(end=AttemptEnd.ERROR, reason=found.reason, message=found.message)
        if known.under_way is not None:
            pods = await self._pods(known)
            if pod_outcome.has_begun(pods):
                return
            await self._attempts.end_under_way(known.job.run_id, FinishedAttempt(nonce=known.under_way, ended=ended))
        elif not await self._attempts.end_unbegun(known.job.run_id, known.job.number, ended):
            return
        await self._settle(known, pods)
        await self._delete(known.job.name, known.job.uid)

    def _is_left_over(self, known: UnsettledJob) -> bool:
        """Say whether nothing is to be expected of a Job any more; what was handed on may still be about to end."""
        if not known.has_begun:
            return True
        return known.ended_at is not None and self._now - known.ended_at > _LEAVE

    async def _sight(self, held_up: Sequence[UnsettledJob]) -> _Sight:
        """See why attempts do not begin, in two requests at most, however many there are."""
        alive = await self._pods_alive()
        is_podless = any(each.job.name not in alive for each in held_up)
        return _Sight(alive=alive, refused=pod_outcome.refusals(await self._refused_pods()) if is_podless else {})

    async def _refused_pods(self) -> list[Body]:
        fields = f"involvedObject.kind=Job,reason={pod_outcome.POD_REFUSED}"
        return await self._client.list_all(EVENTS, namespace=self._place.namespace, fields=fields)

    async def _pods_alive(self) -> dict[str, list[Body]]:
        """Give the pods that are not over by the names of their Jobs."""
        found: dict[str, list[Body]] = {}
        for pod in await self._client.list_all(
            PODS,
            namespace=self._place.namespace,
            selector=f"{INSTALLATION_LABEL}={self._place.installation}",
            fields="status.phase!=Succeeded,status.phase!=Failed",
        ):
            found.setdefault(pod["metadata"]["labels"].get(_JOB_NAME_LABEL, ""), []).append(pod)
        return found

    async def _pods(self, known: UnsettledJob) -> list[Body]:
        """Give the pods of a Job, the newest first."""
        selector = f"{_JOB_NAME_LABEL}={known.job.name}"
        pods = await self._client.list_all(PODS, namespace=known.job.namespace, selector=selector)
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), reverse=True)

    async def _settle(self, known: UnsettledJob, pods: Sequence[Body]) -> None:
        await self._attempts.settle(known.job, await self._log(known, pods))

    async def _log(self, known: UnsettledJob, pods: Sequence[Body]) -> str | None:
        """Read the end of what the newest pod wrote; None if there is nothing to be had."""
        for pod in pods[:1]:
            with suppress(KubernetesRefusedError):
                written = await self._client.pod_log(
                    name=pod["metadata"]["name"],
                    namespace=known.job.namespace,
                    container=CONTAINER,
                    tail_bytes=MAXIMUM_LOG_BYTES,
                )
                return written.decode("utf-8", "replace").replace("\0", "\ufffd")
        return None

    async def _mark(self, known: UnsettledJob) -> None:
        """Have a settled Job listed no more; Kubernetes deletes it after its time."""
        patch = {"metadata": {"labels": {SETTLED_LABEL: "true"}}, "spec": {"ttlSecondsAfterFinished": KEPT}}
        with suppress(ResourceNotFoundError):
            await self._client.patch(JOBS, patch, name=known.job.name, namespace=known.job.namespace)

    async def _delete(self, name: str, uid: str, *, waits: bool = False) -> None:
        with suppress(ResourceNotFoundError, ResourceConflictError):
            await self._client.delete(JOBS, name=name, namespace=self._place.namespace, uid=uid, waits=waits)

    async def _leave_none_over(self, unknown: Sequence[Body]) -> None:
        """Delete Jobs that no attempt waits for, and that no table tells of; the launcher adopts the others."""
        found = {attempt: body for body in unknown if (attempt := _attempt_of(body)) is not None}
        if not found:
            return
        async with transaction(self._term.engine) as connection:
            wanted = await attempt_jobs.read_wanted(connection, attempts=list(found))
        for attempt, body in found.items():
            if attempt not in wanted:
                await self._delete(body["metadata"]["name"], body["metadata"]["uid"])


def _is_podless_image(job: Body | None) -> bool:
    """Say whether the container of a payload neither runs nor ran."""
    if job is None or made_mark(job) is None:
        return False
    return not pod_outcome.is_running(job) and not pod_outcome.has_ended_pods(job)


def _finished_attempt(nonce: UUID, job: Body, pods: Sequence[Body]) -> FinishedAttempt:
    """Say how an attempt ended whose Job is over: by its process, which told nothing, or by its container."""
    if made_mark(job) is not None:
        return image_outcome.finished(nonce, job, pods)
    return FinishedAttempt(nonce=nonce, ended=pod_outcome.ended(job, pods))


def _without_result(body: Body, pods: Sequence[Body]) -> EndedAttempt:
    """Say how a Job ended whose attempt never began: without having done anything, whatever its exit code."""
    ended = pod_outcome.ended(body, pods)
    if ended.end in {AttemptEnd.COMPLETED, AttemptEnd.TIMED_OUT}:
        found = pod_outcome.obstacle(pods)
        return EndedAttempt(end=AttemptEnd.ERROR, reason=found.reason, message=found.message)
    return ended


def _attempt_of(body: Body) -> tuple[UUID, int] | None:
    labels = body["metadata"].get("labels", {})
    try:
        return UUID(labels[RUN_LABEL]), int(labels[ATTEMPT_LABEL])
    except (KeyError, ValueError):
        return None
