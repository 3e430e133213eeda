"""Proof by the account of a pod, which shows a projected service-account token (Kubernetes, "TokenReview"; RFC 7519).

It counts for an attempt if Kubernetes knows it, issued it for us, to a pod that is there and that is controlled by the
very Job which was noted for the attempt. No answer is believed for longer than ten seconds.
"""

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_api.attempt_proof import ProofOpener
from cronplane_api.errors import NOT_READY, ProblemError
from cronplane_core import attempt_job_repository as attempt_jobs
from cronplane_core.attempt_job_repository import AttemptJob
from cronplane_core.database import autocommit
from cronplane_core.kubernetes_client import (
    PODS,
    TOKEN_REVIEWS,
    Body,
    KubernetesClient,
    KubernetesError,
    ResourceNotFoundError,
)
from cronplane_core.signed_tokens import TokenInvalidError

AUDIENCE = "cronplane"
_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_BELIEVED = timedelta(seconds=10)
_MOST_BELIEVED = 10_000
_GONE = frozenset({"Succeeded", "Failed"})


class TokenReviewProof:
    """Proof by the service-account token of a pod."""

    def __init__(self, *, client: KubernetesClient, engine: AsyncEngine) -> None:
        self._client = client
        self._engine = engine
        self._believed: OrderedDict[tuple[bytes, UUID, int], datetime] = OrderedDict()

    async def prove(self, credential: str, *, run_id: UUID, number: int, now: datetime) -> None:
        """Ask Kubernetes about a token, unless it was asked a moment ago and said yes."""
        key = (hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest(), run_id, number)
        if (until := self._believed.get(key)) is not None and now < until <= now + _BELIEVED:
            return
        try:
            await self._review(credential, run_id=run_id, number=number)
        except KubernetesError as error:
            raise ProblemError(NOT_READY, f"Kubernetes cannot be asked about the token. {error}") from error
        self._believe(key, now + _BELIEVED)

    async def _review(self, credential: str, *, run_id: UUID, number: int) -> None:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": credential, "audiences": [AUDIENCE]},
        }
        status = (await self._client.create(TOKEN_REVIEWS, review)).get("status", {})
        if not status.get("authenticated") or AUDIENCE not in status.get("audiences", []):
            raise TokenInvalidError("Kubernetes does not know the token, or has not issued it for us")
        async with autocommit(self._engine) as connection:
            job = await attempt_jobs.read(connection, run_id=run_id, number=number)
        if job is None:
            raise ProblemError(NOT_READY, "The Job of the attempt is not noted yet; ask again shortly")
        await self._check_pod(status["user"], job)

    async def _check_pod(self, user: Body, job: AttemptJob) -> None:
        if user.get("username") != f"system:serviceaccount:{job.namespace}:{job.service_account}":
            raise TokenInvalidError("the token is another account's")
        extra = user.get("extra", {})
        name, uid = _only(extra.get(_POD_NAME)), _only(extra.get(_POD_UID))
        if name is None or uid is None:
            raise TokenInvalidError("the token is bound to no pod")
        try:
            pod = await self._client.get(PODS, name=name, namespace=job.namespace)
        except ResourceNotFoundError as error:
            raise TokenInvalidError("the pod is gone") from error
        if pod["metadata"]["uid"] != uid or pod.get("status", {}).get("phase") in _GONE:
            raise TokenInvalidError("the pod is gone")
        if _controller(pod) != job.uid:
            raise TokenInvalidError("the pod is not the attempt's")

    def _believe(self, key: tuple[bytes, UUID, int], until: datetime) -> None:
        self._believed[key] = until
        self._believed.move_to_end(key)
        if len(self._believed) > _MOST_BELIEVED:
            self._believed.popitem(last=False)


def opener(*, kubeconfig: Path | None) -> ProofOpener:
    """Give what opens this kind of proof with the cluster of a kubeconfig, or without one with that of this pod."""

    @asynccontextmanager
    async def opened(engine: AsyncEngine) -> AsyncIterator[TokenReviewProof]:
        async with KubernetesClient.connected(kubeconfig=kubeconfig) as client:
            yield TokenReviewProof(client=client, engine=engine)

    return opened


def _only(values: object) -> str | None:
    return values[0] if isinstance(values, list) and len(values) == 1 else None


def _controller(pod: Body) -> str | None:
    owners = pod["metadata"].get("ownerReferences", [])
    return next((owner["uid"] for owner in owners if owner.get("controller") and owner["kind"] == "Job"), None)
