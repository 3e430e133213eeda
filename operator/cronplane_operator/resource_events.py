"""Kubernetes Events about our resources: few, since what happens again is counted in the one that is there.

An Event that cannot be written is let go: it tells people, and decides nothing.
"""

import hashlib
from datetime import datetime

from cronplane_core.kubernetes_client import (
    EVENTS,
    Body,
    KubernetesClient,
    KubernetesError,
    ResourceConflictError,
    ResourceNotFoundError,
)
from cronplane_operator.cron_mirror_plan import Remark

_COMPONENT = "cronplane"
_DIGEST_LENGTH = 16


class ResourceEvents:
    """Writes Events, one for each resource and reason (core/v1 Event, as `kubectl describe` shows it)."""

    def __init__(self, *, client: KubernetesClient) -> None:
        self._client = client
        self._counts: dict[str, int] = {}

    async def tell(self, resource: Body, remark: Remark, *, now: datetime) -> None:
        """Tell of something at `now` (aware), or count it once more."""
        metadata = resource["metadata"]
        name = _name(metadata["name"], metadata["uid"], remark.reason)
        try:
            await self._count(name, resource, remark, f"{now:%Y-%m-%dT%H:%M:%SZ}")
        except KubernetesError:
            self._counts.pop(name, None)

    async def _count(self, name: str, resource: Body, remark: Remark, stamp: str) -> None:
        namespace = resource["metadata"]["namespace"]
        if name not in self._counts:
            try:
                await self._client.create(EVENTS, _event(name, resource, remark, stamp), namespace=namespace)
            except ResourceConflictError:
                found = await self._client.get(EVENTS, name=name, namespace=namespace)
                self._counts[name] = int(found.get("count", 1))
            else:
                self._counts[name] = 1
                return
        again = {"count": self._counts[name] + 1, "lastTimestamp": stamp, "message": remark.message}
        try:
            await self._client.patch(EVENTS, again, name=name, namespace=namespace)
        except ResourceNotFoundError:
            # Kubernetes forgets Events after an hour.
            await self._client.create(EVENTS, _event(name, resource, remark, stamp), namespace=namespace)
            again["count"] = 1
        self._counts[name] = int(str(again["count"]))


def _event(name: str, resource: Body, remark: Remark, stamp: str) -> Body:
    metadata = resource["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": remark.type,
        "reason": remark.reason,
        "message": remark.message,
        "count": 1,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "source": {"component": _COMPONENT},
        "reportingComponent": _COMPONENT,
        "reportingInstance": _COMPONENT,
    }


def _name(resource: str, uid: str, reason: str) -> str:
    digest = hashlib.sha256(f"{uid} {reason}".encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{resource}.{digest}"
