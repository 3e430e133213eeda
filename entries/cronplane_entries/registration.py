"""Registers a cron: the one way from what a person sends to a row, for REST, dry runs and resources alike.

A draft is checked as a whole, so that a person sees everything that is wrong at once. What is valid but not served yet
is refused too, in words: a policy that silently did nothing would be worse. Nothing here knows HTTP.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.cron_repository import UNLIMITED, Cron, Definition, NewCron, Policy, insert_crons
from cronplane_core.schedule import Schedule, ScheduleError, UnknownTimeZoneError
from cronplane_core.tables import Catchup, Overlap
from cronplane_entries.core import (
    AnyCronEntrySpec,
    EntryError,
    Organization,
    RegistrationContext,
    Services,
    User,
)
from cronplane_entries.entry_settings import NO_SETTINGS, EntrySettings
from cronplane_entries.invocation import (
    EntryContractError,
    FieldError,
    PayloadInvalidError,
    Registration,
    register,
    unstorable,
)
from cronplane_entries.registry import LONGEST_TIMEOUT, MOST_ATTEMPTS, CronEntrypoint, CronRegistry, UnknownEntryError

_log = structlog.get_logger("cronplane.registration")
MAXIMUM_NAME_LENGTH = 200
LONGEST_CATCHUP_WINDOW = timedelta(days=30)
LONGEST_BACKOFF = timedelta(days=1)
LONGEST_RUN_TIMEOUT = timedelta(days=30)
MOST_RUNS = 10**9
SERVED_OVERLAPS = frozenset({Overlap.SKIP})
LATEST_YEAR = 9998
_MINUTE = timedelta(minutes=1)


class EntryNotGrantedError(EntryError):
    """The organization may not use this entry; the administrator can grant it."""


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
    run_timeout: timedelta | None = None


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
    """Checks and registers for one installation: its entries with their settings, and what it allows by default.

    A name is kept in Unicode's form NFC, so that two that look alike by their accents are one.
    """

    registry: CronRegistry
    settings: EntrySettings
    minimum_interval: timedelta
    cron_quota: int = UNLIMITED

    async def check(
        self, draft: CronDraft, *, organization: Organization, user: User, cron_id: UUID, now: datetime
    ) -> tuple[Definition, Schedule]:
        """Say what would be registered, writing nothing.

        Raises:
            RegistrationError: the draft is refused; every reason that could be found is given.
            EntryNotGrantedError: the organization may not use the entry.

        """
        self.check_grant(draft.entrypoint, organization=organization)
        name = unicodedata.normalize("NFC", draft.name)
        errors = [*name_errors(name), *_policy_errors(draft.policy)]
        schedule = self._schedule(draft.cron_expr, draft.tz, now=now, errors=errors)
        spec = self._spec(draft.entrypoint, errors=errors)
        registration = None
        if spec is not None:
            context = self._context(organization, user, cron_id, draft.entrypoint)
            registration = await _payload(spec, draft.payload, context, entrypoint=draft.entrypoint, errors=errors)
        if errors or schedule is None or spec is None or registration is None:
            raise RegistrationError(errors)
        definition = Definition(
            name=name,
            cron_expr=schedule.expression,
            tz=schedule.time_zone,
            entrypoint=draft.entrypoint,
            user_payload=registration.user_payload,
            execution_payload=registration.execution_payload,
            policy=_policy(draft.policy, Policy(timeout=spec.timeout, max_attempts=spec.attempts)),
            enabled=draft.enabled,
        )
        return definition, schedule

    async def register(
        self,
        connection: AsyncConnection,
        *,
        organization_id: UUID,
        crons: Sequence[NewCron],
    ) -> list[Cron]:
        """Write new crons with checked definitions, all of them or none; this is one statement, and can stand alone.

        Raises:
            CronNameTakenError: the organization has a cron of such a name.
            QuotaExceededError: the organization may not have so many crons.

        """
        return await insert_crons(connection, organization_id=organization_id, crons=crons, cron_quota=self.cron_quota)

    def check_grant(self, entrypoint: str, *, organization: Organization) -> None:
        """Let an organization use an entry, or not; of one that there is not, this says nothing.

        Raises:
            EntryNotGrantedError: it is not granted to the organization.

        """
        if entrypoint in self.registry and not organization.may_use(entrypoint):
            raise EntryNotGrantedError(f"The entry {entrypoint} is not granted to your organization")

    async def check_changes(
        self, changes: CronChanges, *, cron: Cron, organization: Organization, user: User, now: datetime
    ) -> Definition:
        """Say what a cron would become, writing nothing; what is not asked for stays, and is not judged again.

        Raises:
            RegistrationError: the changes are refused; every reason that could be found is given.
            EntryNotGrantedError: the organization may not use the entry that it asks for, or gives a payload to.

        """
        before = cron.definition
        name = before.name if changes.name is None else unicodedata.normalize("NFC", changes.name)
        errors = [*(name_errors(name) if name != before.name else ()), *_policy_errors(changes.policy)]
        expression = before.cron_expr if changes.cron_expr is None else changes.cron_expr
        zone = before.tz if changes.tz is None else changes.tz
        if changes.cron_expr is not None or changes.tz is not None:
            schedule = self._schedule(expression, zone, now=now, errors=errors)
            expression = expression if schedule is None else schedule.expression
        registration = await self._changed_payload(cron, changes, organization, user, errors=errors)
        if errors:
            raise RegistrationError(errors)
        definition = replace(
            before,
            name=name,
            cron_expr=expression,
            tz=zone,
            entrypoint=before.entrypoint if changes.entrypoint is None else changes.entrypoint,
            policy=_policy(changes.policy, before.policy),
            enabled=before.enabled if changes.enabled is None else changes.enabled,
        )
        if registration is None:
            return definition
        return replace(
            definition, user_payload=registration.user_payload, execution_payload=registration.execution_payload
        )

    async def check_override(
        self, payload: Mapping[str, JsonValue], *, cron: Cron, organization: Organization, user: User
    ) -> dict[str, Any]:
        """Give the execution payload for one run with another user payload.

        Raises:
            RegistrationError: the entry refuses the payload.
            EntryNotGrantedError: the organization may not use the entry.

        """
        self.check_grant(cron.definition.entrypoint, organization=organization)
        errors: list[FieldError] = []
        spec = self._spec(cron.definition.entrypoint, errors=errors)
        registration = None
        if spec is not None:
            context = self._context(organization, user, cron.id, cron.definition.entrypoint)
            registration = await _payload(spec, payload, context, entrypoint=cron.definition.entrypoint, errors=errors)
        if registration is None:
            raise RegistrationError(errors)
        return registration.execution_payload

    async def _changed_payload(
        self, cron: Cron, changes: CronChanges, organization: Organization, user: User, *, errors: list[FieldError]
    ) -> Registration | None:
        entrypoint = cron.definition.entrypoint if changes.entrypoint is None else changes.entrypoint
        if changes.payload is not None or changes.entrypoint is not None:
            self.check_grant(entrypoint, organization=organization)
        if changes.payload is None:
            if entrypoint != cron.definition.entrypoint:
                message = "another entrypoint needs a payload of its own; send the whole payload"
                errors.append(FieldError(path=("payload",), message=message, type="missing"))
            return None
        spec = self._spec(entrypoint, errors=errors)
        if spec is None:
            return None
        context = self._context(organization, user, cron.id, entrypoint)
        return await _payload(spec, changes.payload, context, entrypoint=entrypoint, errors=errors)

    def _context(self, organization: Organization, user: User, cron_id: UUID, entrypoint: str) -> RegistrationContext:
        services = Services(settings=self.settings.get(entrypoint, NO_SETTINGS))
        return RegistrationContext(organization=organization, user=user, cron_id=cron_id, services=services)

    def _schedule(self, expression: str, zone: str, *, now: datetime, errors: list[FieldError]) -> Schedule | None:
        wrong_zone = list(_zone_errors(zone))
        errors.extend(wrong_zone)
        try:
            schedule = Schedule.parse(expression, "UTC" if wrong_zone else zone)
        except ScheduleError as error:
            errors.append(FieldError(path=("cron_expr",), message=str(error), type="invalid_expression"))
            return None
        if schedule.next_after(now) is None:
            message = "it would never fire: the clocks of its zone skip every date and time that it names"
            errors.append(FieldError(path=("cron_expr",), message=message, type="never_fires"))
            return None
        # Fires fall on whole minutes, so with a minimum of one there is nothing to search 400 days for.
        shortest = schedule.shortest_interval(from_=now) if self.minimum_interval > _MINUTE else _MINUTE
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


def _zone_errors(zone: str) -> Iterable[FieldError]:
    try:
        Schedule.parse("* * * * *", zone)
    except UnknownTimeZoneError as error:
        yield FieldError(path=("tz",), message=str(error), type="unknown_time_zone")


async def _payload(
    spec: AnyCronEntrySpec,
    payload: Mapping[str, JsonValue],
    context: RegistrationContext,
    *,
    entrypoint: str,
    errors: list[FieldError],
) -> Registration | None:
    if found := list(unstorable(dict(payload))):
        errors.extend(replace(error, path=("payload", *error.path)) for error in found)
        return None
    try:
        return await register(spec, payload=payload, context=context)
    except PayloadInvalidError as error:
        errors.extend(replace(found, path=("payload", *found.path)) for found in error.errors)
        return None
    except EntryContractError as error:
        # The client learns that it failed, its author where; foreign words, which may repeat the payload, nobody.
        _log.exception("entry failed", entrypoint=entrypoint, exc_info=error)
        errors.append(FieldError(path=("payload",), message=str(error), type="entry_failed"))
        return None


def _policy(draft: PolicyDraft, default: Policy) -> Policy:
    asked = {name: getattr(draft, name) for name in draft.__slots__ if getattr(draft, name) is not None}
    return replace(default, **asked)


# Marks that have a place inside an emoji and show nothing by themselves.
_JOINERS = "\u200d\ufe0f"
# The flags of England, Scotland and Wales: a black flag, tag characters, and a tag that ends them (UTS #51, ED-14a).
_TAGGED_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]+\U000e007f")
# Control, format (which holds the bidi controls), surrogate, private use, line and paragraph separator. Not those
# without a category: a newer Unicode than Python's may have made them emoji.
_REFUSED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def name_errors(name: str) -> Iterable[FieldError]:
    """Say what is wrong with a name that people will read in lists: blank, over-long, or not what it looks like."""
    if all(character.isspace() or character in _JOINERS for character in name):
        yield FieldError(path=("name",), message="the name is blank", type="blank")
    if len(name) > MAXIMUM_NAME_LENGTH:
        message = f"the name has more than {MAXIMUM_NAME_LENGTH} characters"
        yield FieldError(path=("name",), message=message, type="too_long")
    if any(_is_refused(character) for character in _TAGGED_FLAG.sub("", name)):
        message = "the name has control characters, or ones that turn the direction of text"
        yield FieldError(path=("name",), message=message, type="control_character")


def _is_refused(character: str) -> bool:
    return unicodedata.category(character) in _REFUSED_CATEGORIES and character not in _JOINERS


def _policy_errors(draft: PolicyDraft) -> Iterable[FieldError]:
    yield from _duration_errors(("timeout",), draft.timeout, longest=LONGEST_TIMEOUT)
    yield from _duration_errors(("catchup_window",), draft.catchup_window, longest=LONGEST_CATCHUP_WINDOW)
    yield from _bounds_errors(draft)
    yield from _count_errors("max_attempts", draft.max_attempts, most=MOST_ATTEMPTS)
    yield from _duration_errors(("run_timeout",), draft.run_timeout, longest=LONGEST_RUN_TIMEOUT)
    wrong = list(_count_errors("max_runs", draft.max_runs, most=MOST_RUNS))
    yield from wrong
    if draft.max_runs is not None and not wrong:
        yield _not_served(("max_runs",), "no limit")
    yield from _backoff_errors(draft)
    if draft.overlap not in {None, *SERVED_OVERLAPS}:
        yield _not_served(("overlap",), "only skip")
    if draft.catchup not in {None, Catchup.LATEST}:
        yield _not_served(("catchup",), "only latest")
    if draft.jitter is not None:
        yield from _jitter_errors(draft.jitter)


def _count_errors(name: str, count: int | None, *, most: int) -> Iterable[FieldError]:
    if count is not None and not 1 <= count <= most:
        yield FieldError(path=(name,), message=f"{name} is from 1 to {most}", type="out_of_range")


def _backoff_errors(draft: PolicyDraft) -> Iterable[FieldError]:
    yield from _duration_errors(("backoff", "initial"), draft.backoff_initial, longest=LONGEST_BACKOFF)
    yield from _duration_errors(("backoff", "maximum"), draft.backoff_maximum, longest=LONGEST_BACKOFF)
    if draft.backoff_initial and draft.backoff_maximum and draft.backoff_initial > draft.backoff_maximum:
        message = "the longest wait is shorter than the first one"
        yield FieldError(path=("backoff", "maximum"), message=message, type="out_of_range")


def _jitter_errors(jitter: timedelta) -> Iterable[FieldError]:
    if jitter < timedelta(0):
        yield FieldError(path=("jitter",), message="a jitter is not negative", type="out_of_range")
    elif jitter:
        yield _not_served(("jitter",), "only 0")


def _duration_errors(path: tuple[str, ...], duration: timedelta | None, *, longest: timedelta) -> Iterable[FieldError]:
    if duration is not None and not timedelta(seconds=1) <= duration <= longest:
        message = f"{'.'.join(path)} is from 1 s to {_seconds(longest)}"
        yield FieldError(path=path, message=message, type="out_of_range")


def _bounds_errors(draft: PolicyDraft) -> Iterable[FieldError]:
    wrong = [*_instant_errors("starts_at", draft.starts_at), *_instant_errors("ends_at", draft.ends_at)]
    yield from wrong
    if wrong:
        return
    for name in ("starts_at", "ends_at"):
        if getattr(draft, name) is not None:
            yield _not_served((name,), "no bounds")
    if draft.starts_at is not None and draft.ends_at is not None and draft.starts_at >= draft.ends_at:
        yield FieldError(path=("ends_at",), message="the end is not after the start", type="out_of_range")


def _instant_errors(name: str, instant: datetime | None) -> Iterable[FieldError]:
    if instant is None:
        return
    if instant.utcoffset() is None:
        message = "an instant needs its offset, such as 2026-01-31T09:00:00Z"
        yield FieldError(path=(name,), message=message, type="naive_instant")
    elif instant.year > LATEST_YEAR:
        yield FieldError(path=(name,), message="this is too far in the future", type="out_of_range")


def _not_served(path: tuple[str, ...], served: str) -> FieldError:
    return FieldError(path=path, message=f"this value is not served yet; {served} is", type="not_served")


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
