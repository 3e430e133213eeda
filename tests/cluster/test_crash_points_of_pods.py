"""The table of crash points, where a Job and its pod are concerned: what dies between two effects leaves what is said.

Operators die by SIGKILL. In a pod the process ends at once, as nothing in a pod may kill its first process; Kubernetes
sees no difference. Each test ends with the checker and the ledger.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
RUN = "SELECT status, reason, attempts FROM scheduler.cron_runs"
ENDED = "SELECT count(*) = %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
SOON = timedelta(seconds=1)
# What becomes of an attempt, and whether its body was entered and had its effect, by the place where it is broken off.
CRASHES = {
    "attempt-start 1 exit": ("error", "ExitCode", 0, 0),
    "attempt-started 1 exit": ("error", "ExitCode", 0, 0),
    "body 1 kill": ("error", "WorkerKilled", 0, 0),
    "mid-body 1 kill": ("error", "WorkerKilled", 1, 0),
    "attempt-finish 1 exit": ("error", "ExitCode", 1, 1),
    "attempt-finished 1 exit": ("completed", "Completed", 1, 1),
}


@pytest.mark.parametrize("place", ["job-create", "job-created"])
async def test_an_operator_that_dies_over_a_job_is_followed_by_one_that_makes_or_adopts_the_same_job(
    *,
    add_work: Any,
    database: Any,
    start_pod_api: Any,
    start_pod_operator: Any,
    kubectl: Any,
    installation: Any,
    until: Any,
    assert_nothing_is_lost: Any,
    place: str,
) -> None:
    await add_work()
    start_pod_api()
    first = start_pod_operator(("keep_ledger",), failpoint=f"{place} 1 kill", lease_duration=3)
    first.log.wait_for("became leader")
    start_pod_operator(("keep_ledger",), lease_duration=3)
    database.set_clock(DUE)
    first.wait_killed()
    here = ("--namespace", installation.runs)
    left = kubectl.read("jobs", *here)["items"]
    assert len(left) == (1 if place == "job-created" else 0)
    assert database.execute("SELECT count(*) FROM scheduler.attempt_jobs") == [(0,)]
    await until(ENDED, [1])
    assert database.execute(RUN) == [("completed", "Completed", 1)]
    [job] = kubectl.read("jobs", *here)["items"]
    assert [job["metadata"]["uid"]] == [each["metadata"]["uid"] for each in left or [job]]
    assert len(kubectl.read("pods", *here)["items"]) == 1
    await assert_nothing_is_lost()


async def test_an_attempt_that_dies_anywhere_in_its_pod_ends_as_its_job_says_and_the_next_one_goes_on(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    until: Any,
    ledger: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_work(max_attempts=len(CRASHES), backoff_initial=SOON, backoff_maximum=SOON)
    profile = {"environment": {"CRONPLANE_TEST_FAILPOINT": ";".join(CRASHES)}}
    start_with_pods("keep_ledger", pod_profiles=json.dumps({"default": profile}))
    database.set_clock(DUE)
    await until(ENDED, [1])
    assert database.execute(RUN) == [("completed", "Completed", len(CRASHES))]
    attempts = database.execute("SELECT number, outcome, reason FROM scheduler.cron_attempts ORDER BY number")
    written = [line.split() for line in ledger.read_text(encoding="ascii").splitlines()]

    def count(what: str, attempt: int) -> int:
        return sum(1 for line in written if (line[0], int(line[2])) == (what, attempt))

    found = [
        (outcome, reason, count("entered", number), count("effect", number)) for number, outcome, reason in attempts
    ]
    assert found == list(CRASHES.values())
    await assert_nothing_is_lost()


async def test_a_pod_whose_answers_of_the_api_are_lost_asks_again_and_is_the_same_attempt(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    start_relay: Any,
    api_port: int,
    host: str,
    until: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_work(held=True)
    network = start_relay(f"http://127.0.0.1:{api_port}", host=host)
    start_with_pods("keep_ledger", run_api_url=f"http://{host}:{network.port}")
    network.order(fault="lose", only="/start", limit=1)
    database.set_clock(DUE)
    await ledger_server.until("entered")
    network.order(fault="lose", only="/finish", limit=1)
    ledger_server.let_go()
    await until(ENDED, [1])
    network.told.wait_for("lose POST", times=2)
    assert database.execute(RUN) == [("completed", "Completed", 1)]
    await assert_nothing_is_lost()
