"""What each route does when all goes well, read back over the API and in the database."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from cronplane_core.database import connection_string

NOON = datetime(2026, 3, 27, 12, 0, 30, tzinfo=UTC)


async def test_a_registered_cron_is_answered_with_its_place_and_generation(api: Any, database: Any) -> None:
    body = {"name": "my job", "cron_expr": "0 9 * * 1-5", "tz": "UTC", "entrypoint": "my_entry", "payload": {}}
    answer = await api.call("POST", "", json=body)
    cron = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/crons/{api.organization_id}/{cron['id']}"
    assert answer.headers["etag"] == '"1"'
    assert cron["payload"] == {"greeting": "hello"}
    assert cron["description"] == "At 09:00 on Monday through Friday, UTC"
    stored = database.execute(
        "SELECT organization_id, name, entrypoint::text, user_payload, execution_payload, generation, created_by "
        "FROM scheduler.cron_jobs"
    )
    (key_id,) = database.execute("SELECT id FROM scheduler.api_keys WHERE name = 'admin'")[0]
    assert stored == [
        (api.organization_id, "my job", "my_entry", {"greeting": "hello"}, {"greeting": "HELLO"}, 1, f"key:{key_id}")
    ]
    assert database.execute("SELECT generation, cron_expr, enabled FROM scheduler.cron_job_versions") == [
        (1, "0 9 * * 1-5", True)
    ]


async def test_what_was_registered_is_read_at_its_location(api: Any) -> None:
    cron = await api.register()
    answer = await api.call("GET", f"/crons/{api.organization_id}/{cron['id']}", key="viewer")
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
    assert answer.json() == cron


async def test_a_read_shows_five_fires_to_come_and_the_last_run(api: Any, database: Any) -> None:
    database.set_clock(NOON, speed=0.0)
    cron = await api.register(cron_expr="30 2 * * *", tz="Europe/Paris")
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    read = (await api.call("GET", cron["id"])).json()
    # The clock skips half past two on the 29th, so that the fire comes as soon as it has changed.
    assert read["next_fires"] == [
        "2026-03-28T01:30:00Z",
        "2026-03-29T01:00:00Z",
        "2026-03-30T00:30:00Z",
        "2026-03-31T00:30:00Z",
        "2026-04-01T00:30:00Z",
    ]
    assert read["last_run"]["id"] == run["id"]
    assert read["last_run"]["status"] == "queued"
    listed = (await api.call("GET", "")).json()["items"]
    assert listed == [read]


async def test_a_preview_shows_ten_fires_and_writes_nothing(api: Any, database: Any) -> None:
    database.set_clock(NOON, speed=0.0)
    body = {
        "name": "not yet",
        "cron_expr": "30  2 * * *",
        "tz": "Europe/Paris",
        "entrypoint": "dummy_print",
        "payload": {"message": "hello"},
    }
    answer = await api.call("POST", "preview", json=body)
    preview = answer.json()
    assert answer.status_code == 200
    assert preview["cron_expr"] == "30 2 * * *"
    assert preview["payload"] == {"message": "hello", "error_rate": 0.0}
    assert preview["description"] == "At 02:30 every day, Europe/Paris"
    assert len(preview["next_fires"]) == 10
    assert preview["next_fires"][:3] == [
        {"utc": "2026-03-28T01:30:00Z", "local": "2026-03-28T02:30:00+01:00"},
        {"utc": "2026-03-29T01:00:00Z", "local": "2026-03-29T03:00:00+02:00"},
        {"utc": "2026-03-30T00:30:00Z", "local": "2026-03-30T02:30:00+02:00"},
    ]
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_a_preview_agrees_with_the_registration_that_follows(api: Any, database: Any) -> None:
    database.set_clock(NOON, speed=0.0)
    body = {"name": "a", "cron_expr": "*/7 3 * * *", "tz": "Africa/Cairo", "entrypoint": "my_entry", "payload": {}}
    preview = (await api.call("POST", "preview", json=body)).json()
    cron = (await api.call("POST", "", json=body)).json()
    assert [fire["utc"] for fire in preview["next_fires"][:5]] == cron["next_fires"]
    assert {name: preview[name] for name in body} == {name: cron[name] for name in body}


async def test_a_change_counts_up_the_generation_and_keeps_the_rest(api: Any, database: Any) -> None:
    cron = await api.register()
    answer = await api.call("PATCH", cron["id"], json={"cron_expr": "*/15 * * * *", "tz": "Europe/Paris"})
    changed = answer.json()
    assert (answer.status_code, answer.headers["etag"], changed["generation"]) == (200, '"2"', 2)
    touched = {"cron_expr", "tz", "generation", "updated_at", "description", "next_fires"}
    assert {name for name in cron if cron[name] != changed[name]} == touched
    assert database.execute("SELECT generation, cron_expr FROM scheduler.cron_job_versions ORDER BY 1") == [
        (1, "0 9 * * 1-5"),
        (2, "*/15 * * * *"),
    ]


async def test_a_change_of_the_payload_is_validated_anew_as_a_whole(api: Any, database: Any) -> None:
    cron = await api.register(payload={"message": "hello", "error_rate": 0.5})
    changed = (await api.call("PATCH", cron["id"], json={"payload": {"message": "new"}})).json()
    assert changed["payload"] == {"message": "new", "error_rate": 0.0}
    assert database.execute("SELECT execution_payload->>'message' FROM scheduler.cron_jobs") == [("new",)]


async def test_a_new_entrypoint_comes_with_its_payload(api: Any) -> None:
    cron = await api.register()
    body = {"entrypoint": "my_entry", "payload": {"greeting": "hi"}}
    changed = (await api.call("PATCH", cron["id"], json=body)).json()
    assert {name: changed[name] for name in body} == body


async def test_a_change_that_changes_nothing_keeps_the_generation(api: Any) -> None:
    cron = await api.register()
    for body in ({}, {"name": cron["name"], "cron_expr": cron["cron_expr"], "payload": cron["payload"]}):
        assert (await api.call("PATCH", cron["id"], json=body)).json() == cron


async def test_a_deleted_cron_is_gone_its_name_is_free_and_its_runs_are_kept(api: Any, database: Any) -> None:
    cron = await api.register()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    deletion = await api.call("DELETE", cron["id"])
    assert (deletion.status_code, deletion.content) == (204, b"")
    for method, path in [
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/trigger"),
        ("GET", "/runs"), ("GET", f"/runs/{run['id']}"),
    ]:  # fmt: skip
        answer = await api.call(method, cron["id"] + path, **({"json": {}} if method == "PATCH" else {}))
        assert answer.status_code == 404, (method, path)
    assert (await api.call("GET", "")).json()["items"] == []
    assert (await api.register())["id"] != cron["id"]
    assert database.execute("SELECT count(*) FROM scheduler.cron_runs") == [(1,)]


async def test_a_paused_cron_shows_no_fires_until_it_is_resumed(api: Any) -> None:
    cron = await api.register()
    for _ in range(2):
        paused = (await api.call("POST", f"{cron['id']}/pause", key="operator")).json()
        assert (paused["enabled"], paused["next_fires"], paused["generation"]) == (False, [], 2)
    for _ in range(2):
        resumed = (await api.call("POST", f"{cron['id']}/resume", key="operator")).json()
        assert (resumed["enabled"], resumed["next_fires"], resumed["generation"]) == (True, cron["next_fires"], 3)


async def test_a_cron_can_be_registered_paused(api: Any) -> None:
    cron = await api.register(enabled=False)
    assert (cron["enabled"], cron["next_fires"]) == (False, [])


async def test_a_trigger_queues_a_run_even_of_a_paused_cron(api: Any) -> None:
    cron = await api.register(enabled=False)
    answer = await api.call("POST", f"{cron['id']}/trigger", key="operator")
    run = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/crons/{api.organization_id}/{cron['id']}/runs/{run['id']}"
    assert (run["status"], run["reason"], run["trigger_kind"]) == ("queued", "Triggered", "manual")
    detail = (await api.call("GET", answer.headers["location"])).json()
    assert {name: detail[name] for name in run} == run
    assert detail["output"] is None


async def test_a_trigger_while_a_run_is_not_over_is_recorded_as_skipped(api: Any) -> None:
    cron = await api.register()
    first = (await api.call("POST", f"{cron['id']}/trigger")).json()
    second = (await api.call("POST", f"{cron['id']}/trigger")).json()
    assert (second["status"], second["reason"]) == ("skipped", "OverlapSkip")
    assert first["id"] in second["message"]


async def test_a_trigger_may_bring_a_payload_for_this_run_only(api: Any, database: Any) -> None:
    cron = await api.register()
    answer = await api.call("POST", f"{cron['id']}/trigger", json={"payload": {"message": "just once"}})
    assert answer.status_code == 202
    assert "just once" not in answer.text
    assert database.execute(
        "SELECT run.execution_payload->>'message', cron.execution_payload->>'message' "
        "FROM scheduler.cron_runs run JOIN scheduler.cron_jobs cron ON cron.id = cron_id"
    ) == [("just once", "hello")]


async def test_runs_are_filtered_by_status_kind_and_time(api: Any, database: Any) -> None:
    database.set_clock(NOON, speed=0.0)
    cron = await api.register()
    for minutes in range(3):
        database.set_clock(NOON + timedelta(minutes=minutes), speed=0.0)
        await api.call("POST", f"{cron['id']}/trigger")

    async def statuses(**query: Any) -> list[str]:
        answer = await api.call("GET", f"{cron['id']}/runs", key="viewer", params=query)
        assert answer.status_code == 200, answer.text
        return [run["status"] for run in answer.json()["items"]]

    assert await statuses() == ["skipped", "skipped", "queued"]
    assert await statuses(status="queued") == ["queued"]
    assert await statuses(status=["queued", "skipped"]) == ["skipped", "skipped", "queued"]
    assert await statuses(status="completed") == []
    assert await statuses(trigger="manual") == ["skipped", "skipped", "queued"]
    assert await statuses(trigger="schedule") == []
    assert await statuses(**{"from": "2026-03-27T12:01:30Z", "until": "2026-03-27T13:01:30+01:00"}) == ["skipped"]


async def test_a_run_is_shown_with_its_attempts_and_its_output(api: Any, database: Any) -> None:
    cron = await api.register()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    database.execute(
        "INSERT INTO scheduler.cron_attempts (run_id, number, nonce, epoch, location, lease_expires_at, finished_at, "
        "outcome, reason, message, output) "
        "VALUES (%s, 1, gen_random_uuid(), 1, 'runner-1', now(), now(), 'completed', 'Completed', 'Well.', 'hello')",
        [run["id"]],
    )
    detail = (await api.call("GET", f"{cron['id']}/runs/{run['id']}", key="viewer")).json()
    assert detail["output"] == "hello"
    (attempt,) = detail["attempt_list"]
    assert (attempt["number"], attempt["location"], attempt["outcome"], attempt["output"]) == (
        1, "runner-1", "completed", "hello",
    )  # fmt: skip
    assert "nonce" not in attempt


async def test_crons_are_filtered_by_entrypoint_state_and_name(api: Any) -> None:
    await api.register("first")
    await api.register("second", enabled=False)
    await api.register("third", entrypoint="my_entry", payload={})
    await api.register("caf\N{LATIN SMALL LETTER E WITH ACUTE}")

    async def names(**query: Any) -> list[str]:
        answer = await api.call("GET", "", key="viewer", params=query)
        return [cron["name"] for cron in answer.json()["items"]]

    assert len(await names()) == 4
    assert await names(entrypoint="my_entry") == ["third"]
    assert await names(entrypoint="nobody_knows") == []
    assert await names(enabled=False) == ["second"]
    assert await names(name="first", enabled=True) == ["first"]
    assert await names(name="fir") == []
    assert await names(name="cafe\N{COMBINING ACUTE ACCENT}") == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"]


@pytest.mark.parametrize("key", ["viewer", "stranger", "installation"])
async def test_every_entry_is_listed_with_the_schema_of_its_payload(api: Any, key: str) -> None:
    items = (await api.call("GET", "/entrypoints", key=key)).json()["items"]
    assert [item["name"] for item in items] == sorted(item["name"] for item in items)
    (entry,) = [item for item in items if item["name"] == "dummy_print"]
    assert (entry["execution"], entry["timeout"], entry["attempts"]) == ("in_process", 3600, 1)
    assert entry["description"]
    assert entry["payload_schema"]["required"] == ["message"]
    assert entry["payload_schema"]["additionalProperties"] is False


async def test_the_installation_makes_organizations_and_their_keys(api: Any, database: Any) -> None:
    organization = await api.call("POST", "/organizations", key="installation", json={"name": "new tenant"})
    assert organization.status_code == 201
    keys = f"/organizations/{organization.json()['id']}/keys"
    made = await api.call("POST", keys, key="installation", json={"name": "first", "role": "admin"})
    key = made.json()
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    headers = {"Authorization": f"Bearer {key['key']}"}
    crons = f"/crons/{organization.json()['id']}"
    assert (await api.call("GET", crons, key=None, headers=headers)).json() == {"items": [], "next_cursor": None}
    listed = await api.call("GET", keys, key="installation")
    assert [item["id"] for item in listed.json()["items"]] == [key["id"]]
    secret = key["key"].rpartition("_")[2]
    assert secret not in listed.text
    assert database.execute(
        "SELECT count(*) FROM scheduler.api_keys WHERE api_keys::text LIKE %s", [f"%{secret}%"]
    ) == [(0,)]
    names = [item["name"] for item in (await api.call("GET", "/organizations", key="installation")).json()["items"]]
    assert names == ["acme", "somebody else", "new tenant"]


async def test_an_admin_makes_and_revokes_keys_of_the_own_organization(api: Any) -> None:
    keys = f"/organizations/{api.organization_id}/keys"
    key = (await api.call("POST", keys, json={"name": "temporary", "role": "viewer"})).json()
    headers = {"Authorization": f"Bearer {key['key']}"}
    assert (await api.call("GET", "", key=None, headers=headers)).status_code == 200
    assert (await api.call("DELETE", f"{keys}/{key['id']}")).status_code == 204
    assert (await api.call("GET", "", key=None, headers=headers)).status_code == 401
    assert (await api.call("DELETE", f"{keys}/{key['id']}")).status_code == 404
    (listed,) = [item for item in (await api.call("GET", keys)).json()["items"] if item["id"] == key["id"]]
    assert listed["revoked_at"] is not None


async def test_a_suspended_organizations_keys_open_nothing(api: Any, database: Any) -> None:
    database.execute("UPDATE scheduler.organizations SET state = 'suspended' WHERE id = %s", [api.organization_id])
    assert (await api.call("GET", "")).status_code == 401


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\u202eabc", "x" * 201, "a\0b"])
async def test_a_name_that_is_not_what_it_looks_like_is_refused_for_organizations_and_keys(
    api: Any, database: Any, name: str
) -> None:
    for path, body in [
        ("/organizations", {"name": name}),
        (f"/organizations/{api.organization_id}/keys", {"name": name, "role": "viewer"}),
    ]:
        answer = await api.call("POST", path, key="installation", json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/name"
    assert database.execute("SELECT count(*) FROM scheduler.organizations") == [(2,)]


async def test_the_name_of_an_organization_is_taken_once(api: Any) -> None:
    answer = await api.call("POST", "/organizations", key="installation", json={"name": "acme"})
    assert (answer.status_code, answer.json()["type"]) == (409, "https://cronplane.dev/problems/conflict")


async def test_a_key_of_an_organization_that_is_not_there_cannot_be_made(api: Any) -> None:
    for method in ("POST", "GET"):
        body = {"json": {"name": "x", "role": "viewer"}} if method == "POST" else {}
        answer = await api.call(method, f"/organizations/{uuid4()}/keys", key="installation", **body)
        assert answer.status_code == 404


async def test_health_needs_no_key(api: Any) -> None:
    for path in ("/healthz", "/readyz"):
        answer = await api.call("GET", path, key=None)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_committed_change_is_hinted_at_to_the_runner(api: Any, database: Any) -> None:
    connection = await psycopg.AsyncConnection.connect(connection_string(database.owner_url), autocommit=True)
    async with connection:
        await connection.execute("LISTEN cronplane_crons")
        await connection.execute("LISTEN cronplane_runs")
        hints = connection.notifies(timeout=30)
        cron = await api.register()
        hint = await anext(hints)
        assert hint.channel == "cronplane_crons"
        await api.call("POST", f"{cron['id']}/trigger")
        assert (await anext(hints)).channel == "cronplane_runs"
        await hints.aclose()


async def test_ids_are_uuids_and_instants_are_in_utc(api: Any) -> None:
    cron = await api.register()
    assert str(UUID(cron["id"])) == cron["id"]
    assert datetime.fromisoformat(cron["created_at"]).utcoffset() == timedelta(0)
    assert cron["created_at"] <= cron["updated_at"]


async def test_an_entry_is_said_to_run_where_the_settings_have_it(
    api_settings: Any, start_api: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRONPLANE_ENTRY_DUMMY_PRINT_EXECUTION", "pod")
    _, client = await start_api(api_settings())
    answer = await client.get("/entrypoints", headers={"Authorization": f"Bearer {api.keys['viewer']}"})
    modes = {each["name"]: each["execution"] for each in answer.json()["items"]}
    assert (modes["dummy_print"], modes["http_request"]) == ("pod", "in_process")
