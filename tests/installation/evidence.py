"""What is kept of a cluster when a test fails: what there is in the namespaces, what happened, and what pods said.

Secrets are left out.
"""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.kubectl import Kubectl

_KINDS = "all,configmaps,persistentvolumeclaims,networkpolicies,crons,runners"
_LOOKS = {
    "objects.txt": ("get", _KINDS, "--output=wide", "--show-labels"),
    "objects.yaml": ("get", _KINDS, "--output=yaml"),
    "describe.txt": ("describe", "pods,jobs,deployments,statefulsets,persistentvolumeclaims,crons,runners"),
    "events.txt": ("get", "events", "--sort-by=.lastTimestamp", "--output=wide"),
}


def keep(directory: Path, *, namespaces: Iterable[str]) -> None:
    """Write what there is to see of these namespaces into a folder each."""
    for namespace in namespaces:
        kubectl = Kubectl(namespace=namespace)
        place = directory / namespace
        place.mkdir(parents=True, exist_ok=True)
        for name, look in _LOOKS.items():
            _write(place / name, kubectl.command(*look))
        for pod in _said(kubectl.command("get", "pods", "--output=name")).split():
            logs = ("logs", pod, "--all-containers", "--prefix", "--timestamps")
            file = place / f"{pod.partition('/')[2]}.log"
            _write(file, kubectl.command(*logs))
            _write(file.with_suffix(".previous.log"), kubectl.command(*logs, "--previous"))


def _write(file: Path, command: list[str]) -> None:
    if said := _said(command):
        file.write_text(said, encoding="utf-8")


def _said(command: list[str]) -> str:
    """Give what there is to see, as far as it is still there."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
