"""Writes into the table what a Cron resource asks for, or says in words why not: the same as `POST /crons` does.

Each method is a transaction of its own, fenced by the lease. The resource itself is never written here.
"""

from dataclasses import replace
from datetime import datetime
from uuid import UUID, uuid4

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core import lease as leases
from cronplane_core import organization_repository
from cronplane_core.cron_repository import (
    Cron,
    CronNameTakenError,
    DefiningResource,
    Definition,
    NewCron,
    delete_cron,
    keep_resource,
    lock_cron,
    update_cron,
)
from cronplane_core.cron_source_repository import ResourceCron
from cronplane_core.database import transaction
from cronplane_core.kubernetes_client import Body
from cronplane_core.organization_repository import QuotaExceededError
from cronplane_core.tables import OrganizationState
from cronplane_entries.core import Organization, User
from cronplane_entries.cron_request import CronCreation
from cronplane_entries.invocation import MOST_ERRORS, FieldError, unstorable
from cronplane_entries.registration import CronDraft, EntryNotGrantedError, Registrar, RegistrationError
from cronplane_operator.cron_mirror_plan import Refusal, RefusalReason
from cronplane_operator.leader_extension import TermContext
from cronplane_operator.resource_registration_plan import Registering

# A condition's message has room for 32 KiB (meta/v1 Condition), and a person reads less.
_MOST_TOLD = 20
_LONGEST_POINTER = 300
_LONGEST_TOLD = 1000


class ResourceRegistrar:
    """Registers for one term, by the rules of `registrar`."""

    def __init__(self, *, term: TermContext, registrar: Registrar) -> None:
        self._term = term
        self._registrar = registrar

    async def register(self, asked: Registering, *, now: datetime) -> Refusal | None:
        """Write what a resource asks for at `now`, the database's time, or say why not."""
        try:
            await self._register(asked, now=now)
        except (RegistrationError, EntryNotGrantedError, QuotaExceededError, CronNameTakenError) as error:
            reason, message = _in_words(error)
            return Refusal(generation=asked.resource.generation, reason=reason, message=message)
        return None

    async def _register(self, asked: Registering, *, now: datetime) -> None:
        if asked.organization.state is OrganizationState.SUSPENDED:
            raise EntryNotGrantedError("The organization is suspended, and may register nothing")
        cron_id = uuid4() if asked.cron is None else asked.cron.id
        definition, _ = await self._registrar.check(
            read_draft(asked.body),
            organization=_tenant(asked.organization),
            user=_actor(asked.resource),
            cron_id=cron_id,
            now=now,
        )
        if asked.cron is None:
            await self._insert(asked, definition, cron_id)
        else:
            await self._replace(asked.cron, asked.resource, definition)

    async def _insert(self, asked: Registering, definition: Definition, cron_id: UUID) -> None:
        created_by = _actor(asked.resource).id
        new = NewCron(id=cron_id, definition=definition, created_by=created_by, resource=asked.resource)
        organization_id = asked.organization.id

        async def insert() -> None:
            async with transaction(self._term.engine) as connection:
                await leases.check(connection, lease=self._term.lease)
                await self._registrar.register(connection, organization_id=organization_id, crons=[new])

        await organization_repository.counted_before_refused(self._term.engine, insert, organization_id=organization_id)

    async def _replace(self, cron: ResourceCron, resource: DefiningResource, definition: Definition) -> None:
        async with transaction(self._term.engine) as connection:
            if (locked := await self._locked(connection, cron)) is not None:
                await update_cron(connection, cron=locked, definition=definition, updated_by=_actor(resource).id)
                await keep_resource(connection, cron=locked, resource=resource)

    async def keep(self, cron: ResourceCron, resource: DefiningResource) -> None:
        """Note of a cron which resource defines it."""
        async with transaction(self._term.engine) as connection:
            if (locked := await self._locked(connection, cron)) is not None:
                await keep_resource(connection, cron=locked, resource=resource)

    async def disable(self, cron: ResourceCron) -> None:
        """Pause a cron whose resource went with its scope; it may be had back by a resource of the same name."""
        async with transaction(self._term.engine) as connection:
            if (locked := await self._locked(connection, cron)) is None:
                return
            paused = replace(locked.definition, enabled=False)
            await update_cron(connection, cron=locked, definition=paused, updated_by=_actor(cron.resource).id)
            await keep_resource(connection, cron=locked, resource=replace(cron.resource, uid=None))

    async def delete(self, cron: ResourceCron) -> None:
        """Delete a cron whose resource was deleted."""
        async with transaction(self._term.engine) as connection:
            await organization_repository.lock_organization(connection, organization_id=cron.organization_id)
            if (locked := await self._locked(connection, cron)) is not None:
                await delete_cron(connection, cron=locked, deleted_by=_actor(cron.resource).id)

    async def _locked(self, connection: AsyncConnection, cron: ResourceCron) -> Cron | None:
        """Lock a cron, unless it is gone or defined by another resource by now."""
        await leases.check(connection, lease=self._term.lease)
        locked = await lock_cron(connection, organization_id=cron.organization_id, cron_id=cron.id)
        return locked if locked is not None and locked.resource == cron.resource else None


def read_draft(body: Body) -> CronDraft:
    """Read what a Cron resource asks for; the name that it does not give is the resource's own.

    Raises:
        RegistrationError: it cannot be read as a request to register a cron.

    """
    asked = {"name": body["metadata"]["name"], **body["spec"]}
    if errors := list(unstorable(asked)):
        raise RegistrationError(errors[:MOST_ERRORS])
    try:
        return CronCreation.model_validate(asked).draft()
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RegistrationError(
            FieldError(path=each["loc"], message=each["msg"], type=each["type"]) for each in found[:MOST_ERRORS]
        ) from error


def _in_words(error: Exception) -> tuple[RefusalReason, str]:
    match error:
        case RegistrationError():
            told = "; ".join(map(_told, error.errors[:_MOST_TOLD]))
            return RefusalReason.INVALID_SPEC, f"The cron is refused as it is. {told}"
        case EntryNotGrantedError():
            return RefusalReason.NOT_GRANTED, f"{error}; ask the administrator"
        case QuotaExceededError():
            return RefusalReason.QUOTA_EXCEEDED, str(error)
        case _:
            return RefusalReason.NAME_TAKEN, str(error)


def _told(error: FieldError) -> str:
    """Say what is wrong, in the words of an entry that may be as long as its author liked."""
    return f"{error.pointer[:_LONGEST_POINTER]}: {error.message[:_LONGEST_TOLD]}"


def _actor(resource: DefiningResource) -> User:
    place = f"{resource.namespace}/{resource.name}"
    return User(id=f"kubernetes:{place}", name=place)


def _tenant(organization: organization_repository.Organization) -> Organization:
    return Organization(id=organization.id, name=organization.name, entrypoints=organization.entrypoints)
