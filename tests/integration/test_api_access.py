"""Who may do what: every route, asked by every kind of key."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

KEYS = ("viewer", "operator", "editor", "admin")
BODY = {
    "name": "another",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation, what it answers, and the lowest role that it serves; `installation` may or may not be let in."""

    name: str
    method: str
    path: str
    status: int
    role: str
    body: dict[str, Any] | None = None
    installation: int = 404
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        return {} if self.body is None else {"json": self.body}


ROUTES = [
    Route(name="create_cron", method="POST", path="/crons/{o}", status=201, role="editor", body=BODY),
    Route(name="list_crons", method="GET", path="/crons/{o}", status=200, role="viewer"),
    Route(name="preview_cron", method="POST", path="/crons/{o}/preview", status=200, role="editor", body=BODY),
    Route(name="get_cron", method="GET", path="/crons/{o}/{c}", status=200, role="viewer"),
    Route(name="update_cron", method="PATCH", path="/crons/{o}/{c}", status=200, role="editor", body={"name": "new"}),
    Route(name="delete_cron", method="DELETE", path="/crons/{o}/{c}", status=204, role="editor"),
    Route(name="pause_cron", method="POST", path="/crons/{o}/{c}/pause", status=200, role="operator"),
    Route(name="resume_cron", method="POST", path="/crons/{o}/{c}/resume", status=200, role="operator"),
    Route(name="trigger_cron", method="POST", path="/crons/{o}/{c}/trigger", status=202, role="operator"),
    Route(name="list_runs", method="GET", path="/crons/{o}/{c}/runs", status=200, role="viewer"),
    Route(name="get_run", method="GET", path="/crons/{o}/{c}/runs/{r}", status=200, role="viewer"),
    Route(
        name="get_organization",
        method="GET",
        path="/organizations/{o}",
        status=200,
        role="admin",
        installation=200,
    ),
    Route(
        name="create_key",
        method="POST",
        path="/organizations/{o}/keys",
        status=201,
        role="admin",
        body={"name": "new", "role": "viewer"},
        installation=201,
    ),
    Route(name="list_keys", method="GET", path="/organizations/{o}/keys", status=200, role="admin", installation=200),
    Route(
        name="revoke_key",
        method="DELETE",
        path="/organizations/{o}/keys/{k}",
        status=204,
        role="admin",
        installation=204,
    ),
]
INSTALLATION_ROUTES = [
    ("POST", "/organizations", {"name": "new"}, 201),
    ("GET", "/organizations", None, 200),
    ("PATCH", "/organizations/{o}", {"cron_quota": 5}, 200),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Ids of what exists in one organization."""

    organization_id: UUID
    cron_id: str
    run_id: str
    key_id: str

    def path(self, template: str) -> str:
        return template.format(o=self.organization_id, c=self.cron_id, r=self.run_id, k=self.key_id)


@pytest.fixture
async def things(api: Any) -> Things:
    cron = await api.register()
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    key = (
        await api.call("POST", f"/organizations/{api.organization_id}/keys", json={"name": "k", "role": "viewer"})
    ).json()
    return Things(organization_id=api.organization_id, cron_id=cron["id"], run_id=run["id"], key_id=key["id"])


def row_counts(database: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = database.execute(
        "SELECT (SELECT array_agg(cron_jobs ORDER BY id) FROM scheduler.cron_jobs), "
        "(SELECT count(*) FROM scheduler.cron_runs), (SELECT array_agg(api_keys ORDER BY id) FROM scheduler.api_keys)"
    )
    return found


def test_the_table_names_every_route_of_an_organization(api: Any) -> None:
    paths = api.application.openapi()["paths"]
    described = {
        operation["operationId"]
        for path, operations in paths.items()
        for operation in operations.values()
        if "{organization_id}" in path
    }
    assert described == {route.name for route in ROUTES} | {"update_organization"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize("key", KEYS)
async def test_a_role_may_do_what_the_ladder_says(
    api: Any, database: Any, things: Things, route: Route, key: str
) -> None:
    before = row_counts(database)
    answer = await api.call(route.method, things.path(route.path), key=key, **route.arguments)
    if KEYS.index(key) >= KEYS.index(route.role):
        assert answer.status_code == route.status, answer.text
    else:
        assert (answer.status_code, answer.json()["type"]) == (403, "https://cronplane.dev/problems/forbidden")
        assert route.role in answer.json()["detail"]
        assert row_counts(database) == before


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_without_a_key_nothing_is_to_be_had(api: Any, database: Any, things: Things, route: Route) -> None:
    before = row_counts(database)
    answer = await api.call(route.method, things.path(route.path), key=None, **route.arguments)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="cronplane"'
    assert row_counts(database) == before


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_the_installation_key_reaches_nothing_but_keys_in_an_organization(
    api: Any, things: Things, route: Route
) -> None:
    answer = await api.call(route.method, things.path(route.path), key="installation", **route.arguments)
    assert answer.status_code == route.installation


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_what_is_anothers_is_answered_as_what_never_was(
    api: Any, database: Any, things: Things, route: Route
) -> None:
    """Four ways to miss: another's organization, none at all, and another's or no cron under one's own."""
    absent = Things(organization_id=uuid4(), cron_id=str(uuid4()), run_id=str(uuid4()), key_id=str(uuid4()))
    own = Things(organization_id=api.stranger_id, cron_id=things.cron_id, run_id=things.run_id, key_id=things.key_id)
    own_absent = Things(
        organization_id=api.stranger_id, cron_id=absent.cron_id, run_id=absent.run_id, key_id=absent.key_id
    )
    asked = (
        [things, absent]
        if route.path.count("{") == 1 or route.name == "list_keys"
        else [things, absent, own, own_absent]
    )
    before = row_counts(database)
    answers = [
        await api.call(route.method, target.path(route.path), key="stranger", **route.arguments) for target in asked
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert len({tuple(sorted(answer.headers.items())) for answer in answers}) == 1
    assert row_counts(database) == before


async def test_anothers_run_under_ones_own_cron_is_absent(api: Any, things: Things) -> None:
    other = await api.register("another")
    for run_id in (things.run_id, uuid4()):
        answer = await api.call("GET", f"{other['id']}/runs/{run_id}")
        assert (answer.status_code, answer.json()["type"]) == (404, "https://cronplane.dev/problems/not-found")


async def test_a_strangers_body_is_not_even_looked_at(api: Any, things: Things) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"{")
        yield b"{"

    for key, status in {"stranger": 404, "viewer": 403, None: 401}.items():
        answer = await api.call("POST", things.path("/crons/{o}"), key=key, content=body())
        assert answer.status_code == status
    assert read == []


@pytest.mark.parametrize(("method", "path", "body", "status"), INSTALLATION_ROUTES)
async def test_only_the_installation_key_sees_organizations(
    api: Any, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    arguments = {} if body is None else {"json": body}
    path = path.format(o=api.organization_id)
    for key in (*KEYS, "stranger"):
        assert (await api.call(method, path, key=key, **arguments)).status_code == 403
    assert (await api.call(method, path, key=None, **arguments)).status_code == 401
    assert (await api.call(method, path, key="installation", **arguments)).status_code == status


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key.upper(),
        lambda key: key.replace("cronplane_", "", 1),
        lambda key: f"{key}\0",
    ],
)
async def test_a_key_that_is_nearly_right_is_wrong(api: Any, spoil: Callable[[str], str]) -> None:
    for name in ("admin", "installation"):
        headers = {"Authorization": f"Bearer {spoil(api.keys[name])}"}
        answer = await api.call("GET", "/entrypoints", key=None, headers=headers)
        assert answer.status_code == (401 if spoil(api.keys[name]) != api.keys[name] else 200)


async def test_the_scheme_may_be_written_in_any_case(api: Any) -> None:
    headers = {"Authorization": f"bEARER {api.keys['viewer']}"}
    assert (await api.call("GET", "", key=None, headers=headers)).status_code == 200
