"""Crons that people apply with kubectl: registered as over the API, refused in the same words, and let go with care."""

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.api_key_repository import create_api_key
from cronplane_core.cron_repository import delete_cron, lock_cron
from cronplane_core.database import connection_string, create_engine, transaction
from cronplane_core.organization_repository import create_organization
from cronplane_core.tables import Role
from tests.conftest import cron_writer

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
CRONS = "SELECT id, name, cron_expr, enabled, source_uid IS NOT NULL FROM scheduler.cron_jobs WHERE deleted_at IS NULL"
COUNT = "SELECT count(*) = %s FROM scheduler.cron_jobs WHERE deleted_at IS NULL AND enabled = %s"
MANY = [f"cron-{n}" for n in range(12)]
SECRET = "nobody but the entry is to read this"
READY = "{.status.conditions[?(@.type=='Ready')].%s}"
DEGRADED = "jsonpath={.status.conditions[?(@.type=='Degraded')].reason}"


def resource(name: str, /, *, namespace: str, **spec: Any) -> dict[str, Any]:
    asked = {"cron_expr": "1 12 * * *", "tz": "UTC", "entrypoint": "dummy_print", "payload": {"message": SECRET}}
    return {
        "apiVersion": "crons.cronplane.dev/v1alpha1",
        "kind": "Cron",
        "metadata": {"name": name, "namespace": namespace},
        "spec": asked | spec,
    }


class Crons:
    """Cron resources, as a person applies and looks at them in the tenant's namespace."""

    def __init__(self, *, kubectl: Any, namespace: str) -> None:
        self.kubectl, self.namespace = kubectl, namespace
        self.here = ("--namespace", namespace)

    def apply(self, *names: str, namespace: str = "", **spec: Any) -> None:
        bodies = [resource(name, namespace=namespace or self.namespace, **spec) for name in names]
        self.kubectl(
            "apply", "--filename", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": bodies})
        )

    def ready(self, name: str) -> Any:
        self.kubectl.wait("condition=Ready", f"cron/{name}", *self.here)
        return self.kubectl.read(f"cron/{name}", *self.here)

    def refused(self, name: str, reason: str, *, namespace: str = "") -> str:
        here = ("--namespace", namespace or self.namespace)
        self.kubectl.wait(f"jsonpath={READY % 'reason'}={reason}", f"cron/{name}", *here)
        return str(self.kubectl("get", f"cron/{name}", *here, f"--output=jsonpath={READY % 'message'}"))

    def delete(self, *names: str) -> None:
        self.kubectl("delete", "crons", *names, *self.here)

    def lose(self, *names: str, runner: tuple[str, ...]) -> None:
        """Apply so many that it is noticed when all of them are deleted, and delete them."""
        self.apply(*names)
        for name in names:
            self.ready(name)
        self.delete(*names)
        self.kubectl.wait(f"{DEGRADED}=DeletionsHeld", *runner)


@pytest.fixture
def crons(kubectl: Any, installation: Any, database: Any) -> Crons:
    database.set_clock(BEFORE, speed=0)
    return Crons(kubectl=kubectl, namespace=installation.tenant)


@pytest.fixture
def wait_for_crons(until: Any) -> Callable[..., Any]:
    async def wait(count: int, *, enabled: bool = True) -> None:
        await until(COUNT, [count, enabled])

    return wait


@pytest.fixture
async def answer_of_the_api(engine: AsyncEngine, organization: Any, start_process: Any) -> Callable[..., Any]:
    """Give what `POST /crons` answers."""
    async with transaction(engine) as connection:
        _, key = await create_api_key(
            connection, organization_id=organization.id, name="test", role=Role.EDITOR, created_by="test"
        )

    async def ask(asked: dict[str, Any]) -> Any:
        url = f"{start_process('api').address}/crons/{organization.id}"
        async with httpx2.AsyncClient() as client:
            return (await client.post(url, headers={"Authorization": f"Bearer {key}"}, json=asked)).json()

    return ask


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        return int(reserved.getsockname()[1])


