"""What an organization may use and how much of it: set by the installation, judged exactly when many ask."""

import asyncio
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import run_transitions
from cronplane_core.database import transaction
from cronplane_core.tables import Execution

NOON = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
PROBLEMS = "https://cronplane.dev/problems/"


async def limit(api: Any, **changes: Any) -> dict[str, Any]:
    answer = await api.call("PATCH", f"/organizations/{api.organization_id}", key="installation", json=changes)
    assert answer.status_code == 200, answer.text
    organization: dict[str, Any] = answer.json()
    return organization


def rows(database: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(
        "SELECT (SELECT count(*) FROM scheduler.cron_jobs), (SELECT count(*) FROM scheduler.cron_job_versions), "
        "(SELECT count(*) FROM scheduler.cron_runs), (SELECT count(*) FROM scheduler.idempotency_keys)"
    )
    return found


def body(name: str = "another", entrypoint: str = "dummy_print") -> dict[str, Any]:
    return {
        "name": name,
        "cron_expr": "0 9 * * 1-5",
        "tz": "UTC",
        "entrypoint": entrypoint,
        "payload": {"message": "hello"} if entrypoint == "dummy_print" else {},
    }


# Grants


async def test_every_entry_is_granted_until_the_installation_says_otherwise(api: Any) -> None:
    organization = (await api.call("GET", f"/organizations/{api.organization_id}")).json()
    assert organization["entrypoints"] is None
    assert (organization["cron_quota"], organization["triggers_per_minute"]) == (None, None)
    limited = await limit(api, entrypoints=["no_op", "dummy_print"], cron_quota=5)
    assert limited["entrypoints"] == ["dummy_print", "no_op"]
    assert (limited["cron_quota"], limited["triggers_per_minute"]) == (5, None)
    again = await limit(api, entrypoints=None, triggers_per_minute=7)
    assert (again["entrypoints"], again["cron_quota"], again["triggers_per_minute"]) == (None, 5, 7)


async def test_an_entry_that_is_not_granted_is_refused_wherever_it_is_asked_for(api: Any, database: Any) -> None:
    cron = await api.register()
    await limit(api, entrypoints=["no_op"])
    before = rows(database)
    refusals = [
        await api.call("POST", "", json=body(), key="editor"),
        await api.call("POST", "preview", json=body(), key="editor"),
        await api.call("PATCH", cron["id"], json={"payload": {"message": "new"}}, key="editor"),
        await api.call("POST", f"{cron['id']}/trigger", key="operator"),
        await api.call("POST", f"{cron['id']}/trigger", json={"payload": {"message": "new"}}, key="operator"),
    ]
    for refused in refusals:
        assert (refused.status_code, refused.json()["type"]) == (403, PROBLEMS + "entry-not-granted"), refused.text
        assert refused.json()["errors"][0]["pointer"] == "/entrypoint"
    assert rows(database) == before
    assert (await api.call("PATCH", cron["id"], json={"name": "renamed"}, key="editor")).status_code == 200
    assert (await api.call("POST", f"{cron['id']}/pause", key="operator")).status_code == 200
    assert (await api.call("POST", "", json=body(entrypoint="no_op"), key="editor")).status_code == 201
    unknown = await api.call("POST", "", json=body(entrypoint="nothing"), key="editor")
    assert (unknown.status_code, unknown.json()["errors"][0]["type"]) == (422, "unknown_entry")


async def test_a_grant_concerns_no_other_organization(api: Any) -> None:
    await limit(api, entrypoints=[])
    theirs = await api.call("POST", f"/crons/{api.stranger_id}", json=body(), key="stranger")
    assert theirs.status_code == 201


async def test_the_list_of_entries_shows_what_is_granted(api: Any) -> None:
    await limit(api, entrypoints=["dummy_print"])

    async def shown(key: str) -> list[str]:
        return [entry["name"] for entry in (await api.call("GET", "/entrypoints", key=key)).json()["items"]]

    assert await shown("viewer") == ["dummy_print"]
    assert {"dummy_print", "no_op"} <= set(await shown("stranger"))
    assert {"dummy_print", "no_op"} <= set(await shown("installation"))


async def test_a_cron_whose_entry_was_taken_back_is_skipped_until_it_is_granted_again(
    api: Any, add_cron: Any, database: Any, start_runner: Any
) -> None:
    await limit(api, entrypoints=[])
    database.set_clock(NOON, speed=60)
    cron = await add_cron()
    running = await start_runner()

    def statuses() -> set[tuple[str, str]]:
        return {(run.status.value, run.reason) for run in running.journal.claims if run.cron_id == cron.id}

    await running.journal.until(lambda: ("skipped", "EntryNotGranted") in statuses())
    assert not running.journal.of(cron.id)
    await limit(api, entrypoints=["no_op"])
    await running.journal.until(lambda: bool(running.journal.of(cron.id)))
    assert ("queued", "Claimed") in statuses()


async def test_a_run_that_waits_while_its_entry_is_taken_back_is_skipped(api: Any, start_runner: Any) -> None:
    taken, kept = await api.register("taken"), await api.register("kept", entrypoint="no_op", payload={})
    run = (await api.call("POST", f"{taken['id']}/trigger")).json()
    await api.call("POST", f"{kept['id']}/trigger")
    await limit(api, entrypoints=["no_op"])
    running = await start_runner()
    await running.journal.until(lambda: len(running.journal.runs) == len((taken, kept)))
    assert [(ended.status.value, ended.reason) for ended in running.journal.of(UUID(taken["id"]))] == [
        ("skipped", "EntryNotGranted")
    ]
    [ended] = running.journal.of(UUID(kept["id"]))
    assert ended.status.value == "completed"
    shown = (await api.call("GET", f"{taken['id']}/runs/{run['id']}")).json()
    assert (shown["status"], shown["attempts"], shown["started_at"]) == ("skipped", 0, None)


async def test_the_start_gate_is_shut_for_an_entry_that_was_taken_back(
    api: Any, engine: AsyncEngine, database: Any
) -> None:
    cron = await api.register()
    run_id = UUID((await api.call("POST", f"{cron['id']}/trigger")).json()["id"])

    async def pass_gate() -> list[UUID]:
        async with transaction(engine) as connection:
            started = await run_transitions.start(
                connection,
                nonces={run_id: uuid4()},
                epoch=1,
                location="test",
                execution=Execution.IN_PROCESS,
                now=NOON,
                lease=timedelta(0),
            )
        return [attempt.run.id for attempt in started]

    await limit(api, entrypoints=[])
    assert await pass_gate() == []
    assert database.execute("SELECT status, attempts FROM scheduler.cron_runs") == [("queued", 0)]
    await limit(api, entrypoints=["dummy_print"])
    assert await pass_gate() == [run_id]


async def test_an_entry_that_is_not_granted_judges_no_payload(api: Any) -> None:
    cron = await api.register()
    await limit(api, entrypoints=["no_op"])
    wrong = {"payload": {"message": 1}}
    refusals = [
        await api.call("POST", "", json=body() | wrong, key="editor"),
        await api.call("PATCH", cron["id"], json=wrong, key="editor"),
        await api.call("POST", f"{cron['id']}/trigger", json=wrong, key="operator"),
    ]
    assert [refused.status_code for refused in refusals] == [403, 403, 403]


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"entrypoints": ["dummy_print", "os.system"]}, "/entrypoints/1"),
        ({"entrypoints": "dummy_print"}, "/entrypoints"),
        ({"cron_quota": -1}, "/cron_quota"),
        ({"cron_quota": 2**31}, "/cron_quota"),
        ({"triggers_per_minute": "10"}, "/triggers_per_minute"),
        ({"name": "other"}, "/name"),
        ({"crons": 0}, "/crons"),
    ],
)
async def test_a_limit_that_makes_no_sense_is_refused(api: Any, changes: dict[str, Any], pointer: str) -> None:
    path = f"/organizations/{api.organization_id}"
    before = (await api.call("GET", path)).json()
    refused = await api.call("PATCH", path, key="installation", json=changes)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)
    assert (await api.call("GET", path)).json() == before


