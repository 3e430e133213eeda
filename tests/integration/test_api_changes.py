"""Changes that meet others, and changes that are asked for twice."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest

from cronplane_core.database import connection_string
from cronplane_entries.core import BaseExecutionPayload, BaseUserPayload, CronEntrySpec
from cronplane_entries.registry import CronEntrypoint, CronRegistry

BODY = {
    "name": "my job",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}
HANG_GUARD = 30.0


def cron_count(database: Any) -> int:
    ((count,),) = database.execute("SELECT count(*) FROM scheduler.cron_jobs")
    return int(count)


async def wait_for_waiting(database: Any, count: int) -> None:
    """Ask the database until so many sessions wait for a lock."""
    async with asyncio.timeout(HANG_GUARD):
        while await asyncio.to_thread(
            database.execute,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
        ) != [(count,)]:
            pass


@pytest.mark.parametrize("if_match", ['"1"', "*", '"9", "1"', None])
async def test_a_change_passes_if_the_cron_is_as_it_was_read(api: Any, if_match: str | None) -> None:
    cron = await api.register()
    headers = {} if if_match is None else {"If-Match": if_match}
    answer = await api.call("PATCH", cron["id"], json={"name": "new"}, headers=headers)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')


@pytest.mark.parametrize("if_match", ['"0"', '"2"', 'W/"1"', "1", "", '"one"'])
async def test_a_change_is_refused_if_the_cron_was_changed_meanwhile(api: Any, if_match: str) -> None:
    cron = await api.register()
    answer = await api.call("PATCH", cron["id"], json={"name": "new"}, headers={"If-Match": if_match})
    assert answer.status_code == 412
    assert (await api.call("GET", cron["id"])).json() == cron


async def test_of_two_changes_with_one_etag_the_second_is_refused(api: Any) -> None:
    cron = await api.register()
    answers = await asyncio.gather(
        *(
            api.call("PATCH", cron["id"], json={"name": name}, headers={"If-Match": '"1"'})
            for name in ("first", "second")
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    assert (await api.call("GET", cron["id"])).json()["generation"] == 2


async def test_changes_at_the_same_time_are_all_counted(api: Any) -> None:
    cron = await api.register()
    bodies: list[dict[str, Any]] = [
        {"name": "renamed"},
        {"timeout": 60},
        {"cron_expr": "@daily"},
        {"tz": "Europe/Paris"},
        {"enabled": False},
    ]
    await asyncio.gather(*(api.call("PATCH", cron["id"], json=body) for body in bodies))
    read = (await api.call("GET", cron["id"])).json()
    assert read["generation"] == 1 + len(bodies)
    for body in bodies:
        assert body.items() <= read.items()


async def test_the_same_request_again_gets_the_same_answer_and_changes_nothing(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first = await api.call("POST", "", json=BODY, headers=headers)
    again = await api.call("POST", "", json=BODY, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    for name in ("location", "etag", "content-type"):
        assert again.headers[name] == first.headers[name]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert cron_count(database) == 1


async def test_another_request_with_a_used_key_is_refused(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    cron = (await api.call("POST", "", json=BODY, headers=headers)).json()
    for path, options in [
        ("", {"json": BODY | {"name": "other"}}),
        ("preview", {"json": BODY}),
        (f"{cron['id']}/pause", {}),
        (f"{cron['id']}/trigger", {}),
    ]:
        answer = await api.call("POST", path, headers=headers, **options)
        assert answer.status_code == 409, path
        assert answer.json()["type"] == "https://cronplane.dev/problems/idempotency-key-reused"
    assert cron_count(database) == 1
    assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(0,)]


async def test_a_key_belongs_to_its_organization(api: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    own = await api.call("POST", "", json=BODY, headers=headers)
    other = await api.call("POST", f"/crons/{api.stranger_id}", key="stranger", json=BODY, headers=headers)
    assert (own.status_code, other.status_code) == (201, 201)
    assert own.json()["id"] != other.json()["id"]


async def test_a_refused_request_uses_no_key_up(api: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    assert (await api.call("POST", "", json=BODY | {"tz": "Mars/Phobos"}, headers=headers)).status_code == 422
    await api.register("taken")
    assert (await api.call("POST", "", json=BODY | {"name": "taken"}, headers=headers)).status_code == 409
    assert (await api.call("POST", "", json=BODY, headers=headers)).status_code == 201


@pytest.mark.parametrize("action", ["pause", "resume", "trigger"])
async def test_actions_are_carried_out_once_per_key(api: Any, database: Any, action: str) -> None:
    cron = await api.register(enabled=action != "resume")
    headers = {"Idempotency-Key": "k1"}
    first = await api.call("POST", f"{cron['id']}/{action}", headers=headers)
    between = await api.call("PATCH", cron["id"], json={"enabled": True, "name": "changed between"})
    again = await api.call("POST", f"{cron['id']}/{action}", headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert (await api.call("GET", cron["id"])).json()["generation"] == between.json()["generation"]
    assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(1 if action == "trigger" else 0,)]


async def test_a_replay_needs_the_role_that_the_request_needed(api: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    await api.call("POST", "", json=BODY, headers=headers)
    assert (await api.call("POST", "", key="viewer", json=BODY, headers=headers)).status_code == 403


async def test_twins_at_the_same_time_are_carried_out_once(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    owner = await psycopg.AsyncConnection.connect(connection_string(database.owner_url))
    async with owner, asyncio.TaskGroup() as group:
        await owner.execute("LOCK TABLE scheduler.cron_jobs IN EXCLUSIVE MODE")
        twins = [group.create_task(api.call("POST", "", json=BODY, headers=headers)) for _ in range(3)]
        # One waits for the table, the others for the one.
        await wait_for_waiting(database, 3)
        await owner.rollback()
    answers = [twin.result() for twin in twins]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 2
    assert cron_count(database) == 1


async def test_when_the_first_twin_fails_the_other_is_carried_out(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    owner = await psycopg.AsyncConnection.connect(connection_string(database.owner_url))
    async with owner, asyncio.TaskGroup() as group:
        await owner.execute("LOCK TABLE scheduler.cron_jobs IN EXCLUSIVE MODE")
        twins = [group.create_task(api.call("POST", "", json=BODY, headers=headers)) for _ in range(2)]
        await wait_for_waiting(database, 2)
        ended = await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'relation'"
        )
        assert await ended.fetchall() == [(True,)]
        await wait_for_waiting(database, 1)
        await owner.rollback()
    assert sorted(twin.result().status_code for twin in twins) == [201, 503]
    assert cron_count(database) == 1


async def test_of_two_registrations_of_one_name_at_the_same_time_one_is_refused(api: Any, database: Any) -> None:
    answers = await asyncio.gather(*(api.call("POST", "", json=BODY) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [201, 409, 409, 409]
    assert cron_count(database) == 1


async def test_a_key_of_more_than_a_day_ago_is_as_good_as_new(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    await api.call("POST", "", json=BODY, headers=headers)
    database.execute("UPDATE scheduler.idempotency_keys SET created_at = created_at - interval '25 hours'")
    answer = await api.call("POST", "", json=BODY | {"name": "other"}, headers=headers)
    assert answer.status_code == 201
    assert "idempotency-replayed" not in answer.headers


async def test_the_making_of_a_key_is_not_kept(api: Any, database: Any) -> None:
    body = {"name": "k", "role": "viewer"}
    answer = await api.call(
        "POST", f"/organizations/{api.organization_id}/keys", json=body, headers={"Idempotency-Key": "k1"}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "header.Idempotency-Key"
    assert database.execute("SELECT count(*) FROM scheduler.idempotency_keys") == [(0,)]


async def test_an_organization_is_made_once_per_key(api: Any, database: Any) -> None:
    headers = {"Idempotency-Key": "k1"}
    for _ in range(2):
        answer = await api.call("POST", "/organizations", key="installation", json={"name": "x"}, headers=headers)
        assert answer.status_code == 201
    assert database.execute("SELECT count(*) FROM scheduler.organizations WHERE name = 'x'") == [(1,)]


async def test_a_change_cannot_take_anothers_name(api: Any) -> None:
    await api.register("taken")
    cron = await api.register("free")
    answer = await api.call("PATCH", cron["id"], json={"name": "taken"})
    assert (answer.status_code, answer.json()["type"]) == (409, "https://cronplane.dev/problems/conflict")


@dataclass(slots=True)
class Deliberation:
    """A validator that says when it has begun, and goes on when it is told to."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    may_go_on: asyncio.Event = field(default_factory=asyncio.Event)
    judged: int = 0

    async def __call__(self, payload: Any, **_: object) -> Any:
        self.judged += 1
        self.begun.set()
        async with asyncio.timeout(HANG_GUARD):
            await self.may_go_on.wait()
        return payload


