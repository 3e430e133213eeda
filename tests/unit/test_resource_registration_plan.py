"""What becomes of the crons that resources define, decided from records alone."""

from dataclasses import replace
from datetime import UTC, datetime
from time import process_time
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.cron_repository import DefiningResource
from cronplane_core.cron_source_repository import ResourceCron
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import OrganizationState
from cronplane_operator.resource_registration_plan import RegistrationPlan, digest, of_concern, plan, strangers

SCOPE = "definition-1 namespace-1"
UNSET: Any = object()


def organization(name: str) -> Organization:
    return Organization(
        id=uuid4(),
        name=name,
        state=OrganizationState.ACTIVE,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        entrypoints=None,
        cron_quota=None,
        triggers_per_minute=None,
        crons=0,
    )


ACME, RIVAL = organization("acme"), organization("rival")


def cron(name: str, *, uid: str | None = "uid", owner: Organization = ACME, **changes: Any) -> ResourceCron:
    resource = DefiningResource(namespace="acme", name=name, uid=uid, generation=1, scope=SCOPE)
    return ResourceCron(id=uuid4(), organization_id=owner.id, resource=replace(resource, **changes), is_held=False)


def body(name: str, *, uid: str = "uid", generation: int = 1, namespace: str = "acme", payload: Any = None) -> Any:
    spec = {} if payload is UNSET else {"payload": payload or {}}
    metadata = {"name": name, "namespace": namespace, "uid": uid, "generation": generation}
    return {"metadata": metadata, "spec": spec}


def decide(resources: list[Any], crons: list[ResourceCron], **changes: Any) -> RegistrationPlan:
    told: dict[str, Any] = {
        "mirrors": (),
        "organizations": {"acme": ACME},
        "mapped": {"acme"},
        "scopes": {"acme": SCOPE},
        "absences": {},
        "confirmed": None,
    }
    return plan(resources=resources, crons=crons, **(told | changes))


def nothing(decided: RegistrationPlan) -> bool:
    return not any((decided.register, decided.delete, decided.disable, decided.moved, decided.held, decided.unmapped))


def test_a_resource_with_a_payload_is_registered_for_its_namespaces_organization() -> None:
    [asked] = decide([body("nightly")], []).register
    assert (asked.organization, asked.cron, asked.resource.name) == (ACME, None, "nightly")
    assert asked.resource.scope == SCOPE


def test_a_mirror_and_a_resource_without_payload_ask_for_nothing() -> None:
    assert nothing(decide([body("a", payload=UNSET)], []))
    assert nothing(decide([body("b", uid="mirror")], [], mirrors={"mirror"}))


def test_what_is_registered_is_registered_again_only_if_uid_or_generation_changed() -> None:
    known = cron("nightly")
    assert nothing(decide([body("nightly")], [known]))
    [again] = decide([body("nightly", generation=2)], [known]).register
    assert again.cron == known
    [anew] = decide([body("nightly", uid="another")], [known]).register
    assert (anew.cron, anew.resource.uid) == (known, "another")


def test_a_registered_resource_whose_payload_was_taken_away_is_judged_and_not_forgotten() -> None:
    known = cron("nightly")
    [asked] = decide([body("nightly", generation=2, payload=UNSET)], [known]).register
    assert asked.cron == known


@pytest.mark.parametrize(("lists", "deleted"), [(0, 0), (1, 0), (2, 1)])
def test_a_cron_is_deleted_after_two_complete_lists_without_its_resource(lists: int, deleted: int) -> None:
    known = cron("nightly")
    assert decide([], [known], absences={"uid": lists}).delete == (known,) * deleted


@pytest.mark.parametrize("scopes", [{}, {"acme": "definition-1 namespace-2"}, {"acme": "definition-2 namespace-1"}])
def test_what_went_with_its_namespace_or_its_definition_is_disabled_and_never_deleted(scopes: dict[str, str]) -> None:
    known = cron("nightly")
    decided = decide([], [known], absences={"uid": 5}, scopes=scopes)
    assert (decided.disable, decided.delete) == ((known,), ())


