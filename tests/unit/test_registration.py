"""What a registration refuses, and in which words; the checks write nothing, so no database is needed."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue

from cronplane_core.cron_repository import Cron, Policy
from cronplane_core.schedule import Schedule
from cronplane_core.tables import Catchup, Overlap
from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    Organization,
    RegistrationContext,
    RegistrationRefusedError,
    User,
)
from cronplane_entries.registration import CronChanges, CronDraft, PolicyDraft, Registrar, RegistrationError
from cronplane_entries.registry import CronEntrypoint, CronRegistry

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
ORGANIZATION = Organization(id=UUID(int=1), name="acme")
USER = User(id="key:1", name="laptop")
CRON_ID = UUID(int=7)


class Wish(BaseUserPayload):
    anything: JsonValue = None
    refuse: str = ""


class Task(BaseExecutionPayload):
    anything: Any
    cron_id: UUID
    settings: dict[str, str]


def grant(payload: Wish, *, context: RegistrationContext) -> Task:
    if payload.refuse == "with a path":
        raise RegistrationRefusedError("not that one", field=("anything", 3, "deep"))
    if payload.refuse:
        raise ValueError("not today")
    if payload.anything == "grow":
        return Task(anything="x" * 200_000, cron_id=context.cron_id, settings={})
    return Task(anything=payload.anything, cron_id=context.cron_id, settings=dict(context.services.settings))


def unused(_: Task, **__: object) -> None:
    raise AssertionError("a registration executes nothing")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CronRegistry:
    registry = CronRegistry()
    registry.load()
    # So that no name outlives its test.
    members = type(CronEntrypoint)._members
    monkeypatch.setattr(type(CronEntrypoint), "_members", dict(members))
    CronEntrypoint.add("known_but_not_registered")
    registry[CronEntrypoint.add("wish")] = CronEntrySpec(
        user_payload_model=Wish,
        execution_payload_model=Task,
        registration_validator=grant,
        execution_validator=unused,
        executor=unused,
        timeout=timedelta(minutes=5),
    )
    return registry


@pytest.fixture
def registrar(registry: CronRegistry) -> Registrar:
    return Registrar(registry=registry, settings={}, minimum_interval=timedelta(minutes=1))


DRAFT = CronDraft(
    name="my job", cron_expr="0 9 * * 1-5", tz="Europe/Paris", entrypoint="wish", payload={"anything": [1, True]}
)


async def check(registrar: Registrar, draft: CronDraft) -> Any:
    return await registrar.check(draft, organization=ORGANIZATION, user=USER, cron_id=CRON_ID, now=NOW)


async def refusals(registrar: Registrar, draft: CronDraft) -> list[tuple[tuple[str | int, ...], str]]:
    """Where and why a draft is refused, in any order; every refusal has a message."""
    with pytest.raises(RegistrationError) as caught:
        await check(registrar, draft)
    assert all(error.message for error in caught.value.errors)
    return sorted(((error.path, error.type) for error in caught.value.errors), key=repr)


async def test_a_good_draft_becomes_a_definition_and_a_schedule(registrar: Registrar) -> None:
    definition, schedule = await check(registrar, replace(DRAFT, cron_expr=" 0  9 * * 1-5 ", enabled=False))
    assert schedule == Schedule.parse("0 9 * * 1-5", "Europe/Paris")
    assert definition.execution_payload == {"anything": [1, True], "cron_id": str(CRON_ID), "settings": {}}
    assert definition.user_payload == {"anything": [1, True], "refuse": ""}
    assert (definition.name, definition.cron_expr, definition.tz) == ("my job", "0 9 * * 1-5", "Europe/Paris")
    assert (definition.entrypoint, definition.enabled) == ("wish", False)
    assert definition.policy == Policy(timeout=timedelta(minutes=5))


async def test_the_administrators_settings_for_an_entry_reach_its_validator(
    registrar: Registrar,
) -> None:
    settings = {"wish": {"base_url": "https://example.org"}, "other": {"token": "a secret of another entry"}}
    definition, _ = await check(replace(registrar, settings=settings), DRAFT)
    assert definition.execution_payload["settings"] == {"base_url": "https://example.org"}


async def test_everything_that_is_wrong_is_told_at_once(registrar: Registrar) -> None:
    draft = CronDraft(
        name=" ",
        cron_expr="60 * * * *",
        tz="Mars/Phobos",
        entrypoint="wish",
        payload={"refuse": 1, "unknown": "text"},
        policy=PolicyDraft(timeout=timedelta(0), overlap=Overlap.ALLOW),
    )
    assert await refusals(registrar, draft) == [
        (("cron_expr",), "invalid_expression"),
        (("name",), "blank"),
        (("overlap",), "not_served"),
        (("payload", "refuse"), "string_type"),
        (("payload", "unknown"), "extra_forbidden"),
        (("timeout",), "out_of_range"),
        (("tz",), "unknown_time_zone"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "n" * 200,
        "é" * 200,
        "e\u0301" * 200,
        "Überstunden & 日本語 & עברית",
        "🚀 nightly",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467",
        "❤️",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "\U0001fae8 made after Python 3.11's tables",
        "🇫🇷",
        "👍🏽",
    ],
)
async def test_a_name_may_be_any_line_of_text_that_people_can_see(registrar: Registrar, name: str) -> None:
    definition, _ = await check(registrar, replace(DRAFT, name=name))
    assert len(definition.name) <= 200


async def test_a_name_that_is_composed_in_two_ways_is_one_name(registrar: Registrar) -> None:
    composed, _ = await check(registrar, replace(DRAFT, name="caf\u00e9"))
    decomposed, _ = await check(registrar, replace(DRAFT, name="cafe\u0301"))
    assert composed.name == decomposed.name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "blank"),
        (" \u3000\u00a0", "blank"),
        ("\u200d\ufe0f", "blank"),
        ("n" * 201, "too_long"),
        ("a\0b", "control_character"),
        ("a\nb", "control_character"),
        ("a\x1b[31m", "control_character"),
        ("a\x85b", "control_character"),
        ("a\u2028b", "control_character"),
        ("a\u2029b", "control_character"),
        ("a\u202eb", "control_character"),
        ("a\u2066b", "control_character"),
        ("a\u200fb", "control_character"),
        ("a\u061cb", "control_character"),
        ("a\ufeffb", "control_character"),
        ("a\ud800b", "control_character"),
        ("a\U000e0041b", "control_character"),
        ("a\ue000b", "control_character"),
    ],
)
async def test_a_name_that_hides_something_is_refused(registrar: Registrar, name: str, reason: str) -> None:
    assert await refusals(registrar, replace(DRAFT, name=name)) == [(("name",), reason)]


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        ({"cron_expr": ""}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "0 0 31 2 *"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "* * * * * *"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "@reboot"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "0 9 * * *\n"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "\u0660 9 * * *"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "0," * 2000 + "0 * * * *"}, ("cron_expr",), "invalid_expression"),
        ({"cron_expr": "* 2 * 3 SUN#2", "tz": "America/New_York"}, ("cron_expr",), "never_fires"),
        ({"tz": ""}, ("tz",), "unknown_time_zone"),
        ({"tz": "Mars/Phobos"}, ("tz",), "unknown_time_zone"),
        ({"tz": "../../etc/passwd"}, ("tz",), "unknown_time_zone"),
        ({"tz": "+02:00"}, ("tz",), "unknown_time_zone"),
        ({"tz": "europe/paris"}, ("tz",), "unknown_time_zone"),
        ({"tz": "UTC\0"}, ("tz",), "unknown_time_zone"),
        ({"entrypoint": ""}, ("entrypoint",), "unknown_entry"),
        ({"entrypoint": "WISH"}, ("entrypoint",), "unknown_entry"),
        ({"entrypoint": "os.system"}, ("entrypoint",), "unknown_entry"),
        ({"entrypoint": "known_but_not_registered"}, ("entrypoint",), "unknown_entry"),
        ({"payload": {"refuse": "with a path"}}, ("payload", "anything", 3, "deep"), "refused"),
        ({"payload": {"refuse": "plainly"}}, ("payload",), "refused"),
        ({"payload": {"anything": "grow"}}, ("payload",), "too_large"),
        ({"payload": {"anything": ["", {"a": "x\0"}]}}, ("payload", "anything", 1, "a"), "nul_character"),
        ({"payload": {"anything": {"b\0": 1}}}, ("payload", "anything", "b\0"), "nul_character"),
        ({"payload": {"anything": "\udc00"}}, ("payload", "anything"), "lone_surrogate"),
        ({"payload": {"anything": float("inf")}}, ("payload", "anything"), "number_not_finite"),
        ({"entrypoint": "dummy_print", "payload": {}}, ("payload", "message"), "missing"),
        ({"entrypoint": "dummy_print", "payload": {"message": " \n"}}, ("payload", "message"), "refused"),
        (
            {"entrypoint": "dummy_print", "payload": {"message": "m", "error_rate": False}},
            ("payload", "error_rate"),
            "float_type",
        ),
        (
            {"entrypoint": "dummy_print", "payload": {"message": "m", "error_rate": 1.1}},
            ("payload", "error_rate"),
            "less_than_equal",
        ),
    ],
)
async def test_a_draft_is_refused_at_the_field_that_is_wrong(
    registrar: Registrar, changes: Mapping[str, Any], path: tuple[str | int, ...], reason: str
) -> None:
    assert await refusals(registrar, replace(DRAFT, **changes)) == [(path, reason)]


@pytest.mark.parametrize(
    "cron_expr", ["0 0 * * 0", "0 0 * * 7", "0 9 * * MON-FRI", "@daily", "@hourly", "0 0 29 2 *", "* * * * *"]
)
async def test_what_cron_knows_is_accepted(registrar: Registrar, cron_expr: str) -> None:
    definition, _ = await check(registrar, replace(DRAFT, cron_expr=cron_expr))
    assert definition.cron_expr == cron_expr


@pytest.mark.parametrize(
    ("minimum", "cron_expr", "is_accepted"),
    [
        (60, "* * * * *", True),
        (61, "* * * * *", False),
        (300, "*/5 * * * *", True),
        (300, "0,5,9 0 1 1 *", False),
        (300, "*/7 * * * *", False),
        # Only over midnight, and only on one day of the year, do two fires come close.
        (600, "0,55 0,23 31,1 12,1 *", False),
        (24 * 3600, "0 9 * * *", False),
        (23 * 3600, "0 9 * * *", True),
    ],
)
async def test_two_fires_may_not_be_closer_than_the_minimum_on_any_day_of_the_year(
    registry: CronRegistry, minimum: int, cron_expr: str, *, is_accepted: bool
) -> None:
    registrar = Registrar(registry=registry, settings={}, minimum_interval=timedelta(seconds=minimum))
    draft = replace(DRAFT, cron_expr=cron_expr)
    if is_accepted:
        await check(registrar, draft)
    else:
        assert await refusals(registrar, draft) == [(("cron_expr",), "interval_too_short")]


SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


@pytest.mark.parametrize(
    "policy",
    [
        PolicyDraft(timeout=SECOND),
        PolicyDraft(timeout=7 * DAY),
        PolicyDraft(catchup_window=SECOND),
        PolicyDraft(catchup_window=30 * DAY),
        PolicyDraft(
            overlap=Overlap.SKIP,
            catchup=Catchup.LATEST,
            max_attempts=1,
            jitter=timedelta(0),
            backoff_initial=10 * SECOND,
            backoff_maximum=600 * SECOND,
        ),
    ],
)
async def test_a_policy_that_is_served_is_kept(registrar: Registrar, policy: PolicyDraft) -> None:
    definition, _ = await check(registrar, replace(DRAFT, policy=policy))
    asked = {name: getattr(policy, name) for name in policy.__slots__}
    assert definition.policy == replace(
        Policy(timeout=timedelta(minutes=5)), **{name: value for name, value in asked.items() if value is not None}
    )


FIRST_OF_MAY = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        (PolicyDraft(timeout=timedelta(0)), [("timeout", "out_of_range")]),
        (PolicyDraft(timeout=-SECOND), [("timeout", "out_of_range")]),
        (PolicyDraft(timeout=7 * DAY + SECOND), [("timeout", "out_of_range")]),
        (PolicyDraft(catchup_window=-SECOND), [("catchup_window", "out_of_range")]),
        (PolicyDraft(catchup_window=31 * DAY), [("catchup_window", "out_of_range")]),
        (PolicyDraft(max_attempts=0), [("max_attempts", "out_of_range")]),
        (PolicyDraft(max_attempts=10**9), [("max_attempts", "out_of_range")]),
        (PolicyDraft(max_attempts=101), [("max_attempts", "out_of_range")]),
        (PolicyDraft(run_timeout=timedelta(0)), [("run_timeout", "out_of_range")]),
        (PolicyDraft(run_timeout=31 * DAY), [("run_timeout", "out_of_range")]),
        (PolicyDraft(max_runs=0), [("max_runs", "out_of_range")]),
        (PolicyDraft(max_runs=10**10), [("max_runs", "out_of_range")]),
        (PolicyDraft(max_runs=1), [("max_runs", "not_served")]),
        (PolicyDraft(jitter=-SECOND), [("jitter", "out_of_range")]),
        (PolicyDraft(jitter=SECOND), [("jitter", "not_served")]),
        (PolicyDraft(backoff_initial=-SECOND), [("backoff.initial", "out_of_range")]),
        (PolicyDraft(backoff_maximum=2 * DAY), [("backoff.maximum", "out_of_range")]),
        (
            PolicyDraft(backoff_initial=10 * SECOND, backoff_maximum=9 * SECOND),
            [("backoff.maximum", "out_of_range")],
        ),
        *((PolicyDraft(overlap=overlap), [("overlap", "not_served")]) for overlap in Overlap if overlap != "skip"),
        *((PolicyDraft(catchup=catchup), [("catchup", "not_served")]) for catchup in Catchup if catchup != "latest"),
        (PolicyDraft(starts_at=FIRST_OF_MAY), [("starts_at", "not_served")]),
        (PolicyDraft(ends_at=FIRST_OF_MAY), [("ends_at", "not_served")]),
        (
            PolicyDraft(starts_at=FIRST_OF_MAY, ends_at=FIRST_OF_MAY),
            [("ends_at", "not_served"), ("ends_at", "out_of_range"), ("starts_at", "not_served")],
        ),
        (PolicyDraft(ends_at=datetime.max.replace(tzinfo=UTC)), [("ends_at", "out_of_range")]),
        (
            PolicyDraft(starts_at=datetime.min.replace(tzinfo=timezone(12 * timedelta(hours=1))), ends_at=FIRST_OF_MAY),
            [("ends_at", "not_served"), ("starts_at", "not_served")],
        ),
        (
            PolicyDraft(starts_at=FIRST_OF_MAY.replace(tzinfo=None), ends_at=FIRST_OF_MAY),
            [("starts_at", "naive_instant")],
        ),
    ],
)
async def test_a_policy_that_is_wrong_or_not_served_yet_is_never_taken_in_silence(
    registrar: Registrar, policy: PolicyDraft, refused: list[tuple[str, str]]
) -> None:
    found = await refusals(registrar, replace(DRAFT, policy=policy))
    assert [(".".join(map(str, path)), reason) for path, reason in found] == refused


async def test_no_message_repeats_what_the_payload_holds(registrar: Registrar) -> None:
    secret = "hunter2"
    draft = replace(DRAFT, payload={"refuse": [secret], "anything": f"{secret}\0", secret: secret})
    with pytest.raises(RegistrationError) as caught:
        await check(registrar, replace(draft, payload={"refuse": [secret], "anything": secret}))
    assert secret not in str(caught.value)
    with pytest.raises(RegistrationError) as caught:
        await check(registrar, replace(draft, payload={"anything": f"{secret}\0"}))
    assert secret not in str(caught.value)


async def a_cron(registrar: Registrar) -> Cron:
    definition, _ = await check(registrar, DRAFT)
    return Cron(
        id=CRON_ID,
        organization_id=ORGANIZATION.id,
        definition=definition,
        generation=1,
        effective_from=NOW,
        resource=None,
        created_at=NOW,
        created_by=USER.id,
        updated_at=NOW,
        updated_by=USER.id,
    )


@pytest.mark.parametrize(
    ("changes", "path", "reason"),
    [
        (CronChanges(name=""), ("name",), "blank"),
        (CronChanges(cron_expr=""), ("cron_expr",), "invalid_expression"),
        (CronChanges(tz=""), ("tz",), "unknown_time_zone"),
        (CronChanges(tz="Mars/Phobos"), ("tz",), "unknown_time_zone"),
        (CronChanges(entrypoint="", payload={}), ("entrypoint",), "unknown_entry"),
        (CronChanges(entrypoint="nothing", payload={}), ("entrypoint",), "unknown_entry"),
        (CronChanges(entrypoint="dummy_print"), ("payload",), "missing"),
        (
            CronChanges(entrypoint="dummy_print", payload={"anything": 1, "message": "m"}),
            ("payload", "anything"),
            "extra_forbidden",
        ),
        (CronChanges(payload={"refuse": "plainly"}), ("payload",), "refused"),
        (CronChanges(policy=PolicyDraft(timeout=timedelta(0))), ("timeout",), "out_of_range"),
        (CronChanges(policy=PolicyDraft(overlap=Overlap.ALLOW)), ("overlap",), "not_served"),
    ],
)
async def test_a_change_is_refused_at_the_field_that_is_wrong(
    registrar: Registrar, changes: CronChanges, path: tuple[str | int, ...], reason: str
) -> None:
    cron = await a_cron(registrar)
    with pytest.raises(RegistrationError) as caught:
        await registrar.check_changes(changes, cron=cron, organization=ORGANIZATION, user=USER, now=NOW)
    assert [(error.path, error.type) for error in caught.value.errors] == [(path, reason)]


async def test_a_payload_for_one_run_is_judged_as_that_of_a_registration(registrar: Registrar) -> None:
    cron = await a_cron(registrar)
    whose: dict[str, Any] = {"cron": cron, "organization": ORGANIZATION, "user": USER}
    accepted = await registrar.check_override({"anything": "else"}, **whose)
    assert accepted == {"anything": "else", "cron_id": str(CRON_ID), "settings": {}}
    with pytest.raises(RegistrationError) as caught:
        await registrar.check_override({"refuse": "plainly"}, **whose)
    assert [(error.path, error.type) for error in caught.value.errors] == [(("payload",), "refused")]
