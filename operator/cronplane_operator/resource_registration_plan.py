"""What becomes of the crons that resources define, decided from records alone.

A resource is told from another by its UID and what it says by its generation, never by a label. A cron is deleted only
when its resource is known to have been deleted: what went with its namespace or with its definition is disabled, and
what went with too many others is left as it is until somebody confirms it.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from uuid import UUID

from cronplane_core.cron_repository import DefiningResource
from cronplane_core.cron_source_repository import ResourceCron
from cronplane_core.kubernetes_client import Body
from cronplane_core.organization_repository import Organization
from cronplane_operator.cron_mirror_plan import RefusalReason
from cronplane_operator.cron_resources import is_registration

# Complete lists that a resource has to be missing from until it is gone.
LISTS_UNTIL_GONE = 2
# So many crons of a namespace, if they are also more than half of it, do not lose their resources by intention.
_MANY = 10
_DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Registering:
    """A resource to register for an organization: anew, or again for the cron that it defines already."""

    body: Body
    resource: DefiningResource
    organization: Organization
    cron: ResourceCron | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationPlan:
    """What is to be done. `held` are crons that would be deleted if that was confirmed.

    `moved` are resources as registered but for their scope, `unmapped` those whose namespace has no organization.
    """

    register: tuple[Registering, ...]
    delete: tuple[ResourceCron, ...]
    disable: tuple[ResourceCron, ...]
    moved: tuple[Registering, ...]
    held: tuple[ResourceCron, ...]
    unmapped: tuple[Body, ...]


def plan(
    *,
    resources: Collection[Body],
    crons: Collection[ResourceCron],
    mirrors: Collection[str],
    organizations: Mapping[str, Organization],
    mapped: Collection[str],
    scopes: Mapping[str, str],
    absences: Mapping[str, int],
    confirmed: str | None,
) -> RegistrationPlan:
    """Compare the resources with the crons that resources define.

    `mirrors` are the UIDs of resources that mirror crons of the API, `mapped` the namespaces of the settings,
    `organizations` those of them that there are, and `scopes` those of the namespaces that are there. `absences` says
    from how many complete lists in a row a UID was missing, and `confirmed` is the digest of crons that may be deleted
    though they are many.
    """
    present = {body["metadata"]["uid"]: body for body in resources}
    places = {_place(body) for uid, body in present.items() if uid not in mirrors}
    strays = {cron.id for cron in crons if _is_of_another(cron, organizations)}
    cut_off = [cron for cron in crons if cron.resource.uid is not None and cron.resource.namespace not in mapped]
    apart = strays | {cron.id for cron in cut_off}
    gone = [cron for cron in _gone(crons, places, absences) if cron.id not in apart]
    disabled = cut_off + [cron for cron in gone if not _is_scope_there(cron, scopes)]
    lost = [cron for cron in crons if cron.id in strays] + [cron for cron in gone if _is_scope_there(cron, scopes)]
    waiting = _waiting(crons, places, let_go={cron.id for cron in (*lost, *disabled)})
    kept = _held(lost, crons, waiting=waiting, confirmed=confirmed)
    known = {_place_of(cron): cron for cron in crons}
    asked = [body for body in present.values() if _asks(body, known.get(_place(body)), mirrors=mirrors, strays=strays)]
    found = [each for body in asked if (each := _registering(body, known, organizations, scopes)) is not None]
    return RegistrationPlan(
        register=tuple(each for each in found if not _is_as_registered(each)),
        delete=tuple(cron for cron in lost if cron.id not in kept),
        disable=tuple(disabled),
        moved=tuple(each for each in found if _is_as_registered(each) and _has_moved(each)),
        held=tuple(cron for cron in (*lost, *waiting) if cron.id in kept),
        unmapped=tuple(body for body in asked if _is_unmapped(body, known, organizations)),
    )


def of_concern(resources: Iterable[Body], crons: Collection[ResourceCron]) -> list[Body]:
    """Give the resources that may have to do with registration, which few do where thousands are mirrors."""
    places = {_place_of(cron) for cron in crons}
    return [body for body in resources if is_registration(body) or _place(body) in places]


def strangers(resources: Iterable[Body], crons: Collection[ResourceCron]) -> list[str]:
    """Name those of these resources, by their UIDs, that would ask to be registered unless they are mirrors."""
    known = {cron.resource.uid for cron in crons}
    return [uid for body in resources if (uid := body["metadata"]["uid"]) not in known]


def digest(crons: Iterable[ResourceCron]) -> str:
    """Name a set of crons in a word that somebody can confirm it by; another set has another one."""
    names = ",".join(sorted(str(cron.id) for cron in crons))
    return hashlib.sha256(names.encode()).hexdigest()[:_DIGEST_LENGTH]


def _gone(
    crons: Collection[ResourceCron], places: Collection[tuple[str, str]], absences: Mapping[str, int]
) -> list[ResourceCron]:
    """Give the crons whose resources are gone; of a namespace that is still losing some, none yet.

    Who deletes many deletes them one after the other, and only together do they show as many. A resource in the place
    of one that is gone has its cron, also while it is refused.
    """
    missing = [cron for cron in crons if cron.resource.uid is not None and _place_of(cron) not in places]
    losing = {
        cron.resource.namespace for cron in missing if absences.get(cron.resource.uid or "", 0) < LISTS_UNTIL_GONE
    }
    return [cron for cron in missing if cron.resource.namespace not in losing]


def _waiting(
    crons: Collection[ResourceCron], places: Collection[tuple[str, str]], *, let_go: Collection[UUID]
) -> list[ResourceCron]:
    """Give the crons that were held before and whose resources this leader has not missed for long enough yet."""
    missing = (cron for cron in crons if cron.is_held and _place_of(cron) not in places)
    return [cron for cron in missing if cron.id not in let_go]


def _is_scope_there(cron: ResourceCron, scopes: Mapping[str, str]) -> bool:
    return scopes.get(cron.resource.namespace) == cron.resource.scope


def _is_of_another(cron: ResourceCron, organizations: Mapping[str, Organization]) -> bool:
    """Say whether the namespace of a cron's resource has been given to another organization."""
    owner = organizations.get(cron.resource.namespace)
    return owner is not None and owner.id != cron.organization_id


