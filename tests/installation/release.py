"""A release of the chart, made and changed by `helm` as an operator of a cluster does it."""

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kubectl import Kubectl

CHART = Path(__file__).parents[2] / "helm" / "cronplane"
# Seconds; a whole release on two cores takes a quarter of it.
PATIENCE = 240
_WAITING = ("--wait", "--wait-for-jobs", "--timeout", f"{PATIENCE}s")
_PSQL = """
    export PGPASSWORD="$CRONPLANE_POSTGRES_OWNER_PASSWORD"
    psql --no-psqlrc --host=localhost --username=cronplane --no-align --tuples-only --command="$1" cronplane
"""
_UNDER_WAY = "SELECT count(*) FROM scheduler.cron_runs WHERE status IN ('queued', 'running', 'waiting')"


class HelmError(AssertionError):
    """Helm ended with an error; the message is what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release, named `cronplane` as in the README, in a namespace of its own."""

    namespace: str
    name: str = "cronplane"
    kubectl: Kubectl = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kubectl", Kubectl(namespace=self.namespace, patience=PATIENCE))

    def install(self, *options: str, values: Mapping[str, Any] | None = None) -> str:
        """Install the chart; gives its notes."""
        said = self._helm("install", self.name, str(CHART), *_WAITING, *options, values=values or {})
        return said.stdout.partition("NOTES:\n")[2]

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Upgrade to exactly these values."""
        self._helm("upgrade", self.name, str(CHART), *_WAITING, values=values)

    def rollback(self) -> None:
        """Go back to the revision before."""
        self._helm("rollback", self.name, *_WAITING)

    def test(self) -> str:
        """Run `helm test`; gives what the test said, which helm passes on as messages of its own."""
        return self._helm("test", self.name, "--timeout", f"{PATIENCE}s").stderr

    def uninstall(self) -> None:
        """Uninstall it."""
        self._helm("uninstall", self.name, "--wait", "--timeout", f"{PATIENCE}s")

    def remove(self) -> None:
        """Remove what may be left of it."""
        self._helm("uninstall", self.name, "--ignore-not-found", "--no-hooks", "--wait")

    def check(self) -> str:
        """Have every fire of the record checked; gives the violations, a line each."""
        command = self.kubectl.command("exec", "deployment/cronplane-operator", "--", "cronplane", "check")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode or done.stdout, done.stderr
        return done.stdout

    def sql(self, statement: str) -> list[list[str]]:
        """Run a statement as the owner of the built-in database; gives its rows as text."""
        pod = "statefulset/cronplane-database"
        said = self.kubectl("exec", pod, "--", "sh", "-c", _PSQL, "sh", statement)
        return [line.split("|") for line in said.splitlines()]

    def leader(self) -> str:
        """Name the pod that leads."""
        [[holder]] = self.sql("SELECT holder FROM scheduler.leases")
        return holder.rsplit("-", 2)[0]

    def until_rolled_out(self, *workloads: str) -> None:
        """Wait until all pods of these are there and ready."""
        for workload in workloads:
            self.kubectl("rollout", "status", workload, f"--timeout={PATIENCE}s")

    def until_all_runs_are_over(self) -> None:
        """Ask until no run is under way."""
        give_up = time.monotonic() + PATIENCE
        while (left := self.sql(_UNDER_WAY)) != [["0"]]:
            assert time.monotonic() < give_up, f"runs are still under way: {left}"

    def _helm(
        self, command: str, *arguments: str, values: Mapping[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = [] if values is None else ["--values", "-"]
        done = subprocess.run(
            [shutil.which("helm") or "helm", command, *arguments, "--namespace", self.namespace, *given],
            input=None if values is None else json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HelmError(f"helm {command} {shlex.join(arguments)}: {done.stderr}\n{done.stdout}")
        return done