class Anything(BaseUserPayload):
    message: str


class Kept(BaseExecutionPayload):
    message: str


@pytest.fixture
async def deliberate(start_api: Any, api: Any) -> tuple[Any, Deliberation]:
    """The same API, where the entry takes its time."""
    deliberation = Deliberation()

    async def validate(payload: Anything, **_: object) -> Kept:
        await deliberation(payload)
        return Kept(message=payload.message)

    registry = CronRegistry()
    registry[CronEntrypoint("dummy_print")] = CronEntrySpec(
        user_payload_model=Anything,
        execution_payload_model=Kept,
        registration_validator=validate,
        execution_validator=lambda payload, **_: None,
        executor=lambda payload, **_: None,
    )
    application, client = await start_api(registry=registry)
    return replace(api, application=application, client=client), deliberation


@pytest.mark.parametrize(("method", "path", "status"), [("PATCH", "", 200), ("POST", "/trigger", 202)])
async def test_nothing_is_locked_while_an_entry_judges_and_what_changed_meanwhile_is_judged_again(
    api: Any, deliberate: tuple[Any, Deliberation], method: str, path: str, status: int
) -> None:
    cron = await api.register()
    slow, deliberation = deliberate
    asking = asyncio.create_task(slow.call(method, f"{cron['id']}{path}", json={"payload": {"message": "new"}}))
    async with asyncio.timeout(HANG_GUARD):
        await deliberation.begun.wait()
    assert (await api.call("PATCH", cron["id"], json={"name": "renamed"})).status_code == 200
    deliberation.may_go_on.set()
    answer = await asking
    assert (answer.status_code, deliberation.judged) == (status, 2)
    changed = (await api.call("GET", cron["id"])).json()
    assert changed["name"] == "renamed"
    assert changed["payload"]["message"] == ("new" if method == "PATCH" else "hello")


