"""How late Jobs are made when 500 crons that run in pods are due at one instant, beside as many Kubernetes CronJobs.

Then what the operator costs with 10,000 crons mirrored: until all are, while nothing happens, and in the same burst.

It needs a cluster (KUBECONFIG, `kubectl`), best one without a node, so that no pod takes the time of others: what is
measured is from the due instant to the Job's appearance in a watch. Both have the API server for themselves, one minute
after the other.
"""

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

from psycopg import Connection
from sqlalchemy import URL

sys.path.insert(0, str(Path(__file__).parent / "distributions"))

from bench.role import SCHEDULED, RunningRole, running, wait_for
from bench.server import add_crons, connect, fresh_database, running_server
from cronplane_cli.resource_definitions_page import page
from cronplane_core.kubernetes_client import CRONJOBS, JOBS, Body, KubernetesClient
from cronplane_entries.registry import load_entries

CRONS = 500
MIRRORED = 10_000
# Seconds: how soon all are to be mirrored for the first time, and how long nothing happens.
FIRST_MIRROR_AIM = 300
_IDLE = 60.0
_NEVER_SOON = "0 0 29 2 *"
_IN_POD = "bench_in_pod"
# Crons that fire each minute meanwhile, in the runner.
FIRING = 100
_LAGS = """
    SELECT extract(epoch FROM started_at - scheduled_for) FROM scheduler.cron_runs WHERE started_at IS NOT NULL
"""
_MIRRORED = "SELECT count(*) FROM scheduler.cron_mirrors WHERE uid IS NOT NULL"
# Theirs takes as many times as long at least.
AIM = 30
_ADDED = b'{"type":"ADDED"'
# From now to the due instant: enough for both to have taken up what is due.
_LEAD = timedelta(seconds=25)
_PATIENCE = 180.0
_KUBECTL = shutil.which("kubectl") or "kubectl"
_MINUTE = timedelta(minutes=1)

_PAUSE = """
    WITH paused AS (
        UPDATE scheduler.cron_jobs SET enabled = false, generation = 2, effective_from = scheduler.now()
        WHERE cron_expr = '* * * * *' RETURNING *
    )
    INSERT INTO scheduler.cron_job_versions (cron_id, generation, effective_from, cron_expr, tz, enabled, timeout)
    SELECT id, generation, effective_from, cron_expr, tz, enabled, timeout FROM paused
"""


