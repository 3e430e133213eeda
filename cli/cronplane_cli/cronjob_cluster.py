"""Reads CronJobs from a cluster, and does nothing else there: `list` on `cronjobs.batch` is all the right it needs."""

import asyncio
from pathlib import Path

from cronplane_core.kubernetes_client import CRONJOBS, Body, KubernetesClient


def read(*, kubeconfig: Path | None, namespace: str | None, selector: str) -> list[Body]:
    """Read the CronJobs of a namespace, or without one of all, whose labels match.

    Raises:
        KubernetesError: the cluster cannot be reached, or it said no.

    """
    return asyncio.run(_read(kubeconfig=kubeconfig, namespace=namespace, selector=selector))


async def _read(*, kubeconfig: Path | None, namespace: str | None, selector: str) -> list[Body]:
    async with KubernetesClient.connected(kubeconfig=kubeconfig) as client:
        return await client.list_all(CRONJOBS, namespace=namespace, selector=selector)
