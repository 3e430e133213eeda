"""What an uninstallation takes for its own."""

from typing import Any

import pytest

from cronplane_operator.job_manifest import INSTALLATION_LABEL
from cronplane_operator.uninstallation import is_mirror


def cron(*, labels: dict[str, str] | None = None, spec: dict[str, Any] | None = None, **metadata: Any) -> Any:
    given = {"name": "a-cron", **metadata} | ({} if labels is None else {"labels": labels})
    return {"metadata": given, "spec": spec or {}}


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (cron(labels={INSTALLATION_LABEL: "ours"}), True),
        (cron(labels={INSTALLATION_LABEL: "another"}), False),
        (cron(labels={}), False),
        (cron(), False),
        (cron(labels={INSTALLATION_LABEL: "ours"}, spec={"payload": {}}), False),
        (cron(labels={INSTALLATION_LABEL: "ours"}, deletionTimestamp="2026-01-01T00:00:00Z"), False),
    ],
)
def test_a_mirror_is_what_bears_our_name_and_has_no_payload(*, body: Any, verdict: bool) -> None:
    assert is_mirror(body, installation="ours") is verdict
