"""Registers a cron: the one way from what a person sends to a row, for REST, dry runs and resources alike.

A draft is checked as a whole, so that a person sees everything that is wrong at once. What is valid but not served yet
is refused too, in words: a policy that silently did nothing would be worse. Nothing here knows HTTP.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.cron_repository import Cron, Definition, Policy, insert_cron, update_cron
from cronplane_core.schedule import Schedule, ScheduleError, UnknownTimeZoneError
from cronplane_core.tables import Catchup, CronSource, Overlap
from cronplane_entries.core import (
    AnyCronEntrySpec,
    EntryError,
    Organization,
    RegistrationContext,
    Services,
    User,
)
from cronplane_entries.invocation import FieldError, PayloadInvalidError, Registration, register
from cronplane_entries.registry import CronEntrypoint, CronRegistry, UnknownEntryError

MAXIMUM_NAME_LENGTH = 200
LONGEST_TIMEOUT = timedelta(days=7)
LONGEST_CATCHUP_WINDOW = timedelta(days=30)
MOST_ATTEMPTS = 100
LATEST_YEAR = 9998


class RegistrationError(EntryError):
    """The cron is refused as it is; `errors` say where in the request, and why."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{'.'.join(map(str, e.path))}: {e.message}" for e in self.errors))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDraft:
    """The policies that a person asks for; None asks for the default. Instants are aware."""

    overlap: Overlap | None = None
    catchup: Catchup | None = None
    catchup_window: timedelta | None = None
    timeout: timedelta | None = None
    max_attempts: int | None = None
    backoff_initial: timedelta | None = None
    backoff_maximum: timedelta | None = None
    jitter: timedelta | None = None
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    max_runs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CronDraft:
    """A cron as a person asks for it."""

    name: str
    cron_expr: str
    tz: str
    entrypoint: str
    payload: Mapping[str, JsonValue]
    enabled: bool = True
    policy: PolicyDraft = field(default_factory=PolicyDraft)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronChanges:
    """What a person asks to change; None leaves it. `payload` is the whole user payload."""

    name: str | None = None
    cron_expr: str | None = None
    tz: str | None = None
    entrypoint: str | None = None
    payload: Mapping[str, JsonValue] | None = None
    enabled: bool | None = None
    policy: PolicyDraft = field(default_factory=PolicyDraft)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrar:
    """Checks and registers for one installation: its entries, and the shortest time allowed between two fires."""

    registry: CronRegistry
    minimum_interval: timedelta

    async def check(
        self, draft: CronDraft, *, organization: Organization, user: User, cron_id: UUID, now: datetime
    ) -> tuple[Definition, Schedule]:
        """Say what would be registered, writing nothing.

        Raises:
            RegistrationError: the draft is refused; every reason that could be found is given.

        """
        errors = [*_name_errors(draft.name), *_policy_errors(draft.policy)]
        schedule = self._schedule(draft.cron_expr, draft.tz, now=now, errors=errors)
        spec = self._spec(draft.entrypoint, errors=errors)
        registration = None
        if spec is not None:
            context = _context(organization, user, cron_id, draft.entrypoint)
            registration = await _payload(spec, draft.payload, context, errors=errors)
        if errors or schedule is None or spec is None or registration is None:
            raise RegistrationError(errors)
        definition = Definition(
            name=draft.name,
            cron_expr=schedule.expression,
            tz=schedule.time_zone,
            entrypoint=draft.entrypoint,
            user_payload=registration.user_payload,
            execution_payload=registration.execution_payload,
            policy=_policy(draft.policy, Policy(timeout=spec.timeout)),
            enabled=draft.enabled,
        )
        return definition, schedule

    async def register(
        self,
        connection: AsyncConnection,
        *,
        cron_id: UUID,
        organization: Organization,
        user: User,
        definition: Definition,
    ) -> Cron:
        """Write a checked definition as a new cron.

        Raises:
            CronNameTakenError: the organization has a cron of this name.

        """
        return await insert_cron(
            connection,
            cron_id=cron_id,
            organization_id=organization.id,
            definition=definition,
            created_by=user.id,
            source=CronSource.API,
        )

    async def change(
        self,
        connection: AsyncConnection,
        *,
        cron: Cron,
        changes: CronChanges,
        organization: Organization,
        user: User,
        now: datetime,
    ) -> Cron:
        """Change a locked cron; what is not asked for stays, and is not judged again.

        Raises:
            RegistrationError: the changes are refused; every reason that could be found is given.
            CronNameTakenError: the organization has another cron of the new name.

        """
        before = cron.definition
        errors = [*_name_errors(changes.name or before.name), *_policy_errors(changes.policy)]
        expression, zone = changes.cron_expr or before.cron_expr, changes.tz or before.tz
        if changes.cron_expr is not None or changes.tz is not None:
            schedule = self._schedule(expression, zone, now=now, errors=errors)
            expression = expression if schedule is None else schedule.expression
        registration = await self._changed_payload(cron, changes, organization, user, errors=errors)
        if errors:
            raise RegistrationError(errors)
        definition = replace(
            before,
            name=before.name if changes.name is None else changes.name,
            cron_expr=expression,
            tz=zone,
            entrypoint=changes.entrypoint or before.entrypoint,
            policy=_policy(changes.policy, before.policy),
            enabled=before.enabled if changes.enabled is None else changes.enabled,
        )
        if registration is not None:
            definition = replace(
                definition,
                user_payload=registration.user_payload,
                execution_payload=registration.execution_payload,
            )
        return await update_cron(connection, cron=cron, definition=definition, updated_by=user.id)

    async def override_payload(
        self, *, cron: Cron, payload: Mapping[str, JsonValue], organization: Organization, user: User
    ) -> dict[str, Any]:
        """Give the execution payload for one run with another user payload.

        Raises:
            RegistrationError: the entry refuses the payload.

        """
        errors: list[FieldError] = []
        spec = self._spec(cron.definition.entrypoint, errors=errors)
        registration = None
        if spec is not None:
            context = _context(organization, user, cron.id, cron.definition.entrypoint)
            registration = await _payload(spec, payload, context, errors=errors)
        if registration is None:
            raise RegistrationError(errors)
        return registration.execution_payload

    async def _changed_payload(
        self, cron: Cron, changes: CronChanges, organization: Organization, user: User, *, errors: list[FieldError]
    ) -> Registration | None:
        entrypoint = changes.entrypoint or cron.definition.entrypoint
        if changes.payload is None:
            if entrypoint != cron.definition.entrypoint:
                message = "another entrypoint needs a payload of its own; send the whole payload"
                errors.append(FieldError(path=("payload",), message=message, type="missing"))
            return None
        spec = self._spec(entrypoint, errors=errors)
        if spec is None:
            return None
        return await _payload(spec, changes.payload, _context(organization, user, cron.id, entrypoint), errors=errors)

    def _schedule(self, expression: str, zone: str, *, now: datetime, errors: list[FieldError]) -> Schedule | None:
        try:
            schedule = Schedule.parse(expression, zone)
        except UnknownTimeZoneError as error:
            errors.append(FieldError(path=("tz",), message=str(error), type="unknown_time_zone"))
            return None
        except ScheduleError as error:
            errors.append(FieldError(path=("cron_expr",), message=str(error), type="invalid_expression"))
            return None
        shortest = schedule.shortest_interval(from_=now)
        if shortest < self.minimum_interval:
            message = (
                f"two fires would be {_seconds(shortest)} apart; at least {_seconds(self.minimum_interval)} is asked"
            )
            errors.append(FieldError(path=("cron_expr",), message=message, type="interval_too_short"))
        return schedule

    def _spec(self, entrypoint: str, *, errors: list[FieldError]) -> AnyCronEntrySpec | None:
        try:
            return self.registry[CronEntrypoint(entrypoint)]
        except UnknownEntryError:
            message = "there is no such entry; see GET /entrypoints"
            errors.append(FieldError(path=("entrypoint",), message=message, type="unknown_entry"))
            return None


