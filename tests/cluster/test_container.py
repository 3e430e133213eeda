"""Containers of payloads, on a real cluster: what runs, how it ends, and that it is entered once whatever crashes."""

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cronplane_core.cron_repository import Cron

BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
IMAGE = "localhost/cronplane:test"
SETTLED = r"jsonpath={.metadata.labels.crons\.cronplane\.dev/settled}=true"
ENDED = "SELECT count(*) = 1 FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
RUNNING = "SELECT bool_and(status = 'running') FROM scheduler.cron_runs"
RUN = "SELECT status, reason, attempts FROM scheduler.cron_runs"
SPEAK = "open('/dev/termination-log', 'w').write({!r})"
# Ends when it is told to.
WAIT = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), sys.exit(0)))
print("entered", flush=True)
signal.pause()
"""


@pytest.fixture
def add_container(add_cron: Any, database: Any, image: str) -> Callable[..., Any]:
    """Write a cron that runs a program in Python in the image, half a minute before it fires."""
    database.set_clock(BEFORE, speed=0)

    async def add(program: str, *, resources: dict[str, Any] | None = None, image: str = image, **others: Any) -> Cron:
        asked = {"image": image, "command": ["python", "-c", program], "resources": resources or {}}
        cron: Cron = await add_cron(
            "contained", cron_expr="1 12 * * *", entrypoint="container", payload={"container": asked}, **others
        )
        return cron

    return add


@pytest.fixture
def start_containers(installation: Any, start_operator: Callable[..., Any]) -> Callable[..., Any]:
    """Start an operator that may run the image as a container, and has no image of its own for runs."""

    def start(*, images: object = {IMAGE: "*"}, **settings: object) -> Any:
        return start_operator(
            run_namespace=installation.runs,
            run_service_account=f"{installation.name}-run",
            entry_container_images=json.dumps(images),
            **settings,
        )

    return start


@pytest.fixture(scope="session")
def root_image(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Bring an image into the cluster whose user is root."""
    context = tmp_path_factory.mktemp("root")
    (context / "Dockerfile").write_text(f"FROM {image}\nUSER 0\n", encoding="ascii")
    tag = "localhost/cronplane-root:test"
    command = [*shlex.split(os.environ["CRONPLANE_TEST_IMAGE_COMMAND"]), tag, "-f", str(context / "Dockerfile")]
    subprocess.run([*command, str(context)], check=True, stdout=subprocess.DEVNULL)
    return tag


def only_job(kubectl: Any, installation: Any) -> Any:
    [job] = kubectl.read("jobs", "--namespace", installation.runs)["items"]
    return job


async def let_in(until: Any, kubectl: Any, installation: Any) -> str:
    """Wait until the container runs, and give its Job's name."""
    await until(RUNNING)
    name: str = only_job(kubectl, installation)["metadata"]["name"]
    kubectl.wait("jsonpath={.status.ready}=1", f"job/{name}", "--namespace", installation.runs)
    return name