async def test_nobody_but_the_installation_sets_limits(api: Any) -> None:
    for key in ("viewer", "operator", "editor", "admin", "stranger"):
        refused = await api.call("PATCH", f"/organizations/{api.organization_id}", key=key, json={"cron_quota": 9})
        assert refused.status_code == 403


# The quota of crons


async def test_an_organization_has_as_many_crons_as_its_quota_and_no_more(api: Any, database: Any) -> None:
    await limit(api, cron_quota=2)
    first, _ = await api.register("first"), await api.register("second", enabled=False)
    before = rows(database)
    refused = await api.call("POST", "", json=body(), key="editor", headers={"Idempotency-Key": "once"})
    assert (refused.status_code, refused.json()["type"]) == (429, PROBLEMS + "quota-exceeded")
    assert "retry-after" not in refused.headers
    assert rows(database) == before
    assert (await api.call("POST", "preview", json=body(), key="editor")).status_code == 200
    assert (await api.call("DELETE", first["id"])).status_code == 204
    assert (await api.call("POST", "", json=body(), key="editor")).status_code == 201
    assert (await api.call("GET", f"/organizations/{api.organization_id}")).json()["crons"] == 2


async def test_registrations_at_the_same_time_do_not_pass_the_quota(api: Any) -> None:
    await limit(api, cron_quota=5)
    answers = await asyncio.gather(*(api.call("POST", "", json=body(f"cron {n}"), key="editor") for n in range(20)))
    assert Counter(answer.status_code for answer in answers) == {201: 5, 429: 15}
    assert len((await api.call("GET", "")).json()["items"]) == 5