def test_a_disabled_cron_stays_until_a_resource_of_its_name_has_it_back() -> None:
    known = cron("nightly", uid=None)
    assert nothing(decide([], [known], absences={"uid": 5}))
    [asked] = decide([body("nightly", uid="new")], [known]).register
    assert asked.cron == known


def test_a_resource_that_outlived_the_namespace_it_was_registered_in_keeps_its_cron() -> None:
    known = cron("nightly", scope="an older one")
    [moved] = decide([body("nightly")], [known]).moved
    assert (moved.cron, moved.resource.scope) == (known, SCOPE)


def lost_many(count: int, *, of: int) -> tuple[list[Any], list[ResourceCron], dict[str, int]]:
    crons = [cron(f"cron-{n}", uid=f"uid-{n}") for n in range(of)]
    resources = [body(f"cron-{n}", uid=f"uid-{n}") for n in range(count, of)]
    return resources, crons, {f"uid-{n}": 2 for n in range(count)}


@pytest.mark.parametrize(("count", "of", "held"), [(10, 10, 0), (11, 11, 11), (11, 22, 0), (12, 22, 12)])
def test_more_than_ten_and_more_than_half_of_a_namespace_are_not_deleted_at_once(
    count: int, of: int, held: int
) -> None:
    resources, crons, absences = lost_many(count, of=of)
    decided = decide(resources, crons, absences=absences)
    assert (len(decided.held), len(decided.delete)) == (held, count - held)


def test_none_is_deleted_while_its_namespace_is_losing_more() -> None:
    resources, crons, absences = lost_many(3, of=20)
    assert decide(resources, crons, absences=absences | {"uid-2": 1}).delete == ()
    assert len(decide(resources, crons, absences=absences).delete) == 3


def test_held_deletions_are_done_once_somebody_confirms_just_these() -> None:
    resources, crons, absences = lost_many(12, of=12)
    held = decide(resources, crons, absences=absences).held
    assert decide(resources, crons, absences=absences, confirmed=digest(held[1:])).delete == ()
    decided = decide(resources, crons, absences=absences, confirmed=digest(held))
    assert (decided.delete, decided.held) == (held, ())


def test_what_is_left_of_many_stays_held_while_the_others_get_their_resources_back() -> None:
    resources, crons, absences = lost_many(12, of=12)
    held = decide(resources, crons, absences=absences).held
    held_before = [replace(each, is_held=True) for each in held]
    back = [body(each.resource.name, uid=f"new {each.resource.name}") for each in held[:8]]
    decided = decide(back, held_before, absences=absences)
    assert (decided.delete, decided.held) == ((), tuple(held_before[8:]))
    assert {each.cron for each in decided.register} == set(held_before[:8])
    confirmed = decide(back, held_before, absences=absences, confirmed=digest(held[8:]))
    assert (confirmed.delete, confirmed.held) == (tuple(held_before[8:]), ())


def test_what_was_held_before_stays_so_until_its_resource_is_back_or_its_deletion_is_decided() -> None:
    _, crons, _ = lost_many(3, of=3)
    before = [replace(each, is_held=True) for each in crons]
    back = [body(before[0].resource.name, uid="new")]
    decided = decide(back, before)
    assert (decided.delete, decided.disable, decided.held) == ((), (), tuple(before[1:]))
    assert decide(back, before, scopes={}, absences={str(each.resource.uid): 2 for each in before}).held == ()


def test_a_resource_in_the_place_of_one_that_is_gone_has_its_cron_until_it_is_registered_or_goes_too() -> None:
    known = cron("nightly")
    decided = decide([body("nightly", uid="its successor, which was refused")], [known], absences={"uid": 5})
    assert (decided.delete, decided.disable, len(decided.register)) == ((), (), 1)
    decided = decide([body("nightly", uid="mirror")], [known], absences={"uid": 5}, mirrors={"mirror"})
    assert (decided.delete, decided.register) == ((known,), ())