async def test_a_change_with_an_etag_is_refused_when_the_cron_changed_while_an_entry_judged(
    api: Any, deliberate: tuple[Any, Deliberation]
) -> None:
    cron = await api.register()
    slow, deliberation = deliberate
    body, headers = {"payload": {"message": "new"}}, {"If-Match": '"1"'}
    asking = asyncio.create_task(slow.call("PATCH", cron["id"], json=body, headers=headers))
    async with asyncio.timeout(HANG_GUARD):
        await deliberation.begun.wait()
    await api.call("PATCH", cron["id"], json={"name": "renamed"})
    deliberation.may_go_on.set()
    assert (await asking).status_code == 412


RESOURCE = {
    "source": "kubernetes",
    "source_namespace": "acme",
    "source_name": "nightly",
    "source_uid": "a uid",
    "source_generation": 1,
    "source_scope": "a scope",
}
CHANGES: list[tuple[str, str, dict[str, Any]]] = [
    ("PATCH", "", {"json": {"name": "another"}}),
    ("DELETE", "", {}),
    ("POST", "/pause", {}),
    ("POST", "/resume", {}),
]


def define_by_resource(database: Any, **changes: Any) -> None:
    values = RESOURCE | changes
    assignments = ", ".join(f"{name} = %s" for name in values)
    database.execute(f"UPDATE scheduler.cron_jobs SET {assignments}", list(values.values()))


@pytest.mark.parametrize(("method", "path", "options"), CHANGES, ids=[f"{each[0]} {each[1]}" for each in CHANGES])
async def test_a_cron_of_a_resource_is_changed_there_and_the_answer_names_it(
    api: Any, database: Any, method: str, path: str, options: dict[str, Any]
) -> None:
    cron = await api.register()
    define_by_resource(database)
    answer = await api.call(method, f"{cron['id']}{path}", **options)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (409, "defined-by-resource")
    assert "acme/nightly" in answer.json()["detail"]
    shown = (await api.call("GET", cron["id"])).json()
    assert (shown["name"], shown["enabled"], shown["source"], shown["resource"]) == (
        "my job",
        True,
        "kubernetes",
        "acme/nightly",
    )
    assert (await api.call("POST", f"{cron['id']}/trigger")).status_code == 202


async def test_a_cron_whose_resource_went_with_its_namespace_can_be_deleted_over_the_api(
    api: Any, database: Any
) -> None:
    cron = await api.register()
    define_by_resource(database, source_uid=None)
    assert (await api.call("DELETE", cron["id"])).status_code == 204
