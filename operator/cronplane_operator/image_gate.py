"""Lets attempts begin whose body is a container: passes the start gate for them, since no process of theirs would.

Their Jobs are made suspended and noted first. Then the gate is passed, and only then the Job is let go on, which can be
said twice: whoever leads after a crash at any point finds in table and Job how far that was. No pod is there before the
gate, and none but the one of the Job that was noted.
"""

from contextlib import suppress
from datetime import datetime

from cronplane_core import failpoints
from cronplane_core.attempt_job_repository import AttemptJob, UnsettledJob
from cronplane_core.failpoints import Failpoint
from cronplane_core.kubernetes_client import (
    JOBS,
    Body,
    KubernetesClient,
    ResourceConflictError,
    ResourceInvalidError,
    ResourceNotFoundError,
)
from cronplane_operator.image_entries import ImageEntries, RefusedBody
from cronplane_operator.job_manifest import container_mark, made_mark, resumption
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.pod_attempt_record import PodAttemptRecord


class ImageGate:
    """Lets in for one term."""

    def __init__(self, *, term: TermContext, client: KubernetesClient, entries: ImageEntries) -> None:
        self._client = client
        self._entries = entries
        self._attempts = PodAttemptRecord(term)

    async def let_in(self, known: UnsettledJob, job: Body, *, now: datetime) -> None:
        """Pass the gate for a Job's attempt and let its pod be made; a Job of what is wanted no more is made anew."""
        attempt = await self._attempts.read_pending(known.job.run_id, known.job.number)
        if attempt is None:
            return
        if attempt.entrypoint not in self._entries:
            await self._make_anew(known.job)
            return
        body = await self._entries.body(attempt)
        if isinstance(body, RefusedBody):
            await self._attempts.end_unbegun(attempt.run_id, attempt.number, body.ended, error=body.error)
        elif container_mark(body) != made_mark(job):
            await self._make_anew(known.job)
        elif (started := await self._attempts.begin(attempt)) is not None:
            await self.resume(known.job, deadline=started.deadline, now=now)

    async def resume(self, job: AttemptJob, *, deadline: datetime, now: datetime) -> None:
        """Let a Job go on whose attempt has passed the gate, until its deadline; one that is gone by now is left."""
        patch = resumption(uid=job.uid, within=deadline - now)
        with suppress(ResourceNotFoundError, ResourceConflictError, ResourceInvalidError):
            await self._client.patch(JOBS, patch, name=job.name, namespace=job.namespace)
            failpoints.reach(Failpoint.JOB_RESUMED)

    async def _make_anew(self, job: AttemptJob) -> None:
        """Have the launcher make another Job, by what the cron says now; this one has made no pod."""
        with suppress(ResourceNotFoundError, ResourceConflictError):
            await self._client.delete(JOBS, name=job.name, namespace=job.namespace, uid=job.uid)
        await self._attempts.forget(job)
