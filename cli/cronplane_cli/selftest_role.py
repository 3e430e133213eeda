"""Tries an installation as a user would: a cron is registered, run, looked at with Kubernetes' eyes, and removed.

It leaves nothing behind, whatever fails. Whether the run has to have had a pod is what the API says of its entry.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from cronplane_cli.administration import Administration
from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_core.kubernetes_client import CRONS, Body, KubernetesClient, ResourceNotFoundError
from cronplane_core.log import configure_logging
from cronplane_core.settings import LogSettings, SelftestSettings
from cronplane_entries.core import ExecutionMode

_ENTRY = "dummy_print"
# It is only ever triggered: the next of its fires is as far away as may be.
_SCHEDULE = "0 0 29 2 *"
# Seconds between two looks.
_PAUSE = 1.0
FoundT = TypeVar("FoundT")


def run() -> Iterator[str]:
    """Go the whole way of a cron; tells of each step that went well, in a sentence.

    Raises:
        CronplaneError: a step failed, or all of it took too long; the message says where it stood.

    """
    configure_logging(read_settings(LogSettings))
    settings = read_settings(SelftestSettings)
    return _Selftest(settings).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cron:
    """The cron of this trial, and a client whose key reaches it."""

    client: Administration
    organization_id: UUID
    namespace: str
    id: UUID
    name: str


class _Selftest:
    def __init__(self, settings: SelftestSettings) -> None:
        self._settings = settings
        self._give_up = time.monotonic() + settings.selftest_patience.total_seconds()

    def run(self) -> Iterator[str]:
        key = self._settings.installation_key.get_secret_value()
        installation = Administration(url=self._settings.url, key=key)
        self._until(lambda: installation.is_ready() or None, waiting_for=lambda: "the API is not ready")
        organization = self._organization(installation)
        organization_id = UUID(organization["id"])
        made = installation.create_key(organization_id=organization_id, name="selftest", role="editor")
        try:
            yield from self._try_cron(Administration(url=self._settings.url, key=made["key"]), organization)
        finally:
            installation.revoke_key(organization_id=organization_id, key_id=UUID(made["id"]))

    def _organization(self, installation: Administration) -> dict[str, Any]:
        for organization in installation.list_organizations():
            if organization["name"] == self._settings.selftest_organization:
                return organization
        raise CommandError(f"There is no organization {self._settings.selftest_organization!r} to try things with")

    def _try_cron(self, client: Administration, organization: dict[str, Any]) -> Iterator[str]:
        name = f"selftest-{secrets.token_hex(4)}"
        organization_id = UUID(organization["id"])
        body = {
            "name": name,
            "cron_expr": _SCHEDULE,
            "tz": "UTC",
            "entrypoint": _ENTRY,
            "payload": {"message": "Cronplane works"},
        }
        registered = client.register_cron(organization_id=organization_id, cron=body)
        cron = _Cron(
            client=client,
            organization_id=organization_id,
            namespace=self._namespace(organization),
            id=UUID(registered["id"]),
            name=name,
        )
        try:
            yield f"The cron {name} is registered; its next fire would be at {registered['next_fires'][0]}."
            yield from self._try_run(cron)
        finally:
            client.delete_cron(organization_id=organization_id, cron_id=cron.id)
        self._until(lambda: self._resource(cron) is None or None, waiting_for=lambda: "the resource is still there")
        yield "The cron is deleted, and its resource is gone."

    def _try_run(self, cron: _Cron) -> Iterator[str]:
        run = cron.client.trigger_cron(organization_id=cron.organization_id, cron_id=cron.id)
        ended = self._ended_run(cron, UUID(run["id"]))
        if ended["status"] != "completed":
            raise CommandError(f"The run ended as {ended['status']} ({ended['reason']}): {ended['message']}")
        yield f"Its run {run['id']} has completed."
        resource = self._until(
            lambda: _last_run(self._resource(cron), run_id=run["id"]),
            waiting_for=lambda: f"the resource {cron.namespace}/{cron.name} does not tell of the run",
        )
        job = resource.get("job")
        if job is None and _runs_in_pod(cron.client):
            raise CommandError("The run had no Job, although its entry runs in pods: look at the operator's log")
        yield f"kubectl get cron {cron.name} -n {cron.namespace} tells of it" + (
            f"; its Job was {job}." if job else "."
        )

    def _ended_run(self, cron: _Cron, run_id: UUID) -> dict[str, Any]:
        last: dict[str, Any] = {}

        def look() -> dict[str, Any] | None:
            last.update(cron.client.read_run(organization_id=cron.organization_id, cron_id=cron.id, run_id=run_id))
            return last if last["finished_at"] else None

        return self._until(
            look, waiting_for=lambda: f"the run is {last['status']} ({last['reason']}): {last['message']}"
        )

    def _namespace(self, organization: dict[str, Any]) -> str:
        """Give where the resources of an organization are: its first namespace, or the release's."""
        of_it = {organization["name"], organization["id"]}
        mapped = sorted(name for name, reference in self._settings.namespaces.items() if str(reference) in of_it)
        return mapped[0] if mapped else self._settings.release_namespace

    def _resource(self, cron: _Cron) -> Body | None:
        return asyncio.run(_read_cron(self._settings, cron))

    def _until(self, look: Callable[[], FoundT | None], *, waiting_for: Callable[[], str]) -> FoundT:
        """Look again and again until there is something.

        Raises:
            CommandError: the time for all of it is over.

        """
        while True:
            found = look()
            if found is not None:
                return found
            if time.monotonic() >= self._give_up:
                raise CommandError(f"The time is over, and {waiting_for()}")
            time.sleep(_PAUSE)


async def _read_cron(settings: SelftestSettings, cron: _Cron) -> Body | None:
    async with KubernetesClient.connected(kubeconfig=settings.kubeconfig) as kubernetes:
        try:
            return await kubernetes.get(CRONS, name=cron.name, namespace=cron.namespace)
        except ResourceNotFoundError:
            return None


def _runs_in_pod(client: Administration) -> bool:
    return any(
        entry["name"] == _ENTRY and entry["execution"] == ExecutionMode.POD for entry in client.list_entrypoints()
    )


def _last_run(resource: Body | None, *, run_id: str) -> Body | None:
    """Give what a resource tells of a run that has completed; None if it does not yet."""
    runs: list[Body] = (resource or {}).get("status", {}).get("runs", [])
    return next((run for run in runs if run["id"] == run_id and run["status"] == "completed"), None)
