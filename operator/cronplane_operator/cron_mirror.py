"""Keeps the Cron resources equal to the table: crons of the API are mirrored, those of resources get their status.

Level-triggered: it compares both sides, whole at intervals and in part when it was told of something, and writes only
what differs, at a bounded rate. What it cannot write waits; nothing waits for it, and no status is ever read back.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cronplane_core import cron_mirror_repository as mirrors
from cronplane_core import cron_source_repository, job_state_repository
from cronplane_core import lease as leases
from cronplane_core.cron_mirror_repository import MirrorPlace, ShownCron
from cronplane_core.database import DatabaseUnavailableError, transaction
from cronplane_core.kubernetes_client import (
    CRONS,
    Body,
    KubernetesClient,
    KubernetesError,
    KubernetesRefusedError,
    KubernetesUnavailableError,
    ResourceConflictError,
    ResourceNotFoundError,
)
from cronplane_core.settings import KubernetesSettings
from cronplane_core.tables import ACTIVE_STATUSES, CronSource
from cronplane_operator.cron_mirror_plan import (
    MIRROR_RESTORED,
    MIRROR_REVERTED,
    MirrorWrite,
    Refusal,
    Remark,
    is_judged,
    is_label,
    is_mirror_of,
    mirror_body,
    names_cron,
    plan_refused_status,
    plan_status,
    plan_write,
    readable_label,
    remarks_on,
)
from cronplane_operator.cron_resources import CronResources
from cronplane_operator.event_waits import any_set_or_elapsed
from cronplane_operator.launch_precedence import LaunchPrecedence
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.namespace_organizations import NamespaceOrganizations
from cronplane_operator.resource_events import ResourceEvents
from cronplane_operator.runner_metrics import Load
from cronplane_operator.write_pacer import WritePacer

# Seconds. A hint that was lost, or a watch that was silent, costs at most this.
_COMPARISON_INTERVAL = 60.0
# What comes within this many seconds is written together.
_GATHER = 0.5
_RESYNC_INTERVAL = 2.0
_LONGEST_BACKOFF = 30.0
_PAGE = 1000
_AT_ONCE = 8
_NO_ID = UUID(int=0)


@dataclass(slots=True)
class MirrorState:
    """How far the mirror has come; `trouble` is why it does not get on, or empty."""

    written: int = 0
    backlog: int = 0
    trouble: str = ""
    trouble_reason: str = ""


class CronMirror:
    """Mirrors for one installation, while its process leads. `refusals` gives why resources are not registered."""

    def __init__(
        self,
        *,
        settings: KubernetesSettings,
        client: KubernetesClient,
        resources: CronResources,
        organizations: NamespaceOrganizations,
        refusals: Callable[[], Mapping[str, Refusal]],
        precedence: LaunchPrecedence,
    ) -> None:
        self._installation = settings.installation
        self._client = client
        self._resources = resources
        self._organizations = organizations
        self._refusals = refusals
        self._precedence = precedence
        self._pacer = WritePacer(per_second=settings.mirror_writes_per_second)
        self._dirty: set[UUID] = set()
        # Where resources are of which something has become.
        self._seen: set[tuple[str, str]] = set()
        # Those of which something is bound to change soon, without anybody telling.
        self._unsettled: set[UUID] = set()
        self._seen_until = 0
        self._generations: dict[UUID, int] = {}
        self._events = ResourceEvents(client=client)
        self._is_all_dirty = self._is_list_due = True
        self._wake = asyncio.Event()
        self.state = MirrorState()

    def observed(self, load: Load) -> None:
        """Take no notice: how much there is to do is not told of single crons."""

    def touched(self, cron_ids: Iterable[UUID]) -> None:
        """Learn that something has become of these crons."""
        self._dirty.update(cron_ids)
        self._wake.set()

    def resource_seen(self, event: str | None, body: Body) -> None:
        """Learn what a Cron resource is, or that it is gone (`DELETED`)."""
        if self._resources.seen(event, body):
            self._seen.add((body["metadata"]["namespace"], body["metadata"]["name"]))
            self._wake.set()

    def refused(self) -> None:
        """Learn that other resources are refused than before."""
        self._wake.set()

    def loops(self, term: TermContext) -> Sequence[Coroutine[None, None, None]]:
        """Mirror until the term ends."""
        return [self._keep_equal(term), self._compare_at_intervals(term)]

    async def _compare_at_intervals(self, term: TermContext) -> None:
        while True:
            self._is_all_dirty = self._is_list_due = True
            self._wake.set()
            await asyncio.sleep(term.clock.real_seconds(_COMPARISON_INTERVAL))

    async def _keep_equal(self, term: TermContext) -> None:
        crons, runs = term.crons_changed.subscribe(), term.runs_changed.subscribe()
        pause = _GATHER
        while True:
            await any_set_or_elapsed(self._wake, crons, runs, seconds=_RESYNC_INTERVAL)
            await asyncio.sleep(pause)
            await self._precedence.give_way()
            for event in (self._wake, crons, runs):
                event.clear()
            try:
                await self._compare(term)
            except (KubernetesError, DatabaseUnavailableError) as error:
                self._put_off(error)
                pause = min(2 * pause, _LONGEST_BACKOFF)
            else:
                self.state.trouble = self.state.trouble_reason = ""
                pause = _GATHER

    def _put_off(self, error: Exception) -> None:
        self.state.trouble, self.state.trouble_reason = str(error), type(error).__name__.removesuffix("Error")
        if isinstance(error, ResourceNotFoundError):
            self.state.trouble = "the definition of Cron is missing (`cronplane crd` prints it), or a namespace is"
            self.state.trouble_reason = "ResourceDefinitionMissing"
        # What was refused may be so because the resources are others than those that are known here.
        self._is_all_dirty = self._is_list_due = True
        self._wake.set()

    async def _compare(self, term: TermContext) -> None:
        if self._is_list_due:
            await self._resources.list()
            self._is_list_due = False
        dirty, seen = self._dirty | self._unsettled, self._seen
        self._dirty, self._unsettled, self._seen = set(), set(), set()
        async with transaction(term.engine) as connection:
            seen_until = await job_state_repository.snapshot(connection)
            dirty.update(await job_state_repository.read_changed(connection, since=self._seen_until))
            dirty.update(await mirrors.read_shown_at(connection, places=seen))
            await self._organizations.read(connection)
        if self._is_all_dirty:
            self._is_all_dirty = False
            refusals = await self._remove_abandoned(term)
            refusals += await self._compare_all(term)
        else:
            refusals = await self._compare_some(term, dirty)
        refusals += await self._tell_refused(term)
        self._seen_until = seen_until
        for refusal in (*refusals, *self._resources.unlisted.values()):
            raise refusal

    async def _compare_all(self, term: TermContext) -> list[KubernetesRefusedError]:
        after, refusals = _NO_ID, list[KubernetesRefusedError]()
        while True:
            async with transaction(term.engine) as connection:
                now = await leases.check(connection, lease=term.lease)
                crons = await mirrors.read_page(connection, after=after, limit=_PAGE)
            if not crons:
                break
            refusals += await self._write_all(term, crons, now)
            after = crons[-1].id
        return refusals

    async def _compare_some(self, term: TermContext, cron_ids: Collection[UUID]) -> list[KubernetesRefusedError]:
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            crons = await mirrors.read_by_id(connection, cron_ids=list(cron_ids))
        refusals = await self._remove_abandoned(term) if len(crons) < len(cron_ids) else []
        return refusals + await self._write_all(term, crons, now)

    async def _write_all(
        self, term: TermContext, crons: Collection[ShownCron], now: datetime
    ) -> list[KubernetesRefusedError]:
        """Write what differs; gives what Kubernetes refused, since one that it does not take keeps no other back."""
        by_uid = self._resources.by_uid()
        self.state.backlog = len(crons)
        allowed = asyncio.Semaphore(_AT_ONCE)
        refusals: list[KubernetesRefusedError] = []

        async def write(cron: ShownCron) -> None:
            async with allowed:
                try:
                    await self._write(term, cron, by_uid.get(cron.source_uid or ""), now)
                except KubernetesRefusedError as error:
                    refusals.append(error)
                self.state.backlog -= 1

        try:
            async with asyncio.TaskGroup() as group:
                for cron in crons:
                    group.create_task(write(cron))
        except* (KubernetesUnavailableError, DatabaseUnavailableError) as errors:
            raise errors.exceptions[0] from errors
        return refusals

    async def _write(self, term: TermContext, cron: ShownCron, registered: Body | None, now: datetime) -> None:
        if not cron.is_scheduled or any(run.status in ACTIVE_STATUSES for run in cron.runs):
            self._unsettled.add(cron.id)
        if cron.source is CronSource.API:
            await self._mirror(term, cron, now)
        elif registered is not None:
            await self._tell(cron, registered, now)

    async def _tell(self, cron: ShownCron, registered: Body, now: datetime) -> None:
        """Write the status of a resource that somebody applied; one that is still to be judged has to wait."""
        refusal = self._refusals().get(registered["metadata"]["uid"])
        if is_judged(cron, registered, refusal):
            await self._write_status(plan_status(cron, registered, now=now, refusal=refusal), registered, now)
        else:
            self._unsettled.add(cron.id)

    async def _tell_refused(self, term: TermContext) -> list[KubernetesRefusedError]:
        """Write the status of resources that were refused, and for which there is no cron."""
        refusals, by_uid = self._refusals(), self._resources.by_uid()
        refused = {uid: (each, by_uid[uid]) for uid, each in refusals.items() if uid in by_uid}
        if not refused:
            return []
        async with transaction(term.engine) as connection:
            now = await leases.check(connection, lease=term.lease)
            crons = await cron_source_repository.read_all(connection)
        registered = {cron.resource.uid: cron.id for cron in crons if cron.resource.uid in refused}
        self._unsettled.update(registered.values())
        return await self._write_refused([each for uid, each in refused.items() if uid not in registered], now)

    async def _write_refused(
        self, refused: Collection[tuple[Refusal, Body]], now: datetime
    ) -> list[KubernetesRefusedError]:
        """Write statuses; gives what Kubernetes refused, since one that it does not take keeps no other back."""
        refusals: list[KubernetesRefusedError] = []
        for refusal, body in refused:
            try:
                await self._write_status(plan_refused_status(refusal, body, now=now), body, now)
            except KubernetesRefusedError as error:
                refusals.append(error)
        return refusals

    async def _mirror(self, term: TermContext, cron: ShownCron, now: datetime) -> None:
        place = await self._place(term, cron)
        actual = self._resources.at(namespace=place.namespace, name=place.name)
        if actual is not None and not is_mirror_of(cron, actual, place):
            place, actual = await self._move(term, cron, place), None
        write = plan_write(cron, actual, now=now)
        status = write.status
        if write.spec is not None:
            before, actual = actual, await self._write_spec(cron, place, write, actual)
            self._resources.written(actual)
            async with transaction(term.engine) as connection:
                await leases.check(connection, lease=term.lease)
                await mirrors.keep_uid(connection, cron_id=cron.id, uid=actual["metadata"]["uid"])
            if (remark := self._remark_on_edit(cron, before, place)) is not None:
                await self._events.tell(actual, remark, now=now)
            self._generations[cron.id] = cron.generation
            status = plan_status(cron, actual, now=now)
        if actual is not None:
            await self._write_status(status, actual, now)

    def _remark_on_edit(self, cron: ShownCron, before: Body | None, place: MirrorPlace) -> Remark | None:
        """Say that somebody had changed a mirror; if the cron has changed since it was written, it was us."""
        if before is None:
            return MIRROR_RESTORED if place.uid is not None else None
        return MIRROR_REVERTED if self._generations.get(cron.id) == cron.generation else None

    async def _place(self, term: TermContext, cron: ShownCron) -> MirrorPlace:
        """Give where the mirror of a cron is; the first time it is found under its own name, if nobody has that."""
        if cron.place is not None:
            return cron.place
        namespace = self._organizations.home(cron.organization_id)
        is_free = self._resources.at(namespace=namespace, name=cron.name) is None
        names = [cron.name] if is_label(cron.name) and is_free else []
        for name in [*names, readable_label(cron.name, cron.id)]:
            async with transaction(term.engine) as connection:
                await leases.check(connection, lease=term.lease)
                if await mirrors.take_place(connection, cron_id=cron.id, namespace=namespace, name=name):
                    return MirrorPlace(namespace=namespace, name=name, uid=None)
        raise ResourceConflictError(f"No name is free for cron {cron.id}", status=409, reason="AlreadyExists")

    async def _move(self, term: TermContext, cron: ShownCron, place: MirrorPlace) -> MirrorPlace:
        """Leave a name to the resource of somebody else that has it, for the one that is a cron's alone."""
        name = readable_label(cron.name, cron.id)
        if name == place.name:
            raise ResourceConflictError(f"No name is free for cron {cron.id}", status=409, reason="AlreadyExists")
        async with transaction(term.engine) as connection:
            await leases.check(connection, lease=term.lease)
            await mirrors.move_place(connection, cron_id=cron.id, name=name)
        return MirrorPlace(namespace=place.namespace, name=name, uid=None)

    async def _write_spec(self, cron: ShownCron, place: MirrorPlace, write: MirrorWrite, actual: Body | None) -> Body:
        """Make a mirror, or bring it about in the resource that is there, and in no other one of that name."""
        body = mirror_body(
            cron, namespace=place.namespace, name=place.name, installation=self._installation, spec=write.spec or {}
        )
        await self._turn()
        if actual is None:
            written = await self._client.create(CRONS, body, namespace=place.namespace)
        else:
            body["metadata"]["uid"] = actual["metadata"]["uid"]
            written = await self._client.apply(CRONS, body, namespace=place.namespace)
        if write.surplus:
            surplus = {"spec": dict.fromkeys(write.surplus)}
            written = await self._client.patch(CRONS, surplus, name=place.name, namespace=place.namespace)
        self.state.written += 1
        return written

    async def _write_status(self, status: Body | None, actual: Body, now: datetime) -> None:
        if status is None:
            return
        metadata = actual["metadata"]
        body = {
            "apiVersion": actual["apiVersion"],
            "kind": actual["kind"],
            "metadata": {name: metadata[name] for name in ("name", "namespace", "resourceVersion")},
            "status": status,
        }
        await self._turn()
        try:
            applied = await self._client.apply(CRONS, body, namespace=metadata["namespace"], subresource="status")
        except (ResourceConflictError, ResourceNotFoundError):
            # It is another one by now, or gone: who changed it tells, or else the next list.
            return
        self._resources.written(applied)
        self.state.written += 1
        for remark in remarks_on(actual.get("status", {}), status):
            await self._events.tell(applied, remark, now=now)

    async def _turn(self) -> None:
        """Wait until something may be written."""
        await self._pacer.wait()
        await self._precedence.give_way()

    async def _remove_abandoned(self, term: TermContext) -> list[KubernetesRefusedError]:
        """Delete the mirrors of crons that were deleted; gives what Kubernetes refused, which stays to be deleted."""
        async with transaction(term.engine) as connection:
            await leases.check(connection, lease=term.lease)
            abandoned = await mirrors.read_abandoned(connection)
        refusals: list[KubernetesRefusedError] = []
        for cron_id, place in abandoned.items():
            try:
                await self._remove(cron_id, place)
            except KubernetesRefusedError as error:
                refusals.append(error)
                continue
            async with transaction(term.engine) as connection:
                await leases.check(connection, lease=term.lease)
                await mirrors.give_place_up(connection, cron_id=cron_id)
        return refusals

    async def _remove(self, cron_id: UUID, place: MirrorPlace) -> None:
        """Delete a mirror, and no resource of its name that is somebody else's."""
        uid = place.uid
        found = self._resources.at(namespace=place.namespace, name=place.name)
        if uid is None and found is not None and names_cron(found, cron_id):
            uid = found["metadata"]["uid"]
        if uid is None:
            return
        await self._turn()
        with suppress(ResourceNotFoundError, ResourceConflictError):
            await self._client.delete(CRONS, name=place.name, namespace=place.namespace, uid=uid)
        self._resources.removed(namespace=place.namespace, name=place.name, uid=uid)
