"""Every alert of the chart has its section in the runbook, and asks there what it asks in the cluster."""

import re
from typing import Any

from tests.chart.rendering import EVERYTHING, NAMESPACE, ROOT, render

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (\w+)\n\n```promql\n(.*?)```$", re.MULTILINE | re.DOTALL)
OF_THIS_RELEASE = f'{{namespace="{NAMESPACE}", service=~"rel-cronplane-(api|operator)"}}'


def rules() -> list[dict[str, Any]]:
    [group] = render(EVERYTHING).one("PrometheusRule", "rel-cronplane")["spec"]["groups"]
    return list(group["rules"])


def test_the_runbook_has_a_section_for_each_alert_that_asks_the_same() -> None:
    asked = {rule["alert"]: " ".join(rule["expr"].replace(OF_THIS_RELEASE, "").split()) for rule in rules()}
    told = {name: " ".join(expression.split()) for name, expression in SECTION.findall(RUNBOOK)}
    assert asked == told


def test_each_metric_of_an_alert_is_that_of_this_release() -> None:
    for rule in rules():
        metrics = re.findall(r"cronplane_\w+", rule["expr"])
        assert metrics
        assert rule["expr"].count(OF_THIS_RELEASE) == len(metrics)


def test_an_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    sections = set(re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE))
    for rule in rules():
        assert rule["labels"].keys() == {"severity", "team"}
        anchor = rule["annotations"]["runbook_url"].removeprefix("https://cronplane.dev/runbook#")
        assert anchor in {name.lower() for name in sections}
        assert rule["annotations"]["summary"].endswith(".")


def test_links_between_sections_lead_somewhere() -> None:
    anchors = {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)}
    links = set(re.findall(r"\]\(#(\w+)\)", RUNBOOK))
    assert links
    assert links <= anchors
