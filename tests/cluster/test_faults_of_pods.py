"""The table of faults: what happens to the pods of runs, to their Jobs and to their node.

Each test ends with the checker and the ledger, which bodies in pods write over HTTP.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx2
import pytest

DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
RUN = "SELECT status, reason, attempts FROM scheduler.cron_runs"
ATTEMPTS = "SELECT number, outcome, reason FROM scheduler.cron_attempts ORDER BY number"
ENDED = "SELECT count(*) = %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
LOST = "SELECT count(*) = %s FROM scheduler.cron_attempts WHERE outcome = 'lost'"
FIRST_REASONS = """
    SELECT cron.name, attempt.reason FROM scheduler.cron_attempts attempt
    JOIN scheduler.cron_runs run ON run.id = attempt.run_id
    JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
    WHERE attempt.number = 1
"""
IS_QUEUED = "SELECT bool_and(status = 'queued' AND reason = %s) FROM scheduler.cron_runs"
HEARTBEATS_STOP_COUNTING = timedelta(seconds=61)
NOT_BELIEVED_ANY_MORE = timedelta(seconds=11)
SOON = timedelta(seconds=1)


class Pods:
    """The pods of runs, by the cron that they are of."""

    def __init__(self, kubectl: Any, namespace: str) -> None:
        self._kubectl = kubectl
        self._here = ("--namespace", namespace)

    def of(self, cron: Any) -> list[Any]:
        """Read a cron's, the oldest first."""
        selector = f"--selector=crons.cronplane.dev/cron-id={cron.id}"
        found = self._kubectl.read("pods", selector, *self._here)["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def running(self, cron: Any) -> Any:
        """Wait for its only pod."""
        selector = f"--selector=crons.cronplane.dev/cron-id={cron.id}"
        self._kubectl.wait("create", "pods", selector, *self._here)
        self._kubectl.wait("jsonpath={.status.phase}=Running", "pods", selector, *self._here)
        [pod] = self.of(cron)
        return pod

    def evict(self, pod: Any) -> None:
        """Evict a pod as a drain does (policy/v1 Eviction)."""
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace")}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = "/api/v1/namespaces/{namespace}/pods/{name}/eviction".format(**metadata)
        self._kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(body))

    def delete(self, pod: Any, *options: str) -> None:
        self._kubectl("delete", f"pod/{pod['metadata']['name']}", *options, *self._here)

    def remove(self, pod: Any) -> None:
        """Remove a pod whose node is gone, as an administrator does: without waiting for kubelet and Job."""
        self.delete(pod, "--force", "--grace-period=0", "--wait=false")
        unheld = json.dumps({"metadata": {"finalizers": None}})
        self._kubectl("patch", f"pod/{pod['metadata']['name']}", *self._here, "--type=merge", "--patch", unheld)

    def delete_job(self, pod: Any, *options: str) -> None:
        [owner] = pod["metadata"]["ownerReferences"]
        self._kubectl("delete", f"job/{owner['name']}", *options, *self._here)

    def token(self, pod: Any) -> str:
        """Read from a running pod what it proves itself by."""
        command = ("cat", "/var/run/secrets/cronplane/token")
        return str(self._kubectl("exec", pod["metadata"]["name"], *self._here, "--", *command)).strip()


@pytest.fixture
def pods(kubectl: Any, installation: Any) -> Pods:
    return Pods(kubectl, installation.runs)