async def test_a_name_that_is_taken_uses_up_nothing_of_the_quota(api: Any) -> None:
    await limit(api, cron_quota=2)
    await api.register("first")
    assert (await api.call("POST", "", json=body("first"), key="editor")).status_code == 409
    assert (await api.call("POST", "", json=body("second"), key="editor")).status_code == 201


async def test_crons_that_were_removed_by_hand_are_noticed_before_one_is_refused(api: Any, database: Any) -> None:
    await limit(api, cron_quota=2)
    await api.register("first")
    await api.register("second")
    database.execute("DELETE FROM scheduler.cron_jobs")
    await api.register("third")
    assert (await api.call("GET", f"/organizations/{api.organization_id}")).json()["crons"] == 1


async def test_a_new_quota_begins_with_a_true_number(api: Any, add_cron: Any, database: Any) -> None:
    await add_cron("first")
    await add_cron("second")
    database.execute("UPDATE scheduler.organizations SET crons = 0")
    assert (await limit(api, cron_quota=2))["crons"] == 2
    assert (await api.call("POST", "", json=body(), key="editor")).status_code == 429


async def test_a_quota_below_what_is_there_takes_nothing_away(api: Any) -> None:
    cron = await api.register()
    await limit(api, cron_quota=0)
    assert (await api.call("PATCH", cron["id"], json={"name": "renamed"})).status_code == 200
    assert (await api.call("POST", "", json=body(), key="editor")).status_code == 429


async def test_the_installations_default_holds_where_an_organization_has_no_quota(
    start_api: Any, api_settings: Any, api: Any
) -> None:
    _, client = await start_api(api_settings(cron_quota=1, triggers_per_minute=1))
    headers = {"Authorization": f"Bearer {api.keys['editor']}"}

    async def call(path: str, **options: Any) -> Any:
        return await client.post(f"/crons/{api.organization_id}{path}", headers=headers, **options)

    cron = await call("", json=body("first"))
    assert (await call("", json=body("second"))).status_code == 429
    assert (await call(f"/{cron.json()['id']}/trigger")).status_code == 202
    assert (await call(f"/{cron.json()['id']}/trigger")).status_code == 429
    await limit(api, cron_quota=2, triggers_per_minute=2)
    assert (await call("", json=body("second"))).status_code == 201
    assert (await call(f"/{cron.json()['id']}/trigger")).status_code == 202


async def test_deleting_and_registering_one_name_at_once_ends_well_for_both(api: Any) -> None:
    for _ in range(10):
        cron = await api.register("contended")
        deleted, registered = await asyncio.gather(
            api.call("DELETE", cron["id"]), api.call("POST", "", json=body("contended"), key="editor")
        )
        assert deleted.status_code == 204
        assert registered.status_code in {201, 409}
        if registered.status_code == 201:
            await api.call("DELETE", registered.json()["id"])
    assert (await api.call("GET", f"/organizations/{api.organization_id}")).json()["crons"] == 0


