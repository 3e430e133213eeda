"""How late Jobs are made when 500 crons that run in pods are due at one instant, beside as many Kubernetes CronJobs.

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

sys.path.insert(0, str(Path(__file__).parent / "distributions"))

from bench.role import SCHEDULED, running, wait_for
from bench.server import add_crons, connect, fresh_database, running_server
from cronplane_cli.resource_definitions_page import page
from cronplane_core.kubernetes_client import Body, KubernetesClient, ResourceKind
from cronplane_entries.registry import load_entries

CRONS = 500
# Theirs takes as many times as long at least.
AIM = 30
_CRON_JOBS = ResourceKind(group="batch", version="v1", plural="cronjobs")
# From now to the due instant: enough for both to have taken up what is due.
_LEAD = timedelta(seconds=25)
_PATIENCE = 180.0
_KUBECTL = shutil.which("kubectl") or "kubectl"
_MINUTE = timedelta(minutes=1)


class Watch:
    """Notes when each Job of a namespace is seen first, by this machine's clock."""

    def __init__(self, namespace: str) -> None:
        command = [_KUBECTL, "get", "jobs", "--namespace", namespace, "--watch", "--output", "name"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self._seen: dict[str, float] = {}
        self._all = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._seen.setdefault(line, time.time())
            if len(self._seen) >= CRONS:
                self._all.set()

    def seconds_after(self, due: datetime) -> list[float]:
        """Wait for every Job, and give how late each was."""
        if not self._all.wait(_PATIENCE):
            sys.exit(f"Only {len(self._seen)} of {CRONS} Jobs were made")
        self._process.terminate()
        self._reader.join()
        return [seen - due.timestamp() for seen in self._seen.values()]


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


def measure_ours() -> tuple[list[float], float, float]:
    """Give how late each Job was, and the operator's seconds of CPU and megabytes from before the due instant on."""
    with running_server() as server, namespace("bench-cronplane") as home:
        url = fresh_database(server, "ours")
        kubectl("create", "serviceaccount", "cronplane-run", "--namespace", home)
        settings = {
            "CRONPLANE_KUBECONFIG": os.environ["KUBECONFIG"],
            "CRONPLANE_INSTALLATION": home,
            "CRONPLANE_RELEASE_NAMESPACE": home,
            "CRONPLANE_RUN_IMAGE": "localhost/nothing:none",
            "CRONPLANE_ENTRY_BENCH_NO_OP_EXECUTION": "pod",
        }
        due = next_due()
        with connect(url) as connection:
            add_crons(connection, count=CRONS, cron_expr=expression(due))
            with running("operator", url, settings) as operator:
                wait_for(connection, SCHEDULED, CRONS)
                watch, before = Watch(home), operator.cpu_seconds()
                late = watch.seconds_after(due)
                return late, operator.cpu_seconds() - before, operator.resident_megabytes()


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
                await client.create(_CRON_JOBS, _cron_job(f"cron-{number}", due), namespace=home)

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