def test_a_mirror_in_the_place_of_a_disabled_cron_is_not_judged() -> None:
    known = cron("nightly", uid=None)
    unknown = [body("nightly", uid="mirror", payload=UNSET), body("b", uid="b"), body("c", uid="c", payload=UNSET)]
    concerned = of_concern([*unknown, body("nightly", uid="uid")], [known, cron("d")])
    assert [each["metadata"]["uid"] for each in concerned] == ["mirror", "b", "uid"]
    assert strangers(concerned, [known, cron("d")]) == ["mirror", "b"]
    assert nothing(decide([body("nightly", uid="mirror", payload=UNSET)], [known], mirrors={"mirror"}))


@pytest.mark.parametrize("scopes", [{}, {"acme": SCOPE}])
def test_ten_thousand_crons_that_lost_their_resources_are_decided_while_a_loop_waits(scopes: dict[str, str]) -> None:
    resources, crons, absences = lost_many(10_000, of=10_000)
    began = process_time()
    decided = decide(resources, crons, absences=absences, scopes=scopes)
    assert len(decided.held) + len(decided.disable) == 10_000
    assert process_time() - began < 2


def test_a_namespace_without_an_organization_gets_a_refusal_and_no_cron() -> None:
    decided = decide([body("nightly", namespace="elsewhere")], [])
    assert (len(decided.unmapped), decided.register) == (1, ())


def test_a_resource_that_another_installation_has_told_of_is_not_told_that_nobody_registers_it() -> None:
    def told(reason: str) -> Any:
        return body("nightly", namespace="elsewhere") | {
            "status": {"conditions": [{"type": "Ready", "reason": reason}]}
        }

    assert nothing(decide([told("Registered")], []))
    assert len(decide([told("NamespaceNotMapped")], []).unmapped) == 1
    ours = cron("nightly", uid=None, namespace="elsewhere")
    assert len(decide([told("Registered")], [ours]).unmapped) == 1


def test_a_cron_whose_namespace_is_mapped_no_more_is_disabled_though_its_resource_is_there() -> None:
    known = cron("nightly")
    decided = decide([body("nightly")], [known], organizations={}, mapped=())
    assert (decided.disable, decided.delete, len(decided.unmapped)) == ((known,), (), 1)
    decided = decide([], [known], organizations={}, mapped=(), absences={"uid": 5})
    assert (decided.disable, decided.delete) == ((known,), ())
    assert decide([body("nightly")], [known], organizations={}).disable == ()


def test_a_namespace_given_to_another_organization_loses_its_crons_before_they_are_registered_anew() -> None:
    known = cron("nightly", owner=RIVAL)
    first = decide([body("nightly")], [known])
    assert (first.delete, first.register) == ((known,), ())
    assert len(decide([body("nightly")], []).register) == 1


@given(
    present=st.sets(st.integers(0, 30)),
    known=st.sets(st.integers(0, 30)),
    absences=st.dictionaries(st.integers(0, 30).map("uid-{}".format), st.integers(0, 3)),
    scopes=st.sampled_from([{}, {"acme": SCOPE}, {"acme": "another"}]),
)
def test_whatever_is_there_no_cron_with_its_resource_is_let_go_and_none_has_two_fates(
    present: set[int], known: set[int], absences: dict[str, int], scopes: dict[str, str]
) -> None:
    crons = [cron(f"cron-{n}", uid=f"uid-{n}") for n in known]
    resources = [body(f"cron-{n}", uid=f"uid-{n}") for n in present]
    decided = decide(resources, crons, absences=absences, scopes=scopes)
    let_go: list[UUID] = [each.id for each in (*decided.delete, *decided.disable, *decided.held)]
    assert len(let_go) == len(set(let_go))
    still_there = {each.id for each in crons if each.resource.name in {f"cron-{n}" for n in present}}
    assert still_there.isdisjoint(let_go)
    assert all(absences.get(str(each.resource.uid), 0) >= 2 for each in crons if each.id in let_go)
    new = {each.resource.name for each in decided.register if each.cron is None}
    assert new == ({f"cron-{n}" for n in present - known} if scopes else set())
