"""Registers the Cron resources that people apply, and lets go of crons whose resources they delete.

Level-triggered: each look compares the resources with the table, and the plan of it is carried out. What is refused is
kept for the mirror to say, which alone writes resources. A cron is deleted only after two complete lists without its
resource, with definition and namespace still the same.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from cronplane_core import cron_mirror_repository, cron_source_repository
from cronplane_core import lease as leases
from cronplane_core.cron_source_repository import ResourceCron
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.kubernetes_client import (
    NAMESPACES,
    RESOURCE_DEFINITIONS,
    RUNNERS,
    Body,
    KubernetesClient,
    KubernetesError,
    ResourceKind,
    ResourceNotFoundError,
)
from cronplane_core.settings import KubernetesSettings
from cronplane_entries.registration import Registrar
from cronplane_operator.cron_mirror_plan import Refusal, RefusalReason
from cronplane_operator.cron_resources import CRON_DEFINITION, CronResources
from cronplane_operator.event_waits import any_set_or_elapsed
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.namespace_organizations import NamespaceOrganizations
from cronplane_operator.resource_registrar import ResourceRegistrar
from cronplane_operator.resource_registration_plan import (
    LISTS_UNTIL_GONE,
    Registering,
    RegistrationPlan,
    digest,
    of_concern,
    plan,
    strangers,
)

CONFIRMATION = "crons.cronplane.dev/confirm-deletions"
# Seconds. What was refused may be taken by now, and what nobody told of is found.
_COMPARISON_INTERVAL = 60.0
# What comes within this many seconds is registered together.
_GATHER = 0.3
# Between the lists that a deletion takes: who deletes many needs some time for it.
_LIST_PAUSE = 5.0
# Between two questions whether deletions are confirmed.
_HELD_PAUSE = 5.0
_LONGEST_BACKOFF = 30.0
_AT_ONCE = 8


@dataclass(slots=True)
class RegistrationState:
    """How registration goes. `refusals` are by UID; `trouble` and `held` are sentences, or empty."""

    refusals: dict[str, Refusal] = field(default_factory=dict)
    trouble: str = ""
    trouble_reason: str = ""
    held: str = ""


class ResourceRegistration:
    """Registers for one installation, while its process leads. `on_refused` is called when refusals have changed."""

    def __init__(
        self,
        *,
        settings: KubernetesSettings,
        client: KubernetesClient,
        resources: CronResources,
        organizations: NamespaceOrganizations,
        registrar: Registrar,
        on_refused: Callable[[], None],
    ) -> None:
        self._on_refused = on_refused
        self._settings = settings
        self._client = client
        self._resources = resources
        self._organizations = organizations
        self._registrar = registrar
        self._scopes: dict[str, str] = {}
        self._absences: dict[str, int] = {}
        self._lists = 0
        self._is_list_due = True
        self._list_again_at = 0.0
        self._wake = asyncio.Event()
        self._changed = resources.changed.subscribe()
        self.state = RegistrationState()

    def namespace_seen(self, name: str) -> None:
        """Learn that something has become of a namespace."""
        if name in self._resources.namespaces:
            self._is_list_due = True
            self._wake.set()

    def loops(self, term: TermContext) -> Sequence[Coroutine[None, None, None]]:
        """Register until the term ends."""
        return [self._keep_registering(term)]

    async def _keep_registering(self, term: TermContext) -> None:
        registrar = ResourceRegistrar(term=term, registrar=self._registrar)
        self._is_list_due, self._absences = True, {}
        # What an earlier term has refused may be registered by now, or be another's to judge.
        self.state.refusals = {}
        backoff = _GATHER
        while True:
            self._wake.clear()
            self._changed.clear()
            try:
                pause = await self._compare(term, registrar)
                self.state.trouble = self.state.trouble_reason = ""
                backoff = _GATHER
            except (KubernetesError, DatabaseUnavailableError) as error:
                self.state.trouble, self.state.trouble_reason = str(error), type(error).__name__.removesuffix("Error")
                self._is_list_due = True
                backoff = pause = min(2 * backoff, _LONGEST_BACKOFF)
            await asyncio.sleep(backoff)
            await any_set_or_elapsed(self._wake, self._changed, seconds=pause)

    async def _compare(self, term: TermContext, registrar: ResourceRegistrar) -> float:
        """Compare once, and do what is to be done; gives the seconds until the next time, if nobody tells."""
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            await self._organizations.read(connection)
            crons = await cron_source_repository.read_all(connection)
        time = asyncio.get_running_loop().time
        if self._is_list_due or (self._is_any_missing(crons) and time() >= self._list_again_at):
            await self._list()
            self._list_again_at = time() + _LIST_PAUSE
        if is_list_new := self._lists != self._resources.lists:
            await self._judge_list(crons)
        decided = await self._decide(term, crons)
        await self._carry_out(registrar, decided, now=now, again=is_list_new)
        if decided.register or decided.delete or decided.disable:
            term.crons_changed.set()
        if self._is_any_missing(crons):
            return max(self._list_again_at - time(), 0.0)
        return _HELD_PAUSE if decided.held else _COMPARISON_INTERVAL

    async def _list(self) -> None:
        # Without their definition there is none of them, which is a complete list, too.
        with suppress(ResourceNotFoundError):
            await self._resources.list()
        self._is_list_due = False

    def _is_any_missing(self, crons: Collection[ResourceCron]) -> bool:
        """Say whether a resource is missing of which it is not known yet that it is gone."""
        missing = (uid for cron in crons if (uid := self._missing_uid(cron)) is not None)
        return any(self._absences.get(uid, 0) < LISTS_UNTIL_GONE for uid in missing)

    def _missing_uid(self, cron: ResourceCron) -> str | None:
        """Give the UID of a cron's resource if it is not where it was; nothing is missed where nobody can look."""
        place = cron.resource
        if place.uid is None or place.namespace in self._resources.unlisted:
            return None
        found = self._resources.at(namespace=place.namespace, name=place.name)
        return None if found is not None and found["metadata"]["uid"] == place.uid else place.uid

    async def _judge_list(self, crons: Collection[ResourceCron]) -> None:
        """Count from how many lists in a row each known resource was missing, and see what there still is beside."""
        lists = self._resources.lists
        self._scopes = await self._read_scopes()
        self._lists = lists
        missing = [uid for cron in crons if (uid := self._missing_uid(cron)) is not None]
        self._absences = {uid: self._absences.get(uid, 0) + 1 for uid in missing}

    async def _read_scopes(self) -> dict[str, str]:
        """Name with what the resources of each namespace would go: their definition, and the namespace itself."""
        definition = await self._lasting(RESOURCE_DEFINITIONS, CRON_DEFINITION)
        if definition is None:
            return {}
        found = {name: await self._lasting(NAMESPACES, name) for name in self._resources.namespaces}
        return {name: f"{definition} {uid}" for name, uid in found.items() if uid is not None}

    async def _lasting(self, kind: ResourceKind, name: str) -> str | None:
        """Give the UID of an object, None if it is not there or about to go."""
        with suppress(ResourceNotFoundError):
            metadata = (await self._client.get(kind, name=name))["metadata"]
            return None if metadata.get("deletionTimestamp") else str(metadata["uid"])
        return None

    async def _decide(self, term: TermContext, crons: Collection[ResourceCron]) -> RegistrationPlan:
        resources = of_concern(self._resources, crons)
        async with transaction(term.engine) as connection:
            mirrors = await cron_mirror_repository.read_mirrors_among(connection, uids=strangers(resources, crons))
        decide = partial(self._decided, resources, crons, mirrors)
        decided = decide(confirmed=None)
        if decided.held and (confirmed := await self._confirmation()) is not None:
            decided = decide(confirmed=confirmed)
        await self._hold(term, decided.held, crons)
        return decided

    async def _hold(self, term: TermContext, held: Collection[ResourceCron], crons: Collection[ResourceCron]) -> None:
        """Note which crons are held where the next leader finds it, before any of the others is let go."""
        now_held = {cron.id for cron in held}
        if now_held == {cron.id for cron in crons if cron.is_held}:
            return
        async with transaction(term.engine) as connection:
            await leases.check(connection, lease=term.lease)
            await cron_source_repository.hold(connection, cron_ids=now_held)

    def _decided(
        self,
        resources: Collection[Body],
        crons: Collection[ResourceCron],
        mirrors: Collection[str],
        *,
        confirmed: str | None,
    ) -> RegistrationPlan:
        return plan(
            resources=resources,
            crons=crons,
            mirrors=mirrors,
            organizations=self._organizations.found,
            mapped=self._settings.namespaces,
            scopes=self._scopes,
            absences=self._absences,
            confirmed=confirmed,
        )

    async def _confirmation(self) -> str | None:
        """Read which deletions an administrator has confirmed, if any."""
        with suppress(ResourceNotFoundError):
            runner = await self._client.get(
                RUNNERS, name=self._settings.installation, namespace=self._settings.release_namespace
            )
            confirmed: str | None = runner["metadata"].get("annotations", {}).get(CONFIRMATION)
            return confirmed
        return None

    async def _carry_out(
        self, registrar: ResourceRegistrar, decided: RegistrationPlan, *, now: datetime, again: bool
    ) -> None:
        self.state.held = self._in_words(decided.held)
        for cron in decided.disable:
            await registrar.disable(cron)
        for cron in decided.delete:
            await registrar.delete(cron)
        for each in decided.moved:
            if each.cron is not None:
                await registrar.keep(each.cron, each.resource)
        refused = await self._register_all(registrar, decided.register, now=now, again=again)
        unmapped = {body["metadata"]["uid"]: _unmapped(body["metadata"]["generation"]) for body in decided.unmapped}
        before, self.state.refusals = self.state.refusals, refused | unmapped
        if before != self.state.refusals:
            self._on_refused()

    async def _register_all(
        self, registrar: ResourceRegistrar, asked: Sequence[Registering], *, now: datetime, again: bool
    ) -> dict[str, Refusal]:
        """Register what there is to register; what was refused as it is now is tried only `again`."""
        refusals: dict[str, Refusal] = {}
        full: dict[UUID, Refusal] = {}
        room = asyncio.Semaphore(_AT_ONCE)

        async def judge(each: Registering) -> Refusal | None:
            organization_id, generation = each.organization.id, each.resource.generation
            if each.cron is None and organization_id in full:
                # Each would have all crons of the organization counted, to be told the same.
                return replace(full[organization_id], generation=generation)
            refusal = await registrar.register(each, now=now)
            if refusal is not None and refusal.reason is RefusalReason.QUOTA_EXCEEDED:
                full[organization_id] = refusal
            return refusal

        async def register(each: Registering) -> None:
            uid = str(each.resource.uid)
            refusal = None if again else self.state.refusals.get(uid)
            if refusal is None or refusal.generation != each.resource.generation:
                async with room:
                    # What is refused at once never waits, and thousands of those would hold up whatever is due.
                    await asyncio.sleep(0)
                    refusal = await judge(each)
            if refusal is not None:
                refusals[uid] = refusal

        failures = await asyncio.gather(*map(register, asked), return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure
        return refusals

    def _in_words(self, held: Collection[ResourceCron]) -> str:
        if not held:
            return ""
        places = ", ".join(sorted({cron.resource.namespace for cron in held}))
        return (
            f"{len(held)} crons, most of those in {places}, lost their resources at once, and none was deleted. Apply "
            "the resources again, or confirm: kubectl annotate --overwrite runner "
            f"{self._settings.installation} -n {self._settings.release_namespace} {CONFIRMATION}={digest(held)}"
        )


def _unmapped(generation: int) -> Refusal:
    return Refusal(
        generation=generation,
        reason=RefusalReason.NAMESPACE_NOT_MAPPED,
        message="The namespace belongs to no organization of this installation, so that nothing is registered here; "
        "have the administrator map it.",
    )