async def test_a_cron_is_registered_changed_fired_and_deleted_by_its_resource(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, wait_for_crons: Any, installation: Any
) -> None:
    start_operator()
    crons.apply("nightly")
    crons.ready("nightly")
    [(cron_id, name, *_)] = database.execute(CRONS)
    assert name == "nightly"
    actors = database.execute("SELECT created_by, organization_id IS NOT NULL FROM scheduler.cron_jobs")
    assert actors == [(f"kubernetes:{installation.tenant}/nightly", True)]
    crons.apply("nightly", tz="Europe/Paris", cron_expr="1 14 * * *", name="Nightly report")
    crons.ready("nightly")
    assert [row[:3] for row in database.execute(CRONS)] == [(cron_id, "Nightly report", "1 14 * * *")]
    database.set_clock(DUE)
    kubectl.wait("jsonpath={.status.last_result}=completed", "cron/nightly", *crons.here)
    assert SECRET not in kubectl("get", "events", *crons.here, "--output=json")
    crons.delete("nightly")
    await wait_for_crons(0)
    assert database.execute("SELECT status FROM scheduler.cron_runs") == [("completed",)]


async def test_a_refusal_stands_in_the_conditions_in_the_words_of_the_api_and_what_was_before_stays_in_force(
    *, crons: Crons, database: Any, start_operator: Any, answer_of_the_api: Any, kubectl: Any
) -> None:
    start_operator()
    wrong: dict[str, Any] = {"cron_expr": "60 * * * *", "tz": "Mars/Phobos", "payload": {"message": 5}}
    crons.apply("wrong", **wrong)
    message = crons.refused("wrong", "InvalidSpec")
    problem = await answer_of_the_api({"name": "wrong", "entrypoint": "dummy_print", **wrong})
    told = [f"{each['pointer']}: {each['message']}" for each in problem["errors"]]
    assert len(told) == 3
    assert message == f"{problem['detail']}. {'; '.join(told)}"
    assert database.execute(CRONS) == []
    kubectl.wait("create", "events", *crons.here, "--field-selector=reason=RegistrationRefused")
    crons.apply("wrong")
    crons.ready("wrong")
    crons.apply("wrong", cron_expr="60 * * * *")
    assert crons.refused("wrong", "InvalidSpec").endswith("What was registered before stays in force.")
    assert [row[2] for row in database.execute(CRONS)] == ["1 12 * * *"]


async def test_what_the_definition_refuses_never_comes_to_us_and_says_where(
    *, crons: Crons, installation: Any, kubectl: Any
) -> None:
    refused: list[dict[str, Any]] = [
        {"cron_expr": "TZ=UTC 1 12 * * *"},
        {"enabled": "yes"},
        {"timeout": 0},
        {"cron_exp": "* * * * *"},
    ]
    for spec in refused:
        with pytest.raises(AssertionError, match=f"spec.{next(iter(spec))}|unknown field"):
            crons.apply("wrong", **spec)


async def test_a_resource_that_is_replaced_keeps_its_cron(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, until: Any
) -> None:
    start_operator()
    crons.apply("nightly")
    uid = crons.ready("nightly")["metadata"]["uid"]
    [(cron_id, *_)] = database.execute(CRONS)
    given = json.dumps(resource("nightly", namespace=crons.namespace, cron_expr="2 12 * * *"))
    kubectl("replace", "--force", "--filename", "-", given=given)
    assert crons.ready("nightly")["metadata"]["uid"] != uid
    await until("SELECT count(*) = 1 FROM scheduler.cron_jobs WHERE id = %s AND cron_expr = '2 12 * * *'", [cron_id])