@pytest.fixture
def drain(kubectl: Any, request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Drain a node of the pods of runs; when the test ends it takes pods again."""

    def drain(node: str, installation: str) -> None:
        request.addfinalizer(lambda: kubectl("uncordon", node))
        selector = f"--pod-selector=crons.cronplane.dev/installation={installation}"
        kubectl("drain", node, selector, "--delete-emptydir-data", "--timeout=60s")

    return drain


async def test_a_pod_that_is_drained_before_the_gate_has_a_replacement_that_runs_once_a_node_takes_it(
    *,
    add_work: Any,
    database: Any,
    start_pod_operator: Any,
    start_pod_api: Any,
    pods: Pods,
    drain: Any,
    until: Any,
    kubectl: Any,
    installation: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    work = await add_work()
    # There is no API yet, so that the pod waits at the gate.
    start_pod_operator(("keep_ledger",))
    database.set_clock(DUE)
    pod = pods.running(work)
    drain(pod["spec"]["nodeName"], installation.name)
    await until(IS_QUEUED, ["Unschedulable"])
    kubectl("uncordon", pod["spec"]["nodeName"])
    start_pod_api()
    await until(ENDED, [1])
    assert database.execute(RUN) == [("completed", "Completed", 1)]
    [another] = pods.of(work)
    assert another["metadata"]["uid"] != pod["metadata"]["uid"]
    assert another["metadata"]["ownerReferences"] == pod["metadata"]["ownerReferences"], "of the same Job"
    assert ledger_server.count("entered") == 1
    await assert_nothing_is_lost()


async def test_what_takes_a_pod_or_its_job_away_mid_body_cancels_the_executor_and_its_attempt_is_lost_and_retried(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    pods: Pods,
    until: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    ways: dict[str, Callable[[Any], None]] = {
        "evicted": pods.evict,
        "pod deleted": lambda pod: pods.delete(pod, "--wait=false"),
        "job deleted": lambda pod: pods.delete_job(pod, "--wait=false"),
        "job deleted without its pod": lambda pod: pods.delete_job(pod, "--cascade=orphan"),
    }
    crons = {way: await add_work(way, held=True, max_attempts=2, backoff_initial=SOON) for way in ways}
    start_with_pods("keep_ledger")
    database.set_clock(DUE)
    await ledger_server.until("entered", times=len(ways))
    for way, cron in crons.items():
        ways[way](pods.running(cron))
    await until(LOST, [len(ways)])
    # The one whose Job alone was deleted is told to end by its next heartbeat.
    await ledger_server.until("cancelled", times=len(ways) - 1)
    ledger_server.let_go()
    await until(ENDED, [len(ways)])
    assert database.execute(RUN) == [("completed", "Completed", 2)] * len(ways)
    reasons = dict(database.execute(FIRST_REASONS))
    assert reasons.pop("job deleted") in {"JobDeleted", "PodTerminated"}, "whichever is told first"
    terminated = dict.fromkeys(("evicted", "pod deleted"), "PodTerminated")
    assert reasons == terminated | {"job deleted without its pod": "JobDeleted"}
    await assert_nothing_is_lost()


async def test_a_node_that_goes_away_makes_its_attempt_lost_and_the_old_pod_is_refused_when_it_comes_back(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    start_relay: Any,
    api_port: int,
    host: str,
    program: Any,
    pods: Pods,
    until: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    api = f"http://127.0.0.1:{api_port}"
    network = start_relay(api, host=host)
    work = await add_work(held=True, max_attempts=2, backoff_initial=SOON)
    start_with_pods("keep_ledger", run_api_url=f"http://{host}:{network.port}")
    database.set_clock(DUE)
    await ledger_server.until("entered")
    pod = pods.running(work)
    token = pods.token(pod)
    program("kill", "kubelet")
    network.order(fault="cut")
    network.told.wait_for("heartbeat")
    database.set_clock(DUE + HEARTBEATS_STOP_COUNTING)
    await until(LOST, [1])
    assert database.execute(ATTEMPTS) == [(1, "lost", "HeartbeatsStopped")]
    [(run_id,)] = database.execute("SELECT id FROM scheduler.cron_runs")

    def ask() -> int:
        answer = httpx2.post(
            f"{api}/runs/{run_id}/attempts/1/start",
            headers={"Authorization": f"Bearer {token}"},
            json={"nonce": str(uuid4()), "location": "a pod of old"},
        )
        return int(answer.status_code)

    assert ask() == 409, "the pod is there, and the attempt is over"
    pods.remove(pod)
    [(now,)] = database.execute("SELECT scheduler.now()")
    database.set_clock(now + NOT_BELIEVED_ANY_MORE)
    assert ask() == 401, "the pod is gone"
    network.order()
    program("start", "kubelet")
    ledger_server.let_go()
    await until(ENDED, [1])
    assert database.execute(ATTEMPTS) == [(1, "lost", "HeartbeatsStopped"), (2, "completed", "Completed")]
    await assert_nothing_is_lost()
