"""The table of metrics tells of all that is served, and of nothing else."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from cronplane_api.http_metrics import HttpMetrics
from cronplane_core.metrics import ProcessMetrics
from cronplane_operator.runner_metrics import RunnerMetrics

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "metrics.md").read_text(encoding="utf-8")
RUNBOOK = (DOCS / "runbook.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*?) ?\| (both|API|runner) \| \S.*\|$", re.MULTILINE)


def documented(*roles: str) -> set[tuple[str, str, str]]:
    return {(name, kind, labels) for name, kind, labels, role in ROW.findall(GUIDE) if role in roles}


def served(registry: CollectorRegistry) -> set[tuple[str, str, str]]:
    labels = {
        name: ", ".join(getattr(collector, "_labelnames", ()))
        for collector, names in registry._collector_to_names.items()
        for name in names
    }
    found = set()
    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        if metric.type == "info":
            found.add((f"{metric.name}_info", "gauge", "version"))
        else:
            found.add((name, metric.type, labels[name]))
    return found


def test_every_row_of_the_table_can_be_read() -> None:
    assert len(ROW.findall(GUIDE)) == sum(line.startswith("| `") for line in GUIDE.splitlines())


def test_the_table_tells_of_all_that_a_runner_serves() -> None:
    registry = ProcessMetrics().registry
    RunnerMetrics(registry)
    assert served(registry) == documented("both", "runner")


def test_the_table_tells_of_all_that_the_api_serves() -> None:
    registry = ProcessMetrics().registry
    HttpMetrics(registry)
    assert served(registry) == documented("both", "API")


def test_the_alarms_ask_for_metrics_that_there_are() -> None:
    known = {name for name, *_ in documented("both", "API", "runner")}
    expressions = re.findall(r"^```promql\n(.*?)```", RUNBOOK, re.MULTILINE | re.DOTALL)
    asked = {name for each in expressions for name in re.findall(r"(?:cronplane|process)_\w+", each)}
    assert asked
    assert {name.removesuffix("_bucket") for name in asked} <= known