class Watch:
    """Notes when each Job of a namespace is seen first, by this machine's clock."""

    def __init__(self, namespace: str) -> None:
        # As it goes over the wire: reading every object would take the time of what is measured.
        command = [_KUBECTL, "get", "--raw", f"{JOBS.path(namespace=namespace)}?watch=true"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._seen: list[float] = []
        self._all = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(_ADDED):
                self._seen.append(time.time())
            if len(self._seen) >= CRONS:
                self._all.set()

    def seconds_after(self, due: datetime) -> list[float]:
        """Wait for every Job, and give how late each was."""
        if not self._all.wait(_PATIENCE):
            sys.exit(f"Only {len(self._seen)} of {CRONS} Jobs were made")
        self._process.terminate()
        self._reader.join()
        return [seen - due.timestamp() for seen in self._seen]


def kubectl(*arguments: str, given: str | None = None) -> None:
    """Call kubectl; what it says is shown if it fails."""
    subprocess.run([_KUBECTL, *arguments], input=given, text=True, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def namespace(prefix: str) -> Iterator[str]:
    """Make a namespace for as long as the block lasts."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "namespace", "--wait=false", name)


def next_due() -> datetime:
    """Give a whole minute that is soon."""
    soon = datetime.now(UTC) + _LEAD
    return soon.replace(second=0, microsecond=0) + _MINUTE


def expression(due: datetime) -> str:
    """Write a schedule that falls on this instant, and on no other of the day."""
    return f"{due.minute} {due.hour} * * *"


@contextmanager
def operator_on(url: URL, home: str) -> Iterator[RunningRole]:
    """Run an operator in a namespace."""
    kubectl("create", "serviceaccount", "cronplane-run", "--namespace", home)
    settings = {
        "CRONPLANE_KUBECONFIG": os.environ["KUBECONFIG"],
        "CRONPLANE_INSTALLATION": home,
        "CRONPLANE_RELEASE_NAMESPACE": home,
        "CRONPLANE_RUN_IMAGE": "localhost/nothing:none",
    }
    with running("operator", url, settings) as operator:
        yield operator


def measure_ours() -> tuple[list[float], float, float]:
    """Give how late each Job was, and the operator's seconds of CPU and megabytes from before the due instant on."""
    with running_server() as server, namespace("bench-cronplane") as home:
        url = fresh_database(server, "ours")
        due = next_due()
        with connect(url) as connection:
            add_crons(connection, count=CRONS, cron_expr=expression(due), entrypoint=_IN_POD)
            with operator_on(url, home) as operator:
                wait_for(connection, SCHEDULED, CRONS)
                watch, before = Watch(home), operator.cpu_seconds()
                late = watch.seconds_after(due)
                return late, operator.cpu_seconds() - before, operator.resident_megabytes()


def report_mirrored() -> None:
    """Print what the operator costs with many crons mirrored, and how late others fire meanwhile."""
    print(f"The operator with {MIRRORED} crons mirrored")
    with running_server() as server, namespace("bench-mirror") as home:
        url = fresh_database(server, "mirrored")
        with connect(url) as connection:
            add_crons(connection, count=MIRRORED, cron_expr=_NEVER_SOON)
            add_crons(connection, count=FIRING, cron_expr="* * * * *", organization="firing")
            with operator_on(url, home) as operator:
                _report_first_mirror(connection, operator)
                _report_idle(operator)
                _report_burst(connection, operator, home)


def _report_first_mirror(connection: Connection[Any], operator: RunningRole) -> None:
    began = time.monotonic()
    wait_for(connection, _MIRRORED, MIRRORED + FIRING)
    seconds, cpu = time.monotonic() - began, operator.cpu_seconds()
    lags = [float(str(lag)) for (lag,) in connection.execute(_LAGS.encode()).fetchall()]
    print(f"  first mirror: {seconds:.0f} s (at most {FIRST_MIRROR_AIM} is the aim), {cpu:.0f} s of CPU")
    print(f"  {len(lags)} fires meanwhile: started {1000 * quantiles(lags, n=100)[98]:.0f} ms late at p99")
    connection.execute(_PAUSE.encode())


def _report_idle(operator: RunningRole) -> None:
    time.sleep(_IDLE)
    before = operator.cpu_seconds()
    time.sleep(_IDLE)
    share = (operator.cpu_seconds() - before) / _IDLE
    print(f"  idle: {share:.1%} of a core, {operator.resident_megabytes():.0f} MB")


def _report_burst(connection: Connection[Any], operator: RunningRole, home: str) -> None:
    due, before = next_due(), operator.cpu_seconds()
    add_crons(connection, count=CRONS, cron_expr=expression(due), organization="burst", entrypoint=_IN_POD)
    p99 = quantiles(Watch(home).seconds_after(due), n=100)[98]
    cpu, megabytes = operator.cpu_seconds() - before, operator.resident_megabytes()
    print(f"  burst of {CRONS}: Jobs {p99:.2f} s late at p99, {cpu:.1f} s of CPU, {megabytes:.0f} MB")


def measure_theirs() -> list[float]:
    """Give how late each Job of a CronJob was."""
    with namespace("bench-cronjobs") as home:
        due = next_due() + _MINUTE
        asyncio.run(_make_cron_jobs(home, due))
        return Watch(home).seconds_after(due)


async def _make_cron_jobs(home: str, due: datetime) -> None:
    room = asyncio.Semaphore(16)
    async with KubernetesClient.connected(kubeconfig=Path(os.environ["KUBECONFIG"])) as client:

        async def make(number: int) -> None:
            async with room:
                await client.create(CRONJOBS, _cron_job(f"cron-{number}", due), namespace=home)

        await asyncio.gather(*(make(number) for number in range(CRONS)))


def _cron_job(name: str, due: datetime) -> Body:
    container = {"name": "nothing", "image": "localhost/nothing:none"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    spec = {"schedule": expression(due), "timeZone": "Etc/UTC", "jobTemplate": {"spec": {"template": pod}}}
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}


def report() -> None:
    """Print the 99th percentiles."""
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", given=page())
    ours, cpu, megabytes = measure_ours()
    theirs = measure_theirs()
    print(f"From the due instant to the Job, {CRONS} due at once")
    p99: dict[str, float] = {}
    for name, late in (("cronplane", ours), ("Kubernetes CronJobs", theirs)):
        p50, p99[name] = quantiles(late, n=100)[49], quantiles(late, n=100)[98]
        print(f"  {name:<37} {p99[name]:>9.2f} s p99   (p50 {p50:.2f} s, longest {max(late):.2f} s)")
    print(f"  {p99['Kubernetes CronJobs'] / p99['cronplane']:.1f} times as fast; at least {AIM} is the aim")
    print(f"  operator: {cpu:.1f} s of CPU from half a minute before until all were made, {megabytes:.0f} MB")


if __name__ == "__main__":
    load_entries()
    report()
    report_mirrored()