async def _payload(
    spec: AnyCronEntrySpec,
    payload: Mapping[str, JsonValue],
    context: RegistrationContext,
    *,
    errors: list[FieldError],
) -> Registration | None:
    try:
        return await register(spec, payload=payload, context=context)
    except PayloadInvalidError as error:
        errors.extend(replace(found, path=("payload", *found.path)) for found in error.errors)
        return None


def _context(organization: Organization, user: User, cron_id: UUID, entrypoint: str) -> RegistrationContext:
    prefix = f"CRONPLANE_ENTRY_{entrypoint.upper()}_"
    settings = {name[len(prefix) :].lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
    return RegistrationContext(
        organization=organization, user=user, cron_id=cron_id, services=Services(settings=settings)
    )


def _policy(draft: PolicyDraft, default: Policy) -> Policy:
    asked = {name: getattr(draft, name) for name in draft.__slots__ if getattr(draft, name) is not None}
    return replace(default, **asked)


def _name_errors(name: str) -> Iterable[FieldError]:
    if not name.strip():
        yield FieldError(path=("name",), message="the name is blank", type="blank")
    if len(name) > MAXIMUM_NAME_LENGTH:
        message = f"the name has more than {MAXIMUM_NAME_LENGTH} characters"
        yield FieldError(path=("name",), message=message, type="too_long")
    if any(_is_unprintable(character) for character in name):
        message = "the name has control characters, or ones that turn the direction of text"
        yield FieldError(path=("name",), message=message, type="control_character")


# Emoji are joined and styled by these; everything else in the categories Cc, Cf, Cs, Co and Cn is refused.
_JOINERS = {"\u200d", "\ufe0f"}


def _is_unprintable(character: str) -> bool:
    return unicodedata.category(character).startswith("C") and character not in _JOINERS


def _policy_errors(draft: PolicyDraft) -> Iterable[FieldError]:
    yield from _duration_errors("timeout", draft.timeout, longest=LONGEST_TIMEOUT)
    yield from _duration_errors("catchup_window", draft.catchup_window, longest=LONGEST_CATCHUP_WINDOW)
    yield from _bounds_errors(draft)
    if draft.max_attempts is not None and not 1 <= draft.max_attempts <= MOST_ATTEMPTS:
        message = f"the number of attempts is from 1 to {MOST_ATTEMPTS}"
        yield FieldError(path=("max_attempts",), message=message, type="out_of_range")
    elif draft.max_attempts not in {None, 1}:
        yield _not_served("max_attempts", "only 1 attempt")
    if draft.overlap not in {None, Overlap.SKIP}:
        yield _not_served("overlap", "only skip")
    if draft.catchup not in {None, Catchup.LATEST}:
        yield _not_served("catchup", "only latest")
    if draft.jitter is not None:
        yield from _jitter_errors(draft.jitter)
    for name in ("backoff_initial", "backoff_maximum", "max_runs"):
        if getattr(draft, name) is not None:
            yield _not_served(name, "only the default")


def _jitter_errors(jitter: timedelta) -> Iterable[FieldError]:
    if jitter < timedelta(0):
        yield FieldError(path=("jitter",), message="a jitter is not negative", type="out_of_range")
    elif jitter:
        yield _not_served("jitter", "only 0")


def _duration_errors(name: str, duration: timedelta | None, *, longest: timedelta) -> Iterable[FieldError]:
    if duration is not None and not timedelta(seconds=1) <= duration <= longest:
        message = f"{name} is from 1 s to {_seconds(longest)}"
        yield FieldError(path=(name,), message=message, type="out_of_range")


def _bounds_errors(draft: PolicyDraft) -> Iterable[FieldError]:
    for name in ("starts_at", "ends_at"):
        instant: datetime | None = getattr(draft, name)
        if instant is None:
            continue
        if instant.year > LATEST_YEAR:
            yield FieldError(path=(name,), message="this is too far in the future", type="out_of_range")
        else:
            yield _not_served(name, "no bounds")
    if draft.starts_at is not None and draft.ends_at is not None and draft.starts_at >= draft.ends_at:
        yield FieldError(path=("ends_at",), message="the end is not after the start", type="out_of_range")


def _not_served(name: str, served: str) -> FieldError:
    return FieldError(path=(name,), message=f"this value is not served yet; {served} is", type="not_served")


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