def _held(
    lost: Collection[ResourceCron],
    crons: Collection[ResourceCron],
    *,
    waiting: Collection[ResourceCron],
    confirmed: str | None,
) -> set[UUID]:
    """Give the crons that lost their resources together with too many others of their namespace.

    While the others get theirs back, one by one, what is left of them is not taken for an intention.
    """
    counts = Counter(cron.resource.namespace for cron in lost)
    all_of = Counter(cron.resource.namespace for cron in crons if cron.resource.uid is not None)
    many = {name for name, count in counts.items() if count > _MANY and 2 * count > all_of[name]}
    held = [*waiting, *(cron for cron in lost if cron.resource.namespace in many or cron.is_held)]
    return set() if digest(held) == confirmed else {cron.id for cron in held}


def _asks(body: Body, cron: ResourceCron | None, *, mirrors: Collection[str], strays: Collection[UUID]) -> bool:
    """Say whether a resource asks to be registered; one whose place a stray cron still has will ask again."""
    if body["metadata"]["uid"] in mirrors or (cron is not None and cron.id in strays):
        return False
    return cron is not None or is_registration(body)


def _registering(
    body: Body,
    known: Mapping[tuple[str, str], ResourceCron],
    organizations: Mapping[str, Organization],
    scopes: Mapping[str, str],
) -> Registering | None:
    metadata = body["metadata"]
    organization, scope = organizations.get(metadata["namespace"]), scopes.get(metadata["namespace"])
    if organization is None or scope is None:
        return None
    resource = DefiningResource(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata["generation"],
        scope=scope,
    )
    return Registering(body=body, resource=resource, organization=organization, cron=known.get(_place(body)))


def _is_unmapped(
    body: Body, known: Mapping[tuple[str, str], ResourceCron], organizations: Mapping[str, Organization]
) -> bool:
    """Say whether nobody registers a resource; another installation may, and has told so then."""
    told = [each["reason"] for each in body.get("status", {}).get("conditions", []) if each["type"] == "Ready"]
    is_anothers = bool(told) and told != [RefusalReason.NAMESPACE_NOT_MAPPED] and _place(body) not in known
    return body["metadata"]["namespace"] not in organizations and not is_anothers


def _is_as_registered(registering: Registering) -> bool:
    if registering.cron is None:
        return False
    known, found = registering.cron.resource, registering.resource
    return (known.uid, known.generation) == (found.uid, found.generation)


def _has_moved(registering: Registering) -> bool:
    return registering.cron is not None and registering.cron.resource.scope != registering.resource.scope


def _place(body: Body) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _place_of(cron: ResourceCron) -> tuple[str, str]:
    return cron.resource.namespace, cron.resource.name
