"""Removes from a cluster what an installation has made there and nobody else would: mirrors, its Runner, Jobs of runs.

They have no owner whom Kubernetes could delete them with, since an owner has to be in their own namespace. It asks no
database, which may be gone: what an installation made bears its name, and a Cron with a payload is a person's whatever
its labels say, as labels can be copied with the rest. Such a Cron is kept, as its definition is.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from cronplane_core.kubernetes_client import (
    CRONS,
    JOBS,
    RUNNERS,
    Body,
    KubernetesClient,
    ResourceConflictError,
    ResourceKind,
    ResourceNotFoundError,
)
from cronplane_core.settings import KubernetesSettings
from cronplane_operator.cron_resources import is_registration
from cronplane_operator.errors import RunnerError
from cronplane_operator.job_manifest import INSTALLATION_LABEL

# Seconds until what a dying operator has written in the meantime is looked for.
_PAUSE = 2.0
_LOOKS = 30


class StillRunningError(RunnerError):
    """The operator makes anew what is removed; the message says to stop it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """How many resources were removed, and how many Crons in the same namespaces are kept."""

    mirrors: int
    jobs: int
    kept: int


class Uninstallation:
    """Removes one installation, whose operator has been stopped; else that would make the mirrors anew."""

    def __init__(self, *, settings: KubernetesSettings, run_namespace: str, client: KubernetesClient) -> None:
        self._settings = settings
        self._run_namespace = run_namespace
        self._client = client

    async def run(self) -> Removal:
        """Remove what there is, and look again until nothing more is found.

        Raises:
            KubernetesError: something could not be removed; do it again.
            StillRunningError: what was removed is made anew all the time.

        """
        mirrors = jobs = 0
        for _ in range(_LOOKS):
            removed = await self._remove_once()
            if removed is None:
                break
            mirrors, jobs = mirrors + removed[0], jobs + removed[1]
            await asyncio.sleep(_PAUSE)
        else:
            raise StillRunningError(f"The operator of {self._settings.installation} still runs; stop it first")
        with suppress(ResourceNotFoundError):
            await self._client.delete(
                RUNNERS, name=self._settings.installation, namespace=self._settings.release_namespace
            )
        return Removal(mirrors=mirrors, jobs=jobs, kept=len(await self._crons()))

    async def _remove_once(self) -> tuple[int, int] | None:
        mirrors = [body for body in await self._crons() if is_mirror(body, installation=self._settings.installation)]
        selector = f"{INSTALLATION_LABEL}={self._settings.installation}"
        jobs = await self._listed(JOBS, namespace=self._run_namespace, selector=selector)
        # Those that are being deleted are as good as gone: others may have put finalizers on them.
        living = [body for body in jobs if "deletionTimestamp" not in body["metadata"]]
        for kind, bodies in ((CRONS, mirrors), (JOBS, living)):
            for body in bodies:
                await self._delete(kind, body)
        return (len(mirrors), len(living)) if mirrors or living else None

    async def _crons(self) -> list[Body]:
        namespaces = sorted({*self._settings.namespaces, self._settings.release_namespace})
        return [body for namespace in namespaces for body in await self._listed(CRONS, namespace=namespace)]

    async def _listed(self, kind: ResourceKind, *, namespace: str, selector: str = "") -> list[Body]:
        try:
            return await self._client.list_all(kind, namespace=namespace, selector=selector)
        except ResourceNotFoundError:
            # Without a definition of them there are none.
            return []

    async def _delete(self, kind: ResourceKind, body: Body) -> None:
        metadata = body["metadata"]
        # Gone, or another one by now, which the next look judges.
        with suppress(ResourceNotFoundError, ResourceConflictError):
            await self._client.delete(kind, name=metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"])


def is_mirror(body: Body, *, installation: str) -> bool:
    """Say whether a Cron was made by an installation and is no person's."""
    metadata = body["metadata"]
    is_ours = metadata.get("labels", {}).get(INSTALLATION_LABEL) == installation
    return is_ours and not is_registration(body) and "deletionTimestamp" not in metadata
