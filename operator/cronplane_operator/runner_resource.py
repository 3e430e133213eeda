"""The Runner resource: how an installation fares, as its leader says, for `kubectl get runners`."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from cronplane_core import lease as leases
from cronplane_core.cron_mirror_repository import Totals, read_totals
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.kubernetes_client import RUNNERS, Body, KubernetesClient, KubernetesError
from cronplane_core.settings import KubernetesSettings
from cronplane_operator.cron_mirror import MirrorState
from cronplane_operator.cron_mirror_plan import Verdict, conditions
from cronplane_operator.job_launcher import LaunchState
from cronplane_operator.kopf_watch import WatchState
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.resource_registration import RegistrationState
from cronplane_operator.runner_metrics import Load

# Seconds between two looks; what has not changed is not written.
_INTERVAL = 5.0


class RunnerResource:
    """Writes the one Runner of an installation, while its process leads."""

    def __init__(
        self,
        *,
        settings: KubernetesSettings,
        client: KubernetesClient,
        mirror: Callable[[], MirrorState],
        watch: Callable[[], WatchState],
        registration: Callable[[], RegistrationState],
        launches: LaunchState,
    ) -> None:
        self._settings = settings
        self._client = client
        self._mirror = mirror
        self._watch = watch
        self._registration = registration
        self._launches = launches
        self._load: Load | None = None
        self._status: Body = {}
        self._is_there = False

    def touched(self, cron_ids: Iterable[UUID]) -> None:
        """Take no notice: what becomes of single crons is not told here."""

    def observed(self, load: Load) -> None:
        """Take in how much there is to do."""
        self._load = load

    def loops(self, term: TermContext) -> Sequence[Coroutine[None, None, None]]:
        """Tell until the term ends."""
        return [self._keep_telling(term)]

    async def _keep_telling(self, term: TermContext) -> None:
        self._is_there = False
        while True:
            try:
                await self._tell(term)
            except (KubernetesError, DatabaseUnavailableError):
                # Whoever asks the API server meanwhile learns nothing anyhow; metrics and log tell of it.
                self._is_there = False
            await asyncio.sleep(term.clock.real_seconds(_INTERVAL))

    async def _tell(self, term: TermContext) -> None:
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            totals = await read_totals(connection)
        if not self._is_there:
            applied = await self._apply({"spec": {}})
            self._status = applied.get("status", {})
            self._is_there = True
        status = self._told(term, totals, now)
        if status != self._status:
            applied = await self._apply({"status": status}, subresource="status")
            self._status = applied.get("status", {})

    async def _apply(self, part: Body, *, subresource: str | None = None) -> Body:
        namespace = self._settings.release_namespace
        body = {
            "apiVersion": f"{RUNNERS.group}/{RUNNERS.version}",
            "kind": "Runner",
            "metadata": {"name": self._settings.installation, "namespace": namespace},
            **part,
        }
        return await self._client.apply(RUNNERS, body, namespace=namespace, subresource=subresource)

    def _told(self, term: TermContext, totals: Totals, now: datetime) -> Body:
        mirror = self._mirror()
        status: dict[str, Any] = {
            "holder": term.lease.holder,
            "epoch": term.lease.epoch,
            "queued": totals.queued,
            "running": totals.running,
            "mirrored": totals.mirrored,
            "mirror_backlog": mirror.backlog,
            "conditions": conditions(self._verdicts(), generation=1, before=self._status, now=now),
        }
        if (load := self._load) is not None:
            status |= {
                "crons": load.scheduled,
                "next_fire": None if load.next_fire is None else f"{load.next_fire:%Y-%m-%dT%H:%M:%SZ}",
                "lag_seconds": int(load.next_fire_lag),
            }
        return {name: value for name, value in status.items() if value is not None}

    def _verdicts(self) -> Mapping[str, Verdict]:
        mirror, registration, watch = self._mirror(), self._registration(), self._watch()
        ready = Verdict(holds=True, reason="Leading", message="A runner leads and fires.")
        if mirror.trouble:
            message = f"The mirror is behind: {mirror.trouble}"
            degraded = Verdict(holds=True, reason=mirror.trouble_reason, message=message)
        elif registration.trouble:
            message = f"Resources wait to be registered: {registration.trouble}"
            degraded = Verdict(holds=True, reason=registration.trouble_reason, message=message)
        elif registration.held:
            degraded = Verdict(holds=True, reason="DeletionsHeld", message=registration.held)
        elif self._launches.trouble:
            message = f"Runs wait for their pods: {self._launches.trouble}"
            degraded = Verdict(holds=True, reason="JobsNotLaunched", message=message)
        elif not watch.is_watching and watch.ends:
            degraded = Verdict(
                holds=True, reason="WatchEnded", message=f"Kopf ended and is started again: {watch.reason}"
            )
        else:
            degraded = Verdict(holds=False, reason="AsExpected", message="Resources are watched and mirrored.")
        return {"Ready": ready, "Degraded": degraded}
