"""The way of a new user, with the chart's default values, and of the installation from then on; in this order."""

import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from cronplane_entries.registry import BUILT_IN
from tests.images import ROOT
from tests.installation.agents import WORD_COUNT, Agents, running_agents
from tests.installation.load import Triggers
from tests.installation.release import Release
from tests.installation.rest_client import RestClient
from tests.installation.volumes import default_volumes
from tests.kubectl import Kubectl

EXAMPLES = ROOT / "deploy" / "examples" / "crons.yaml"
FIRES = """
    SELECT run.scheduled_for, run.status, count(*)
    FROM scheduler.cron_runs AS run JOIN scheduler.cron_jobs AS cron ON cron.id = run.cron_id
    WHERE cron.entrypoint = 'greeting' AND run.trigger_kind = 'schedule'
    GROUP BY run.scheduled_for, run.status ORDER BY run.scheduled_for
"""
DATABASE_POD = "cronplane-database-0"
# As docs/backup.md has them.
BACKUP = 'pg_dump --format=custom "postgresql://cronplane:$CRONPLANE_POSTGRES_OWNER_PASSWORD@localhost/cronplane"'
RESTORE = """
    url="postgresql://cronplane:$CRONPLANE_POSTGRES_OWNER_PASSWORD@localhost/cronplane"
    psql "$url" -c "DROP SCHEMA IF EXISTS scheduler CASCADE" &&
    pg_restore --no-owner --no-privileges --exit-on-error --dbname="$url"
"""
# Of these, the first and the last are not judged.
_LEAST_MINUTES = 4
EVERYTHING = ("statefulset/cronplane-database", "deployment/cronplane-api", "deployment/cronplane-operator")


@pytest.fixture(scope="module", autouse=True)
def _volumes(image: str) -> Iterator[None]:
    with default_volumes(Kubectl(), name=f"cronplane-test-{token_hex(3)}", image=image):
        yield


@pytest.fixture(scope="module")
def notes(_volumes: None, release: Release) -> str:
    """Install the chart as it is; gives its notes."""
    return release.install()


@pytest.fixture(scope="module")
def organization_id(notes: str, release: Release) -> str:
    """Ask which organizations there are, as the notes say."""
    [line] = shell(command(notes, "kubectl exec")).splitlines()
    return line.split()[0]


@pytest.fixture(scope="module")
def api(release: Release, organization_id: str) -> Iterator[RestClient]:
    """Give a client with a key of the organization, made as the notes say."""
    create = ("cronplane", "keys", "create", organization_id, "a person", "editor")
    key = release.kubectl("exec", "deployment/cronplane-api", "--", *create).strip()
    with RestClient(kubectl=release.kubectl, key=key) as client:
        yield client