async def test_a_container_completes_with_its_last_words_as_result_and_has_no_token(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    look = "import json, os; print('looked'); tokens = os.path.exists('/var/run/secrets/kubernetes.io')\n"
    told = "json.dumps({'tokens': tokens, 'run': os.environ['CRONPLANE_RUN_ID'], 'secret_word': 'plover'})"
    await add_container(f"{look}open('/dev/termination-log', 'w').write({told})")
    start_containers()
    database.set_clock(DUE)
    await until(ENDED)
    [[run_id, status, reason, result]] = database.execute("SELECT id, status, reason, result FROM scheduler.cron_runs")
    assert (status, reason) == ("completed", "Completed")
    assert result == {"tokens": False, "run": str(run_id), "secret_word": "plover"}
    job = only_job(kubectl, installation)
    name, here = job["metadata"]["name"], ("--namespace", installation.runs)
    kubectl.wait(SETTLED, f"job/{name}", *here)
    assert database.execute("SELECT log FROM scheduler.attempt_jobs") == [("looked\n",)]
    [pod] = kubectl.read("pods", *here)["items"]
    assert "volumes" not in pod["spec"]
    told_elsewhere = kubectl.read("crons,events", "--namespace", installation.tenant)
    assert "plover" not in json.dumps(told_elsewhere) + json.dumps(kubectl.read("events", *here))


ENDINGS = {
    "an exit code": ("raise SystemExit(7)", {}, "error", "ExitCode"),
    "more memory than its limit": ("b'x' * 2**28", {"limits": {"memory": "32Mi"}}, "error", "OutOfMemory"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_how_a_container_ended_is_the_end_of_its_attempt(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, ending: str
) -> None:
    program, resources, status, reason = ENDINGS[ending]
    await add_container(f"{SPEAK.format('last words')}\n{program}", resources=resources)
    start_containers()
    database.set_clock(DUE)
    await until(ENDED)
    assert database.execute(RUN) == [(status, reason, 1)]
    [[error, result]] = database.execute("SELECT error, result FROM scheduler.cron_runs")
    assert (error["type"], error["message"], result) == (reason, "last words", None)


async def test_a_container_that_fails_is_retried_in_a_job_of_its_own(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    by_attempt = "import os; raise SystemExit(int(os.environ['CRONPLANE_ATTEMPT']) % 2)"
    await add_container(by_attempt, max_attempts=2, backoff_initial=timedelta(0))
    start_containers()
    database.set_clock(DUE)
    await until(ENDED)
    assert database.execute(RUN) == [("completed", "Completed", 2)]
    assert len(kubectl.read("jobs", "--namespace", installation.runs)["items"]) == 2


async def test_a_container_that_is_cancelled_is_told_to_end_and_its_log_is_kept(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT)
    start_containers()
    database.set_clock(DUE)
    name = await let_in(until, kubectl, installation)
    here = ("--namespace", installation.runs)
    database.execute("UPDATE scheduler.cron_runs SET cancel_requested_at = scheduler.now()")
    kubectl.wait("delete", f"job/{name}", *here)
    await until(ENDED)
    assert kubectl.read("pods", *here)["items"] == []
    assert database.execute(RUN) == [("cancelled", "CancelRequested", 1)]
    assert database.execute("SELECT outcome FROM scheduler.cron_attempts") == [("cancelled",)]
    assert database.execute("SELECT starts_with(log, 'entered') FROM scheduler.attempt_jobs") == [(True,)]


async def test_a_container_that_runs_past_its_deadline_has_timed_out(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT, timeout=timedelta(minutes=5))
    start_containers()
    database.set_clock(DUE)
    name = await let_in(until, kubectl, installation)
    here = ("--namespace", installation.runs)
    seconds = kubectl.read(f"job/{name}", *here)["spec"]["activeDeadlineSeconds"]
    assert 300 <= seconds <= 315
    database.set_clock(DUE + timedelta(minutes=5))
    kubectl.wait("delete", f"job/{name}", *here)
    await until(ENDED)
    assert database.execute(RUN) == [("timed_out", "AttemptTimeout", 1)]


async def test_a_container_whose_job_is_deleted_by_hand_is_lost(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT)
    start_containers()
    database.set_clock(DUE)
    name = await let_in(until, kubectl, installation)
    kubectl("delete", f"job/{name}", "--namespace", installation.runs)
    await until(ENDED)
    assert database.execute(RUN) == [("lost", "JobDeleted", 1)]


async def test_a_container_whose_pod_is_evicted_is_lost_and_not_entered_again(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT.replace("exit(0)", "exit(1)"))
    start_containers()
    database.set_clock(DUE)
    await let_in(until, kubectl, installation)
    here = ("--namespace", installation.runs)
    [pod] = kubectl.read("pods", *here)["items"]
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/{installation.runs}/pods/{name}/eviction"
    kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(eviction))
    await until(ENDED)
    assert database.execute(RUN) == [("lost", "Evicted", 1)]
    assert len(kubectl.read("jobs", *here)["items"]) == 1


async def test_an_image_that_is_not_allowed_any_more_is_refused_when_it_is_to_run(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT, max_attempts=3)
    start_containers(images={"localhost/cronplane:other": "*"})
    database.set_clock(DUE)
    await until(ENDED)
    assert database.execute(RUN) == [("error", "ValidatorFailed", 1)]
    assert kubectl.read("jobs", "--namespace", installation.runs)["items"] == []


async def test_an_image_that_cannot_be_pulled_is_told_and_ends_the_attempt(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    await add_container(WAIT, image="localhost/nowhere:none")
    start_containers(images={"localhost/nowhere": "*"}, pod_start_timeout=20)
    database.set_clock(DUE)
    await until("SELECT bool_and(status = 'running' AND reason = 'ImagePull') FROM scheduler.cron_runs")
    await until(ENDED)
    assert database.execute(RUN) == [("error", "ImagePull", 1)]
    kubectl.wait("delete", "jobs", "--all", "--namespace", installation.runs)


async def test_an_image_whose_user_is_root_does_not_run_and_the_run_says_so(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, root_image: str
) -> None:
    await add_container(WAIT, image=root_image)
    start_containers(images={root_image: "*"})
    database.set_clock(DUE)
    await until("SELECT bool_and(reason = 'PodConfiguration') FROM scheduler.cron_runs")
    [[message]] = database.execute("SELECT message FROM scheduler.cron_runs")
    assert "root" in message


async def test_an_image_whose_user_is_root_runs_as_the_user_that_the_profile_names(
    *, add_container: Any, database: Any, start_containers: Any, until: Any, root_image: str
) -> None:
    await add_container(f"import os\n{SPEAK.format('')}\n{SPEAK.replace('{!r}', 'str(os.getuid())')}", image=root_image)
    start_containers(images={root_image: "*"}, pod_profiles=json.dumps({"container": {"run_as_user": 1234}}))
    database.set_clock(DUE)
    await until(ENDED)
    assert database.execute("SELECT result FROM scheduler.cron_runs") == [({"message": "1234"},)]


CRASHES = {
    "before the gate's commit": ("job-start-commit 1 kill", ("queued", 0), True),
    "between the gate and the letting go": ("job-start-committed 1 kill", ("running", 1), True),
    "after the letting go": ("job-resumed 1 kill", ("running", 1), False),
}


@pytest.mark.parametrize("crash", CRASHES)
async def test_what_an_operator_leaves_that_dies_at_the_gate_is_entered_once_under_its_successor(
    *,
    add_container: Any,
    database: Any,
    start_containers: Any,
    until: Any,
    kubectl: Any,
    installation: Any,
    crash: str,
) -> None:
    failpoint, left_behind, is_suspended = CRASHES[crash]
    await add_container("print('entered')")
    first = start_containers(failpoint=failpoint)
    first.log.wait_for("became leader")
    database.set_clock(DUE)
    first.wait_killed()
    assert database.execute("SELECT status, attempts FROM scheduler.cron_runs") == [left_behind]
    job = only_job(kubectl, installation)
    assert job["spec"]["suspend"] is is_suspended
    database.set_clock(DUE + timedelta(seconds=25))
    start_containers()
    await until(ENDED)
    assert database.execute(RUN) == [("completed", "Completed", 1)]
    here = ("--namespace", installation.runs)
    kubectl.wait(SETTLED, f"job/{job['metadata']['name']}", *here)
    assert database.execute("SELECT uid, log FROM scheduler.attempt_jobs") == [(job["metadata"]["uid"], "entered\n")]
    assert len(kubectl.read("pods", *here)["items"]) == 1


async def test_a_job_of_what_the_cron_said_before_is_made_anew_before_the_gate(
    *,
    add_container: Any,
    database: Any,
    start_containers: Any,
    until: Any,
    kubectl: Any,
    installation: Any,
) -> None:
    await add_container(SPEAK.format("before"))
    first = start_containers(failpoint="job-start-commit 1 kill")
    first.log.wait_for("became leader")
    database.set_clock(DUE)
    first.wait_killed()
    old = only_job(kubectl, installation)["metadata"]["uid"]
    now_says = json.dumps(["python", "-c", SPEAK.format("now")])
    database.execute(
        "UPDATE scheduler.cron_jobs"
        " SET execution_payload = jsonb_set(execution_payload, '{container,command}', CAST(%s AS jsonb))",
        [now_says],
    )
    database.set_clock(DUE + timedelta(seconds=25))
    start_containers()
    await until(ENDED)
    assert database.execute("SELECT status, result FROM scheduler.cron_runs") == [("completed", {"message": "now"})]
    assert only_job(kubectl, installation)["metadata"]["uid"] != old