async def test_a_namespace_that_is_deleted_disables_its_crons_and_its_successor_has_them_back(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, wait_for_crons: Any, apply_chart: Any,
    installation: Any, organization: Any
) -> None:  # fmt: skip
    start_operator()
    crons.apply("nightly")
    crons.ready("nightly")
    [(cron_id, *_)] = database.execute(CRONS)
    kubectl("delete", "namespace", crons.namespace)
    await wait_for_crons(1, enabled=False)
    kubectl("create", "namespace", crons.namespace)
    values = {
        "fullnameOverride": installation.name,
        "organizations": {organization.name: {"namespaces": [crons.namespace]}},
        "runs": {"namespace": installation.runs},
    }
    apply_chart(installation.namespace, values)
    crons.apply("another")
    crons.ready("another")
    assert sorted(row[3] for row in database.execute(CRONS)) == [False, True]
    crons.apply("nightly")
    crons.ready("nightly")
    assert (cron_id, "nightly", "1 12 * * *", True, True) in database.execute(CRONS)


async def test_a_definition_that_is_deleted_disables_crons_and_deletes_none(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, wait_for_crons: Any
) -> None:
    start_operator()
    crons.apply("nightly")
    crons.ready("nightly")
    definition = kubectl.read("crd/crons.crons.cronplane.dev")
    kubectl("delete", "crd/crons.crons.cronplane.dev")
    try:
        await wait_for_crons(1, enabled=False)
    finally:
        body = {**definition, "metadata": {"name": definition["metadata"]["name"]}, "status": None}
        kubectl("create", "--filename", "-", given=json.dumps(body))
    kubectl.wait("condition=Established", "crd/crons.crons.cronplane.dev")
    crons.apply("nightly")
    crons.ready("nightly")
    assert [row[1:] for row in database.execute(CRONS)] == [("nightly", "1 12 * * *", True, True)]


async def test_many_deletions_at_once_wait_until_somebody_confirms_them(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, wait_for_crons: Any, installation: Any
) -> None:
    start_operator()
    runner = (f"runner/{installation.name}", "--namespace", installation.namespace)
    crons.lose(*MANY, runner=runner)
    await wait_for_crons(12)
    message = kubectl("get", *runner, "--output=jsonpath={.status.conditions[?(@.type=='Degraded')].message}")
    assert "12 crons" in message
    command = message.partition("kubectl ")[2].split()
    kubectl(*command)
    await wait_for_crons(0)
    kubectl.wait("condition=Degraded=false", *runner)


async def test_a_new_leader_holds_what_is_left_of_many_deletions_while_the_others_get_their_resources_back(
    *, crons: Crons, start_operator: Any, installation: Any, wait_for_crons: Callable[..., Any], until: Any
) -> None:
    first = start_operator()
    crons.lose(*MANY, runner=(f"runner/{installation.name}", "--namespace", installation.namespace))
    first.stop()
    # Few enough are left to pass for an intention.
    crons.apply(*MANY[:8])
    start_operator()
    for name in MANY[:8]:
        crons.ready(name)
    await until("SELECT count(*) = 4 FROM scheduler.cron_jobs WHERE deletion_held")
    await wait_for_crons(12)


async def test_a_namespace_without_an_organization_gets_a_condition_and_no_row(
    *, crons: Crons, database: Any, start_operator: Any, installation: Any
) -> None:
    start_operator()
    crons.apply("nightly", namespace=installation.namespace)
    message = crons.refused("nightly", "NamespaceNotMapped", namespace=installation.namespace)
    assert "have the administrator map it" in message
    assert database.execute(CRONS) == []


async def test_a_name_that_the_organization_uses_already_is_refused_until_it_is_free_and_the_mirror_gives_way(
    *, crons: Crons, database: Any, start_operator: Any, kubectl: Any, add_cron: Any
) -> None:
    await add_cron("nightly", entrypoint="dummy_print")
    crons.apply("nightly")
    start_operator()
    assert "'nightly'" in crons.refused("nightly", "NameTaken")
    mirrors = "--selector=crons.cronplane.dev/cron-id"
    kubectl.wait("create", "crons", mirrors, *crons.here)
    [mirror] = kubectl.read("crons", mirrors, *crons.here)["items"]
    assert mirror["metadata"]["name"].startswith("nightly-")
    assert "payload" not in mirror["spec"]