# The quota of triggers


async def test_a_storm_of_triggers_is_let_through_up_to_the_quota_and_told_when_to_come_again(
    api: Any, database: Any
) -> None:
    database.set_clock(NOON, speed=0)
    cron = await api.register()
    await limit(api, triggers_per_minute=2)
    assert (await api.call("POST", f"{cron['id']}/trigger")).status_code == 202
    database.set_clock(NOON + timedelta(seconds=20), speed=0)
    assert (await api.call("POST", f"{cron['id']}/trigger")).status_code == 202
    database.set_clock(NOON + timedelta(seconds=45, milliseconds=500), speed=0)
    before = rows(database)
    refused = await api.call("POST", f"{cron['id']}/trigger", headers={"Idempotency-Key": "once"})
    assert (refused.status_code, refused.json()["type"]) == (429, PROBLEMS + "quota-exceeded")
    assert refused.headers["retry-after"] == "15"
    assert rows(database) == before
    database.set_clock(NOON + timedelta(seconds=60), speed=0)
    accepted = await api.call("POST", f"{cron['id']}/trigger", headers={"Idempotency-Key": "once"})
    assert accepted.status_code == 202
    replayed = await api.call("POST", f"{cron['id']}/trigger", headers={"Idempotency-Key": "once"})
    assert (replayed.status_code, replayed.json()) == (202, accepted.json())
    assert (await api.call("POST", f"{cron['id']}/trigger")).status_code == 429


async def test_triggers_at_the_same_time_do_not_pass_the_quota(api: Any) -> None:
    crons = [await api.register(f"cron {n}") for n in range(3)]
    await limit(api, triggers_per_minute=4)
    answers = await asyncio.gather(*(api.call("POST", f"{crons[n % 3]['id']}/trigger") for n in range(15)))
    assert Counter(answer.status_code for answer in answers) == {202: 4, 429: 11}


async def test_an_organization_without_triggers_has_none(api: Any) -> None:
    cron = await api.register()
    await limit(api, triggers_per_minute=0)
    refused = await api.call("POST", f"{cron['id']}/trigger")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")


async def test_one_organizations_storm_costs_another_nothing(api: Any) -> None:
    await limit(api, triggers_per_minute=0, cron_quota=0)
    theirs = (await api.call("POST", f"/crons/{api.stranger_id}", json=body(), key="stranger")).json()
    answer = await api.call("POST", f"/crons/{api.stranger_id}/{theirs['id']}/trigger", key="stranger")
    assert answer.status_code == 202


async def test_counting_triggers_reads_an_index_of_manual_runs_alone(api: Any, database: Any, add_cron: Any) -> None:
    cron = await add_cron()
    database.execute(
        """INSERT INTO scheduler.cron_runs (organization_id, cron_id, scheduled_for, trigger_kind, status, reason,
                                            message, generation, finished_at)
           SELECT %s, %s, scheduler.now() + n * interval '1 s',
                  CASE WHEN n %% 100 = 0 THEN 'manual' ELSE 'schedule' END,
                  'skipped', 'ByHand', '', 1, scheduler.now() FROM generate_series(1, 20000) n""",
        [cron.organization_id, cron.id],
    )
    database.execute("ANALYZE scheduler.cron_runs")
    plan = database.execute(
        """EXPLAIN SELECT created_at FROM scheduler.cron_runs
           WHERE organization_id = %s AND trigger_kind = 'manual' AND created_at > scheduler.now() - interval '1 min'
           ORDER BY created_at DESC OFFSET 9 LIMIT 1""",
        [cron.organization_id],
    )
    assert "cron_runs_triggered" in str(plan)


# The command


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--crons", "many"], "'many' is neither a number nor `default`"),
        (["--crons", "9" * 11], "'99999999999' is neither a number nor `default`"),
        (["--entry", "no_op", "--every-entry"], "--entry and --every-entry exclude each other; give one of them"),
    ],
)
def test_the_command_refuses_what_it_cannot_mean(options: list[str], sentence: str) -> None:
    command: list[str | Path] = [
        Path(sys.executable).with_name("cronplane"),
        "organizations",
        "limit",
        str(uuid4()),
        "--key",
        "k",
    ]
    told = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (1, f"cronplane: {sentence}\n")
