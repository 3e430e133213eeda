"""Who may do what: every operation that the API describes, asked with every kind of key, of two organizations.

An operation that the table below does not name fails the tests.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy import event

from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.principals import Access, requires

ROLES = ("viewer", "operator", "editor", "admin")
CALLERS = (None, *ROLES, "stranger", "installation")
BODY = {
    "name": "another",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation, what it answers, and whom it serves.

    `least` is the lowest role of the path's organization, or says that it serves the `installation`, `any key`,
    `everybody`, or nobody with a key but those with a `token` of the run; `installation` is what the installation key
    is answered where a role is needed.
    """

    name: str
    method: str
    path: str
    status: int
    least: str
    body: dict[str, Any] | None = None
    installation: int = 404

    @property
    def arguments(self) -> dict[str, Any]:
        return {} if self.body is None else {"json": self.body}

    def answer_to(self, caller: str | None) -> int:
        if self.least in {"everybody", "token"}:
            return self.status
        if caller is None:
            return 401
        if self.least == "any key":
            return self.status
        if self.least == "installation":
            return self.status if caller == "installation" else 403
        if caller not in ROLES:
            return self.installation if caller == "installation" else 404
        return self.status if ROLES.index(caller) >= ROLES.index(self.least) else 403


KEY = {"name": "new", "role": "viewer"}
ROUTES = [
    Route(name="create_cron", method="POST", path="/crons/{o}", status=201, least="editor", body=BODY),
    Route(name="list_crons", method="GET", path="/crons/{o}", status=200, least="viewer"),
    Route(name="preview_cron", method="POST", path="/crons/{o}/preview", status=200, least="editor", body=BODY),
    Route(name="get_cron", method="GET", path="/crons/{o}/{c}", status=200, least="viewer"),
    Route(name="update_cron", method="PATCH", path="/crons/{o}/{c}", status=200, least="editor", body={"name": "new"}),
    Route(name="delete_cron", method="DELETE", path="/crons/{o}/{c}", status=204, least="editor"),
    Route(name="pause_cron", method="POST", path="/crons/{o}/{c}/pause", status=200, least="operator"),
    Route(name="resume_cron", method="POST", path="/crons/{o}/{c}/resume", status=200, least="operator"),
    Route(name="trigger_cron", method="POST", path="/crons/{o}/{c}/trigger", status=202, least="operator"),
    Route(name="cancel_run", method="POST", path="/crons/{o}/{c}/runs/{r}/cancel", status=202, least="operator"),
    # The run is not over, which is told only to those who may run it again.
    Route(name="rerun_run", method="POST", path="/crons/{o}/{c}/runs/{r}/rerun", status=409, least="operator"),
    Route(name="start_attempt", method="POST", path="/runs/{r}/attempts/1/start", status=401, least="token"),
    Route(name="beat_attempt", method="POST", path="/runs/{r}/attempts/1/heartbeat", status=401, least="token"),
    Route(name="finish_attempt", method="POST", path="/runs/{r}/attempts/1/finish", status=401, least="token"),
    Route(name="finish_run", method="POST", path="/runs/{r}/finish", status=401, least="token"),
    Route(name="list_runs", method="GET", path="/crons/{o}/{c}/runs", status=200, least="viewer"),
    Route(name="get_run", method="GET", path="/crons/{o}/{c}/runs/{r}", status=200, least="viewer"),
    Route(name="get_run_log", method="GET", path="/crons/{o}/{c}/runs/{r}/log", status=200, least="viewer"),
    Route(
        name="get_organization", method="GET", path="/organizations/{o}", status=200, least="admin", installation=200
    ),
    Route(
        name="create_key",
        method="POST",
        path="/organizations/{o}/keys",
        status=201,
        least="admin",
        body=KEY,
        installation=201,
    ),
    Route(name="list_keys", method="GET", path="/organizations/{o}/keys", status=200, least="admin", installation=200),
    Route(
        name="revoke_key",
        method="DELETE",
        path="/organizations/{o}/keys/{k}",
        status=204,
        least="admin",
        installation=204,
    ),
    Route(
        name="create_organization",
        method="POST",
        path="/organizations",
        status=201,
        least="installation",
        body={"name": "new"},
    ),
    Route(name="list_organizations", method="GET", path="/organizations", status=200, least="installation"),
    Route(
        name="update_organization",
        method="PATCH",
        path="/organizations/{o}",
        status=200,
        least="installation",
        body={"cron_quota": 5},
    ),
    Route(name="list_entrypoints", method="GET", path="/entrypoints", status=200, least="any key"),
    Route(name="healthz", method="GET", path="/healthz", status=200, least="everybody"),
    Route(name="readyz", method="GET", path="/readyz", status=200, least="everybody"),
    Route(name="metrics", method="GET", path="/metrics", status=200, least="everybody"),
]
OF_AN_ORGANIZATION = [route for route in ROUTES if "{o}" in route.path]
OF_A_THING = [route for route in ROUTES if route.path.count("{") > 1]
PROBLEMS = {401: "unauthenticated", 403: "forbidden", 404: "not-found"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Things:
    """Ids of what exists, or does not, in one organization."""

    organization_id: UUID
    cron_id: str
    run_id: str
    key_id: str

    @classmethod
    def absent(cls, organization_id: UUID) -> "Things":
        return cls(organization_id=organization_id, cron_id=str(uuid4()), run_id=str(uuid4()), key_id=str(uuid4()))

    def path(self, template: str) -> str:
        return template.format(o=self.organization_id, c=self.cron_id, r=self.run_id, k=self.key_id)


@pytest.fixture
async def things(api: Any) -> Things:
    cron = await api.register("a name that is only ours")
    run = (await api.call("POST", f"{cron['id']}/trigger")).json()
    body = {"name": "a key that is only ours", "role": "viewer"}
    key = (await api.call("POST", f"/organizations/{api.organization_id}/keys", json=body)).json()
    return Things(organization_id=api.organization_id, cron_id=cron["id"], run_id=run["id"], key_id=key["id"])


def everything(database: Any) -> list[tuple[Any, ...]]:
    tables = ("organizations", "api_keys", "cron_jobs", "cron_job_versions", "cron_runs", "idempotency_keys")
    rows = [f"(SELECT array_agg(t::text ORDER BY t::text) FROM scheduler.{table} t)" for table in tables]
    found: list[tuple[Any, ...]] = database.execute(f"SELECT {', '.join(rows)}")
    return found


def unknown_operations(application: FastAPI) -> set[str]:
    described = {
        operation["operationId"]
        for operations in application.openapi()["paths"].values()
        for operation in operations.values()
    }
    return described ^ {route.name for route in ROUTES}


def test_the_table_names_every_operation(api: Any) -> None:
    assert unknown_operations(api.application) == set()


def test_an_operation_that_the_table_does_not_name_is_noticed() -> None:
    router = APIRouter(route_class=GuardedRoute)

    @router.get("/crons/{organization_id}/secrets", operation_id="list_secrets")
    @requires(Access.PUBLIC)
    async def list_secrets() -> None:
        """Be there."""

    application = FastAPI()
    application.include_router(router)
    assert "list_secrets" in unknown_operations(application)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
@pytest.mark.parametrize("caller", CALLERS)
async def test_each_caller_is_served_as_the_table_says_and_a_refusal_changes_nothing(
    api: Any, database: Any, things: Things, route: Route, caller: str | None
) -> None:
    before = everything(database)
    answer = await api.call(route.method, things.path(route.path), key=caller, **route.arguments)
    assert answer.status_code == route.answer_to(caller), answer.text
    if answer.status_code in PROBLEMS:
        assert answer.json()["type"] == f"https://cronplane.dev/problems/{PROBLEMS[answer.status_code]}"
        assert everything(database) == before
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == 'Bearer realm="cronplane"'
    if answer.status_code == 403:
        assert route.least in answer.json()["detail"]


@pytest.fixture
def sent(api: Any) -> list[str]:
    """Every statement that a request sends to PostgreSQL; hints at earlier changes are sent on their own time."""
    statements: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if "pg_notify" not in statement:
            statements.append(statement)

    event.listen(api.application.state.cronplane.engine.sync_engine, "before_cursor_execute", note)
    return statements


async def ask(api: Any, sent: list[str], route: Route, target: Things) -> tuple[object, ...]:
    """Ask with the stranger's key, and give all that could tell one refusal from another, and what it took."""
    sent.clear()
    answer = await api.call(route.method, target.path(route.path), key="stranger", **route.arguments)
    return answer.status_code, answer.content, sorted(answer.headers.items()), tuple(sent)


@pytest.mark.parametrize("route", OF_AN_ORGANIZATION, ids=lambda route: route.name)
async def test_anothers_organization_is_answered_as_one_that_never_was(
    api: Any, database: Any, things: Things, sent: list[str], route: Route
) -> None:
    before = everything(database)
    answer = await ask(api, sent, route, things)
    assert answer[0] == (403 if route.least == "installation" else 404)
    assert answer == await ask(api, sent, route, Things.absent(uuid4()))
    assert len(sent) == 1, "its key was looked up, and nothing else"
    assert everything(database) == before


@pytest.mark.parametrize("route", OF_A_THING, ids=lambda route: route.name)
async def test_anothers_thing_under_ones_own_organization_is_answered_as_one_that_never_was(
    api: Any, database: Any, things: Things, sent: list[str], route: Route
) -> None:
    before = everything(database)
    answer = await ask(api, sent, route, replace(things, organization_id=api.stranger_id))
    assert answer[0] == 404
    assert answer == await ask(api, sent, route, Things.absent(api.stranger_id))
    assert len(sent) > 1, "its key was looked up, and the thing"
    assert everything(database) == before
    # And both refusals are alike: by an organization that is not one's own, and by a thing that is not there.
    assert answer[:3] == (await ask(api, sent, route, things))[:3]


@pytest.mark.parametrize("route", [route for route in ROUTES if route.method == "GET"], ids=lambda route: route.name)
async def test_nothing_that_one_reads_names_anything_of_the_other(api: Any, things: Things, route: Route) -> None:
    own = (await api.call("POST", f"/crons/{api.stranger_id}", key="stranger", json=BODY)).json()
    run = (await api.call("POST", f"/crons/{api.stranger_id}/{own['id']}/trigger", key="stranger")).json()
    target = Things(organization_id=api.stranger_id, cron_id=own["id"], run_id=run["id"], key_id="")
    answer = await api.call("GET", target.path(route.path), key="stranger")
    assert answer.status_code == (403 if route.least == "installation" else 200)
    for secret in (things.organization_id, things.cron_id, things.run_id, things.key_id, "only ours"):
        assert str(secret) not in answer.text


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