async def test_what_two_installations_mirror_into_one_namespace_neither_touches_of_the_other(
    *, crons: Crons, add_cron: Any, start_operator: Any, kubectl: Any, until: Any
) -> None:
    foreign = resource("nightly", namespace=crons.namespace)
    del foreign["spec"]["payload"]
    foreign["metadata"]["labels"] = {
        "app.kubernetes.io/managed-by": "cronplane",
        "crons.cronplane.dev/installation": "another",
        "crons.cronplane.dev/cron-id": "00000000-0000-4000-8000-000000000000",
    }
    kubectl("create", "--filename", "-", given=json.dumps(foreign))
    before = kubectl.read("cron/nightly", *crons.here)
    await add_cron("nightly", entrypoint="dummy_print")
    start_operator()
    await until("SELECT count(*) = 1 FROM scheduler.cron_mirrors WHERE uid IS NOT NULL")
    [ours] = [each for each in kubectl.read("crons", *crons.here)["items"] if each["metadata"]["name"] != "nightly"]
    crons.ready(ours["metadata"]["name"])
    assert kubectl.read("cron/nightly", *crons.here) == before


async def test_two_installations_mirror_crons_of_one_name_into_one_namespace_and_each_takes_only_its_own_away(
    *,
    crons: Crons,
    add_cron: Any,
    create_database: Any,
    template: str,
    start_operator: Any,
    installation: Any,
    kubectl: Any,
    until: Any,
) -> None:
    database = create_database(template)
    database.set_clock(BEFORE, speed=0)
    engine = create_engine(database.url, pool_size=2, application_name="test")
    async with transaction(engine) as connection:
        organization = await create_organization(connection, name="the competition")
    await add_cron("nightly", entrypoint="dummy_print")
    theirs = await cron_writer(engine, organization)("nightly", entrypoint="dummy_print")
    start_operator()
    start_operator(
        installation="another",
        database_url=connection_string(database.url),
        namespaces=json.dumps({installation.tenant: str(organization.id)}),
    )
    for name in ("test", "another"):
        mirrors = f"--selector=crons.cronplane.dev/installation={name}"
        kubectl.wait("create", "crons", mirrors, *crons.here)
        kubectl.wait("condition=Ready", "crons", mirrors, *crons.here)
        kubectl.wait("jsonpath={.status.crons}=1", f"runner/{name}", "--namespace", installation.namespace)
    found = kubectl.read("crons", *crons.here)["items"]
    names = {each["metadata"]["labels"]["crons.cronplane.dev/cron-id"]: each["metadata"]["name"] for each in found}
    assert len(names) == len(set(names.values())) == len(found) == 2
    async with transaction(engine) as connection:
        locked = await lock_cron(connection, organization_id=organization.id, cron_id=theirs.id)
        assert locked is not None
        await delete_cron(connection, cron=locked, deleted_by="test")
    await engine.dispose()
    kubectl.wait("delete", f"cron/{names.pop(str(theirs.id))}", *crons.here)
    [left] = kubectl.read("crons", *crons.here)["items"]
    [ours] = [each for each in found if each["metadata"]["name"] in names.values()]
    assert left["metadata"]["uid"] == ours["metadata"]["uid"]
    await until("SELECT count(*) = 1 FROM scheduler.cron_mirrors WHERE uid IS NOT NULL")


async def test_kopf_answers_how_long_ago_runner_and_reconciler_came_round(
    *, crons: Crons, start_operator: Any, free_port: int
) -> None:
    url = f"http://127.0.0.1:{free_port}/healthz"
    start_operator(watch_probe_url=url)
    crons.apply("nightly")
    crons.ready("nightly")
    async with httpx2.AsyncClient() as client:
        answer = (await client.get(url)).json()
    assert answer.keys() == {"runner", "reconciler"}
    assert all(0 <= seconds < 30 for seconds in answer.values())