def command(text: str, first: str) -> str:
    """Give a command of the notes, as a person copies it."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(first))
    end = next((number for number, line in enumerate(lines[start:], start) if not line.strip()), len(lines))
    return "\n".join(lines[start:end])


def shell(script: str) -> str:
    done = subprocess.run(["/bin/sh", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stderr}"
    return done.stdout


def register(api: RestClient, organization_id: str, entrypoint: str, payload: dict[str, Any], **fields: Any) -> str:
    """Register a cron over REST; gives its path."""
    asked = {"name": f"{entrypoint} {token_hex(3)}", "cron_expr": "@yearly", "tz": "UTC", "entrypoint": entrypoint}
    cron = api.post(f"/crons/{organization_id}", asked | {"payload": payload} | fields)
    return f"/crons/{organization_id}/{cron['id']}"


def test_a_cron_applied_as_the_notes_say_fires_in_a_pod(notes: str, release: Release) -> None:
    shell(command(notes, "echo"))
    release.kubectl.wait("condition=Ready", "cron/hello")
    release.kubectl.wait("jsonpath={.status.last_result}=completed", "cron/hello")
    [run, *_] = release.kubectl.read("cron/hello")["status"]["runs"]
    namespace, _, job = run["job"].partition("/")
    assert namespace == release.namespace
    assert "Hello" in release.kubectl("logs", f"job/{job}")


def test_the_helm_test_passes(notes: str, release: Release) -> None:
    said = release.test()
    assert "has completed" in said
    assert "its Job was" in said


def test_the_installation_key_is_read_as_the_notes_say(notes: str, release: Release, organization_id: str) -> None:
    key = shell(command(notes, "kubectl get secret"))
    with RestClient(kubectl=release.kubectl, key=key) as client:
        [organization] = client.get("/organizations")["items"]
    assert (organization["id"], organization["name"]) == (organization_id, "default")


def test_a_cron_of_the_api_is_seen_with_kubectl_and_ends_in_a_pod(
    api: RestClient, organization_id: str, release: Release
) -> None:
    path = register(api, organization_id, "dummy_print", {"message": "over REST"}, name="over-rest")
    triggered = api.post(f"{path}/trigger")
    run = api.ended_run(f"{path}/runs/{triggered['id']}")
    assert (run["status"], run["trigger_kind"]) == ("completed", "manual")
    release.kubectl.wait("jsonpath={.status.last_result}=completed", "cron/over-rest")
    assert "over-rest" in release.kubectl("get", "crons")
    assert "payload" not in release.kubectl.read("cron/over-rest")["spec"]


def test_the_examples_are_registered_when_they_are_applied(
    api: RestClient, organization_id: str, release: Release
) -> None:
    release.kubectl("apply", "--filename", str(EXAMPLES))
    release.kubectl.wait("condition=Ready", "cron/heartbeat", "cron/month-end")
    registered = {cron["name"]: cron["enabled"] for cron in api.get(f"/crons/{organization_id}")["items"]}
    assert registered.items() >= {"heartbeat": True, "month-end": False}.items()


# From here on with one more entry, and with what the entries need to know of this installation.


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    with running_agents() as agents:
        yield agents


@pytest.fixture(scope="module")
def extended(
    *,
    release: Release,
    image: str,
    image_with_greeting: str,
    api: RestClient,
    organization_id: str,
    host: str,
    agents: Agents,
) -> dict[str, Any]:
    """Upgrade to an image with one more entry, and set up every other; gives the values."""
    release.kubectl("create", "secret", "generic", "agents", f"--from-literal=key={agents.api_key}")
    agents.give_word_count_to(organization_id)
    values = {
        "image": {"tag": image_with_greeting.rpartition(":")[2]},
        "entries": {
            "http_request": {"settings": {"ALLOWED_HOSTS": api_address(release)}},
            "agent_inference": {
                "settings": {"BASE_URL": f"http://{host}:{agents.port}"},
                "secrets": {"API_KEY": {"name": "agents", "key": "key"}},
            },
        },
        "runs": {"allowedImages": {image: "*"}},
    }
    release.upgrade(values)
    return values


def api_address(release: Release) -> str:
    return f"cronplane-api.{release.namespace}.svc:8080"


def test_a_cron_of_every_entry_completes(
    *, extended: dict[str, Any], api: RestClient, organization_id: str, image: str, release: Release
) -> None:
    payloads: dict[str, dict[str, Any]] = {
        "agent_inference": {
            "project_id": str(WORD_COUNT),
            "env": "production",
            "input_data": {"text": "no fire is ever silent"},
        },
        "container": {"image": image, "args": ["--version"]},
        "dummy_print": {"message": "one of each"},
        "greeting": {"name": "Ada"},
        "http_request": {"url": f"http://{api_address(release)}/readyz"},
    }
    entries = {*map(str, BUILT_IN), "greeting"}
    api.get_until("/entrypoints", lambda listed: {entry["name"] for entry in listed["items"]} == entries)
    paths = {entry: register(api, organization_id, entry, payloads[entry]) for entry in entries}
    runs = {entry: api.post(f"{path}/trigger")["id"] for entry, path in paths.items()}
    ended = {entry: api.ended_run(f"{path}/runs/{runs[entry]}") for entry, path in paths.items()}
    assert {entry: run["status"] for entry, run in ended.items()} == dict.fromkeys(entries, "completed"), ended
    assert ended["greeting"]["result"]["said"] == "Hello Ada, says default."


@pytest.fixture
def crons(extended: dict[str, Any], api: RestClient, organization_id: str) -> list[str]:
    """Register 60 crons that run in process, half of them in each minute; gives their paths."""
    return [
        register(api, organization_id, "greeting", {"name": str(number)}, cron_expr=f"{number % 2}-59/2 * * * *")
        for number in range(60)
    ]


@pytest.fixture
def triggers(extended: dict[str, Any], api: RestClient, organization_id: str) -> Iterator[Triggers]:
    """Have runs triggered every few seconds while the test goes on, in pods and in process by turns."""
    payloads = {"dummy_print": {"message": "by hand"}, "greeting": {"name": "Ada"}}
    paths = [register(api, organization_id, entry, payload) for _ in range(6) for entry, payload in payloads.items()]
    with Triggers(api, paths) as triggers:
        yield triggers


def test_whatever_is_taken_away_no_fire_is_lost_and_none_is_doubled(
    *, release: Release, extended: dict[str, Any], crons: list[str], triggers: Triggers, api: RestClient
) -> None:
    for disturb in (change_and_take_back, take_the_leader, take_every_api_pod, take_the_database, restart_everything):
        disturb(release, extended)
    while len(instants_of(release.sql(FIRES))) < _LEAST_MINUTES:
        restart_everything(release, extended)
    triggered = triggers.stop()
    for path in crons:
        api.post(f"{path}/pause")
    release.until_all_runs_are_over()
    assert release.check() == ""
    found = dict(release.sql("SELECT id, status FROM scheduler.cron_runs"))
    ends = Counter(found.get(run_id, "not there") for run_id in triggered)
    # One that is triggered while its run before is not over is skipped, and says so.
    assert ends["completed"] + ends["skipped"] == len(triggered), ends
    assert ends["completed"] > len(triggered) / 2, ends
    fires = [(datetime.fromisoformat(instant), status, count) for instant, status, count in release.sql(FIRES)]
    first, *whole, _ = sorted(instants_of(fires))
    assert whole == [first + timedelta(minutes=number) for number, _ in enumerate(whole, 1)], "a minute is missing"
    # In the first and in the last minute, crons were being registered and paused.
    assert {(status, count) for instant, status, count in fires if instant in whole} == {("completed", "30")}, fires


def instants_of(fires: Iterable[Sequence[Any]]) -> set[Any]:
    return {instant for instant, *_ in fires}


def change_and_take_back(release: Release, values: dict[str, Any]) -> None:
    changed = values | {"operator": {"settings": {"workers": 3}}, "api": {"settings": {"triggersPerMinute": 500}}}
    release.upgrade(changed)
    release.rollback()
    release.upgrade(changed)


def take_the_leader(release: Release, values: dict[str, Any]) -> None:
    pod = release.leader()
    release.kubectl("delete", f"pod/{pod}")
    release.until_rolled_out("deployment/cronplane-operator")
    assert release.leader() != pod


def take_every_api_pod(release: Release, values: dict[str, Any]) -> None:
    release.kubectl("delete", "pods", "--selector=app.kubernetes.io/component=api")
    release.until_rolled_out("deployment/cronplane-api")


def take_the_database(release: Release, values: dict[str, Any]) -> None:
    release.kubectl("delete", f"pod/{DATABASE_POD}")
    release.until_rolled_out(*EVERYTHING)


def restart_everything(release: Release, values: dict[str, Any]) -> None:
    release.kubectl("rollout", "restart", *EVERYTHING)
    release.until_rolled_out(*EVERYTHING)


def test_a_backup_is_restored_as_the_docs_say(
    *, release: Release, extended: dict[str, Any], api: RestClient, organization_id: str, tmp_path: Path
) -> None:
    register(api, organization_id, "greeting", {"name": "Ada"}, name="before-the-backup")
    with (tmp_path / "dump").open("wb") as dump:
        subprocess.run(release.kubectl.command("exec", DATABASE_POD, "--", "sh", "-c", BACKUP), stdout=dump, check=True)
    register(api, organization_id, "greeting", {"name": "Bob"}, name="after-the-backup")
    release.kubectl.wait("create", "cron/after-the-backup")

    release.kubectl("scale", "--replicas=0", *EVERYTHING[1:])
    for role in ("api", "operator"):
        release.kubectl.wait("delete", "pods", f"--selector=app.kubernetes.io/component={role}")
    with (tmp_path / "dump").open("rb") as dump:
        restore = release.kubectl.command("exec", "--stdin", DATABASE_POD, "--", "sh", "-c", RESTORE)
        subprocess.run(restore, stdin=dump, stdout=subprocess.DEVNULL, check=True)
    mirrors = f"crons.cronplane.dev/installation={release.namespace}-cronplane,crons.cronplane.dev/cron-id"
    release.kubectl("delete", "crons", f"--selector={mirrors}")
    release.kubectl("delete", "jobs", "--selector=app.kubernetes.io/component=migration")
    release.upgrade(extended)

    assert len(api.get(f"/crons/{organization_id}", name="before-the-backup")["items"]) == 1
    assert api.get(f"/crons/{organization_id}", name="after-the-backup")["items"] == []
    release.kubectl.wait("create", "cron/before-the-backup")
    assert "after-the-backup" not in names(release, "crons")
    assert release.check() == ""


def test_what_people_applied_and_the_data_outlive_the_installation(
    notes: str, extended: dict[str, Any], release: Release, organization_id: str
) -> None:
    shell(command(notes, "echo"))
    release.kubectl("apply", "--filename", str(EXAMPLES))
    applied = {"daily-report", "heartbeat", "hello", "month-end"}
    claims = names(release, "persistentvolumeclaims")
    release.uninstall()
    release.kubectl.wait("delete", "pods", "--all")
    assert names(release, "crons") == applied
    assert names(release, "persistentvolumeclaims") == claims
    assert names(release, "secrets") >= {"cronplane-database", "cronplane-installation"}
    assert names(release, "all,runners,configmaps,networkpolicies,roles,rolebindings") == {"kube-root-ca.crt"}

    again = release.install()
    assert shell(command(again, "kubectl exec")).split()[0] == organization_id
    release.kubectl.wait("condition=Ready", "cron/hello", "cron/heartbeat")
    assert release.check() == ""


def names(release: Release, kinds: str) -> set[str]:
    """Name what there is of some kinds."""
    return {name.partition("/")[2] for name in release.kubectl("get", kinds, "--output=name").split()}
