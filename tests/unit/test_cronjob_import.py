"""What is asked of the API for a CronJob, and what is printed, against a double of the API."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest

from cronplane_cli.api_client import ApiClient, ApiRefusedError, ApiUnavailableError
from cronplane_cli.cronjob_import import ImportOptions, OrganizationCrons, connect, import_one, run
from cronplane_cli.errors import CommandError

NOW = datetime(2026, 11, 29, tzinfo=UTC)
ORGANIZATION = UUID(int=1)
SECRET = "correct horse battery staple"
APPLY = ImportOptions(default_zone="UTC", is_applied=True)
DRY_RUN = ImportOptions(default_zone="UTC")


def cronjob(**pod: Any) -> dict[str, Any]:
    limits = {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi"}
    env = [{"name": "PASSWORD", "value": SECRET}]
    container = {"image": "report:1", "env": env, "resources": {"limits": limits}}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], **pod}}
    spec = {"schedule": "0 9 * * *", "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": {"template": template}}}
    return {"metadata": {"name": "report", "namespace": "shop"}, "spec": spec}


LOSING = cronjob(nodeSelector={"disk": "ssd"})


class ApiDouble:
    """Keeps crons by their names, as the API does; `stumble` may answer a request in its place."""

    def __init__(self) -> None:
        self.crons: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.keys: list[str] = []
        self.stumble: Callable[[httpx2.Request], httpx2.Response | None] = lambda _: None

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append((request.method, request.url.path))
        if (answer := self.stumble(request)) is not None:
            return answer
        if request.method == "GET":
            there = self.crons.get(request.url.params["name"])
            return httpx2.Response(200, json={"items": [there] if there else [], "next_cursor": None})
        asked = json.loads(request.content)
        # The entry fills in what the payload leaves out.
        asked["payload"] = {"command": [], **asked["payload"]}
        if request.url.path.endswith("/preview"):
            return httpx2.Response(200, json=asked)
        self.keys.append(request.headers["Idempotency-Key"])
        self.crons[asked["name"]] = {**asked, "id": "17", "timeout": float(asked["timeout"])}
        return httpx2.Response(201, json=self.crons[asked["name"]])

    @property
    def written(self) -> int:
        return self.requests.count(("POST", f"/crons/{ORGANIZATION}"))


@pytest.fixture
def api() -> ApiDouble:
    return ApiDouble()


@pytest.fixture
def crons(api: ApiDouble) -> OrganizationCrons:
    client = ApiClient(url="http://api", key="key", transport=httpx2.MockTransport(api))
    return OrganizationCrons(api=client, organization_id=ORGANIZATION)


def outcome(body: dict[str, Any], *, crons: OrganizationCrons | None, options: ImportOptions) -> str:
    return import_one(body, crons=crons, options=options, now=NOW).outcome.name


def test_a_dry_run_asks_for_a_preview_and_writes_nothing(api: ApiDouble, crons: OrganizationCrons) -> None:
    assert outcome(cronjob(), crons=crons, options=DRY_RUN) == "CARRIES_OVER"
    assert (api.written, api.crons) == (0, {})
    assert ("POST", f"/crons/{ORGANIZATION}/preview") in api.requests


def test_applied_a_cronjob_is_registered_once(api: ApiDouble, crons: OrganizationCrons) -> None:
    first = import_one(cronjob(), crons=crons, options=APPLY, now=NOW)
    assert (first.outcome.name, first.cron_id) == ("REGISTERED", "17")
    assert outcome(cronjob(), crons=crons, options=APPLY) == "EXISTS"
    assert outcome(cronjob(), crons=crons, options=DRY_RUN) == "EXISTS"
    assert (api.written, list(api.crons)) == (1, ["shop/report"])


def test_a_cron_that_was_paused_or_resumed_since_is_the_same(api: ApiDouble, crons: OrganizationCrons) -> None:
    outcome(cronjob(), crons=crons, options=APPLY)
    api.crons["shop/report"]["enabled"] = False
    assert outcome(cronjob(), crons=crons, options=APPLY) == "EXISTS"


def test_a_cron_of_that_name_that_is_another_is_told_and_left_alone(api: ApiDouble, crons: OrganizationCrons) -> None:
    outcome(cronjob(), crons=crons, options=APPLY)
    api.crons["shop/report"]["cron_expr"] = "5 5 * * *"
    result = import_one(cronjob(), crons=crons, options=APPLY, now=NOW)
    assert (result.outcome.name, result.outcome.is_good) == ("DIFFERS", False)
    assert api.written == 1


def test_what_loses_something_is_registered_only_if_that_is_accepted(api: ApiDouble, crons: OrganizationCrons) -> None:
    assert outcome(LOSING, crons=crons, options=APPLY) == "LOSES"
    assert api.written == 0
    path = "spec.jobTemplate.spec.template.spec.nodeSelector"
    accepting = ImportOptions(default_zone="UTC", is_applied=True, accepted=frozenset({path}))
    assert outcome(LOSING, crons=crons, options=accepting) == "REGISTERED"


def test_a_partial_import_registers_what_loses_something(crons: OrganizationCrons) -> None:
    partial = ImportOptions(default_zone="UTC", is_applied=True, accepted=None)
    assert outcome(LOSING, crons=crons, options=partial) == "REGISTERED"


def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(api: ApiDouble, crons: OrganizationCrons) -> None:
    keys = []

    def lose_the_first(request: httpx2.Request) -> httpx2.Response | None:
        keys.append(request.headers.get("Idempotency-Key"))
        if len(keys) == 3:
            raise httpx2.ReadError("gone")
        return None

    api.stumble = lose_the_first
    assert outcome(cronjob(), crons=crons, options=APPLY) == "REGISTERED"
    assert keys[2] == keys[3] == api.keys[0]


def test_a_refusal_of_the_api_is_told_by_its_fields(api: ApiDouble, crons: OrganizationCrons) -> None:
    errors = [{"pointer": "/payload/image", "message": "this image is not allowed", "type": "refused"}]
    api.stumble = lambda _: httpx2.Response(422, json={"detail": "The cron is refused as it is", "errors": errors})
    result = import_one(cronjob(), crons=crons, options=APPLY, now=NOW)
    assert result.outcome.name == "REFUSED"
    assert result.remarks[-1].path == "/payload/image"


def test_somebody_else_may_be_faster(api: ApiDouble, crons: OrganizationCrons) -> None:
    def conflict(request: httpx2.Request) -> httpx2.Response | None:
        is_write = request.url.path == f"/crons/{ORGANIZATION}" and request.method == "POST"
        return httpx2.Response(409, json={"detail": "There is one of this name"}) if is_write else None

    api.stumble = conflict
    result = import_one(cronjob(), crons=crons, options=APPLY, now=NOW)
    assert (result.outcome.name, result.remarks[-1].message) == ("REFUSED", "There is one of this name")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_an_answer_that_would_be_the_same_for_all_ends_the_import(
    api: ApiDouble, crons: OrganizationCrons, status: int
) -> None:
    api.stumble = lambda _: httpx2.Response(status, text="no")
    with pytest.raises(ApiRefusedError, match=f"The API answered {status}"):
        import_one(cronjob(), crons=crons, options=APPLY, now=NOW)


def test_an_api_that_is_not_there_ends_the_import(api: ApiDouble, crons: OrganizationCrons) -> None:
    def gone(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    api.stumble = gone
    with pytest.raises(ApiUnavailableError, match="does not answer"):
        import_one(cronjob(), crons=crons, options=APPLY, now=NOW)


def test_an_object_that_is_no_cronjob_is_refused_and_the_others_go_on(crons: OrganizationCrons) -> None:
    nameless: dict[str, Any] = {"metadata": None, "spec": {}}
    assert not run([nameless, cronjob()], crons=crons, options=APPLY, as_json=False, now=NOW)
    assert run([cronjob()], crons=crons, options=APPLY, as_json=False, now=NOW)


def test_lines_say_what_is_lost_and_never_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    body = LOSING | {"spec": LOSING["spec"] | {"schedule": "30 2 */2 * 1", "timeZone": "Europe/Berlin"}}
    assert not run([body, cronjob()], crons=None, options=DRY_RUN, as_json=False, now=NOW)
    told = capsys.readouterr().out
    assert "shop/report does not carry over: 30 2 1,3,5" in told
    assert "  lost   spec.jobTemplate.spec.template.spec.nodeSelector: " in told
    assert "fires that differ if it were written '30 2 */2 * 1':" in told
    assert "    2027-10-31T02:30:00+01:00: Kubernetes fires, Cronplane does not" in told
    assert told.endswith("CronJobs: 1 carries over; 1 does not carry over. Nothing was written: --apply registers.\n")
    assert SECRET not in told


def test_json_has_an_object_per_cronjob_and_never_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    body = LOSING | {"spec": LOSING["spec"] | {"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"}}
    run([body, {}], crons=None, options=DRY_RUN, as_json=True, now=NOW)
    printed = capsys.readouterr().out
    first, second = map(json.loads, printed.splitlines())
    assert (first["cronjob"], first["outcome"], first["cron_id"]) == ("shop/report", "loses", None)
    assert first["schedule"]["differences"][0] == {"at": "2027-03-28T03:00:00+02:00", "fires": "cronplane"}
    assert (second["cronjob"], second["outcome"], second["schedule"]) == ("(no name)", "refused", None)
    assert SECRET not in printed


def test_a_default_zone_that_there_is_not_is_trouble() -> None:
    with pytest.raises(CommandError, match="Mars/Phobos"):
        run([], crons=None, options=ImportOptions(default_zone="Mars/Phobos"), as_json=False, now=NOW)


def test_that_nothing_was_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], crons=None, options=DRY_RUN, as_json=False, now=NOW)
    assert capsys.readouterr().out == "No CronJob was found.\n"


@pytest.mark.parametrize(("organization_id", "key"), [(None, "key"), (ORGANIZATION, None), (ORGANIZATION, "")])
def test_to_apply_an_organization_and_a_key_are_needed(organization_id: UUID | None, key: str | None) -> None:
    with pytest.raises(CommandError, match="--organization"):
        connect(organization_id, url="http://api", key=key, is_needed=True)


def test_a_dry_run_needs_neither() -> None:
    assert connect(None, url="http://api", key=None, is_needed=False) is None
