"""Pages: together they are the whole list, and a cursor opens nothing but the page it was given for."""

from datetime import UTC, datetime
from typing import Any

import pytest

NOON = datetime(2026, 3, 27, 12, tzinfo=UTC)


async def read_pages(api: Any, path: str, *, key: str = "viewer", **query: Any) -> list[list[dict[str, Any]]]:
    """Follow the cursors to the end."""
    pages: list[list[dict[str, Any]]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await api.call("GET", path, key=key, params=query | cursor)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json()["items"])
        if answer.json()["next_cursor"] is None:
            return pages
        cursor = {"cursor": answer.json()["next_cursor"]}


async def first_cursor(api: Any, path: str = "", **query: Any) -> str:
    answer = await api.call("GET", path, params={"limit": 1} | query)
    cursor: str = answer.json()["next_cursor"]
    assert cursor
    return cursor


# With a clock that stands still, everything has the same time, and only the ids tell what comes next.
@pytest.mark.parametrize("speed", [0.0, 1.0])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 200])
async def test_pages_of_crons_are_together_the_whole_list(api: Any, database: Any, speed: float, limit: int) -> None:
    database.set_clock(NOON, speed=speed)
    registered = [(await api.register(f"cron {number}"))["id"] for number in range(6)]
    pages = await read_pages(api, "", limit=limit)
    listed = [cron["id"] for page in pages for cron in page]
    assert listed == (registered if speed else sorted(registered))
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert len(pages) == -(-6 // limit)


@pytest.mark.parametrize("speed", [0.0, 1.0])
async def test_pages_of_runs_are_together_the_whole_list_newest_first(api: Any, database: Any, speed: float) -> None:
    cron = await api.register()
    database.set_clock(NOON, speed=speed)
    runs = [(await api.call("POST", f"{cron['id']}/trigger")).json() for _ in range(5)]
    pages = await read_pages(api, f"{cron['id']}/runs", limit=2)
    listed = [(run["scheduled_for"], run["id"]) for page in pages for run in page]
    assert listed == sorted(((run["scheduled_for"], run["id"]) for run in runs), reverse=True)


async def test_pages_of_organizations_are_together_the_whole_list(api: Any) -> None:
    for number in range(3):
        await api.call("POST", "/organizations", key="installation", json={"name": f"tenant {number}"})
    pages = await read_pages(api, "/organizations", key="installation", limit=2)
    names = [organization["name"] for page in pages for organization in page]
    assert names == ["acme", "somebody else", "tenant 0", "tenant 1", "tenant 2"]


async def test_pages_keep_to_their_filters(api: Any) -> None:
    for number in range(6):
        await api.register(f"cron {number}", enabled=number % 2 == 0)
    pages = await read_pages(api, "", limit=2, enabled=True)
    assert [cron["name"] for page in pages for cron in page] == ["cron 0", "cron 2", "cron 4"]


async def test_what_is_added_or_deleted_meanwhile_moves_no_page(api: Any) -> None:
    crons = [await api.register(f"cron {number}") for number in range(4)]
    cursor = await first_cursor(api, limit=2)
    await api.call("DELETE", crons[0]["id"])
    await api.call("DELETE", crons[1]["id"])
    await api.register("late")
    page = (await api.call("GET", "", params={"cursor": cursor})).json()
    assert [cron["name"] for cron in page["items"]] == ["cron 2", "cron 3", "late"]


async def test_a_page_may_have_another_limit_than_the_one_before(api: Any) -> None:
    for number in range(3):
        await api.register(f"cron {number}")
    cursor = await first_cursor(api)
    assert len((await api.call("GET", "", params={"cursor": cursor, "limit": 200})).json()["items"]) == 2


async def test_a_cursor_that_was_changed_anywhere_is_refused(api: Any) -> None:
    for number in range(2):
        await api.register(f"cron {number}")
    cursor = await first_cursor(api)
    spoiled = [
        cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :] for place in range(len(cursor))
    ]
    for text in [*spoiled, cursor + "A", cursor + "=", cursor[:-1], f"!{cursor}", f"{cursor}\n", "", "A"]:
        answer = await api.call("GET", "", params={"cursor": text})
        assert (answer.status_code, answer.json()["type"]) == (400, "https://cronplane.dev/problems/invalid-cursor"), (
            text
        )
    assert (await api.call("GET", "", params={"cursor": cursor})).status_code == 200


async def test_a_cursor_is_good_for_its_own_list_only(api: Any) -> None:
    crons = [await api.register(f"cron {number}") for number in range(2)]
    for number in range(2):
        await api.call("POST", f"/crons/{api.stranger_id}", key="stranger", json=body_like(crons[number]))
        for cron in crons:
            await api.call("POST", f"{cron['id']}/trigger")
    cursor = await first_cursor(api)
    foreign = await first_cursor(api, f"{crons[0]['id']}/runs")
    for path, key, query in [
        ("", "admin", {"cursor": cursor, "enabled": True}),
        ("", "admin", {"cursor": cursor, "name": "cron 1"}),
        (f"/crons/{api.stranger_id}", "stranger", {"cursor": cursor}),
        ("/organizations", "installation", {"cursor": cursor}),
        ("", "admin", {"cursor": foreign}),
        (f"{crons[1]['id']}/runs", "admin", {"cursor": foreign}),
        (f"{crons[0]['id']}/runs", "admin", {"cursor": foreign, "status": "queued"}),
    ]:
        assert (await api.call("GET", path, key=key, params=query)).status_code == 400, (path, query)


async def test_cursors_outlive_a_restart_and_work_on_every_replica(api: Any, start_api: Any) -> None:
    for number in range(2):
        await api.register(f"cron {number}")
    _, replica = await start_api()
    answer = await replica.get(
        f"/crons/{api.organization_id}",
        params={"cursor": await first_cursor(api)},
        headers={"Authorization": f"Bearer {api.keys['viewer']}"},
    )
    assert [cron["name"] for cron in answer.json()["items"]] == ["cron 1"]


def body_like(cron: dict[str, Any]) -> dict[str, Any]:
    return {name: cron[name] for name in ("name", "cron_expr", "tz", "entrypoint", "payload")}
