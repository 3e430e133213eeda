"""The table of faults: an API server that is away, refuses, loses answers or falls silent, and what becomes of runs.

Each test ends with the checker and the ledger, which bodies in pods write over HTTP.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

DUE = datetime(2026, 6, 1, 12, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RUNS = "SELECT status, reason, attempts FROM scheduler.cron_runs"
ENDED = "SELECT count(*) = %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
QUEUED = "SELECT count(*) = 1 FROM scheduler.cron_runs WHERE status = 'queued'"
SETTLED = r"jsonpath={.metadata.labels.crons\.cronplane\.dev/settled}=true"
LAUNCH = "POST /apis/batch"
LATEST = "SELECT max(started_at - scheduled_for) FROM scheduler.cron_runs"
IN_TIME = timedelta(seconds=5)
# Seconds.
AT_MOST_LATE = 70


def jobs_and_pods(kubectl: Any, installation: Any) -> tuple[int, int]:
    """Count what there is of runs."""
    here = ("--namespace", installation.runs)
    return len(kubectl.read("jobs", *here)["items"]), len(kubectl.read("pods", *here)["items"])


async def test_api_server_restart_runs_in_pods_end_and_those_that_wait_have_one_job_each(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    program: Any,
    kubectl: Any,
    installation: Any,
    until: Any,
    ledger_server: Any,
    assert_nothing_is_lost: Any,
) -> None:
    await add_work("under way", held=True)
    await add_work("to be launched", cron_expr="2 12 * * *")
    start_with_pods("keep_ledger")
    database.set_clock(DUE)
    await ledger_server.until("entered")
    program("kill", "kube-apiserver")
    database.set_clock(DUE + MINUTE)
    # Claimed, while there is nobody to make its Job, nor to review the token of the one that ends.
    await until(QUEUED)
    ledger_server.let_go()
    await ledger_server.until("effect")
    assert database.execute(ENDED, [0]) == [(True,)]
    program("start", "kube-apiserver")
    await until(ENDED, [2])
    assert database.execute(RUNS) == [("completed", "Completed", 1)] * 2
    assert jobs_and_pods(kubectl, installation) == (2, 2)
    await assert_nothing_is_lost()


async def test_launches_that_are_refused_or_whose_answers_are_lost_are_made_once_the_server_takes_them(
    *,
    add_work: Any,
    database: Any,
    start_with_pods: Any,
    kubernetes_relay: Any,
    kubectl: Any,
    installation: Any,
    until: Any,
    assert_nothing_is_lost: Any,
) -> None:
    relay, kubeconfig = kubernetes_relay
    faults = [
        {"fault": "refuse", "status": 429, "retry_after": 1, "limit": 3},
        {"fault": "refuse", "status": 503, "limit": 3},
        {"fault": "cut", "limit": 3},
        {"fault": "lose", "limit": 1},
    ]
    for number, _ in enumerate(faults, 1):
        await add_work(f"work {number}", cron_expr=f"{number} 12 * * *")
    operator = start_with_pods("keep_ledger", kubeconfig=kubeconfig)
    operator.log.wait_for("became leader")
    for number, fault in enumerate(faults, 1):
        relay.order(**fault, only=LAUNCH)
        database.set_clock(DUE + (number - 1) * MINUTE)
        await until(ENDED, [number])
        # Before the clock moves on: a Job that is not over long after its run is taken away.
        kubectl.wait(SETTLED, "jobs", "--all", "--namespace", installation.runs)
        assert jobs_and_pods(kubectl, installation) == (number, number)
    assert relay.told.count(LAUNCH) == sum(int(str(fault["limit"])) for fault in faults)
    assert database.execute(RUNS) == [("completed", "Completed", 1)] * len(faults)
    await assert_nothing_is_lost()


async def test_watches_that_are_cut_or_silent_make_a_resource_late_by_at_most_70_s_and_no_fire(
    *,
    add_work: Any,
    database: Any,
    start_operator: Any,
    kubernetes_relay: Any,
    kubectl: Any,
    installation: Any,
    until: Any,
    assert_nothing_is_lost: Any,
) -> None:
    relay, kubeconfig = kubernetes_relay
    await add_work(cron_expr="* * * * *")
    start_operator(kubeconfig=kubeconfig)
    mirror = ("cron/work", "--namespace", installation.tenant)
    kubectl.wait("create", *mirror)
    database.set_clock(DUE)
    kubectl.wait("jsonpath={.status.last_result}=completed", *mirror)
    edit = json.dumps({"spec": {"cron_expr": "1 1 1 1 1"}})
    relay.order(fault="silence", only="watch=true")
    relay.told.wait_for("silence GET")
    kubectl("patch", *mirror, "--type=merge", "--patch", edit)
    kubectl.wait("jsonpath={.spec.cron_expr}=* * * * *", *mirror, seconds=AT_MOST_LATE)
    relay.order(fault="cut", only="watch=true")
    relay.told.wait_for("cut GET")
    relay.order()
    kubectl("patch", *mirror, "--type=merge", "--patch", edit)
    kubectl.wait("jsonpath={.spec.cron_expr}=* * * * *", *mirror, seconds=AT_MOST_LATE)
    # While the watches were silent it fired again.
    await until("SELECT count(*) >= 2 FROM scheduler.cron_runs WHERE status = 'completed'")
    await assert_nothing_is_lost()
    assert database.execute(LATEST) < [(IN_TIME,)]
