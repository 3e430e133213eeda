"""Requests that schemathesis makes up from the description of the API, good ones and bad ones, with all its checks.

A run is repeated by its seed, which it prints: `CRONPLANE_TEST_SEED=… CRONPLANE_TEST_EXAMPLES=… pytest …`; the second
says how many examples are tried per operation and kind of test.
"""

import asyncio
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import schemathesis
from schemathesis import engine
from schemathesis.config import PositiveDataAcceptanceConfig
from schemathesis.engine import events
from schemathesis.python.asgi import shutdown_lifespans

from cronplane_api.application import create_application
from cronplane_core.signed_tokens import Purpose, TokenClaims, parse_token_keys

SEED = int(os.environ.get("CRONPLANE_TEST_SEED", "20261123"))
EXAMPLES = int(os.environ.get("CRONPLANE_TEST_EXAMPLES", "100"))
EXPRESSIONS = ["*/5 * * * *", "0 9 * * MON-FRI", "@daily", "0 0 29 2 *"]
ZONES = ["UTC", "Europe/Paris", "Asia/Kathmandu"]
ENTRIES = ["my_entry", "no_op", "dummy_print"]
FAR_AWAY = datetime(2100, 1, 1, tzinfo=UTC)
PATH_NAMES = ["organization_id", "cron_id", "run_id", "key_id"]
# What a JSON Schema cannot say of good input, and which refusal is then right. Everything else that fits the
# description must be accepted.
BEYOND_SCHEMAS = {
    # Schedules, zones, entries and payloads are judged by what they mean, names by their characters' categories; and
    # 60.0 is an integer to JSON Schema, but not to us.
    "create_cron": {"422"},
    "preview_cron": {"422"},
    "trigger_cron": {"422"},
    "create_organization": {"422"},
    "create_key": {"422"},
    "start_attempt": {"422"},
    "finish_attempt": {"422"},
    "finish_run": {"422"},
    "update_organization": {"422"},
    # The same, and a precondition that holds only for one generation.
    "update_cron": {"422", "412"},
    "delete_cron": {"412"},
    "pause_cron": {"412"},
    "resume_cron": {"412"},
    # A cursor is signed.
    "list_crons": {"400"},
    "list_runs": {"400"},
    "list_organizations": {"400"},
}


@dataclass(slots=True)
class Report:
    """How each operation answered, and what is wrong with that."""

    answers: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[str] = field(default_factory=list)

    def note(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.NonFatalError | events.FatalError):
            self.failures.append(repr(event))
        if isinstance(event, events.ScenarioFinished):
            for case_id, interaction in event.recorder.interactions.items():
                if interaction.response is not None:
                    label = event.recorder.cases[case_id].value.operation.label
                    self.answers[label][interaction.response.status_code] += 1
            for case_id, checks in event.recorder.checks.items():
                request = event.recorder.cases[case_id].value.as_curl_command()
                self.failures += [
                    f"{check.name}: {check.failure_info.failure}\n{request}"
                    for check in checks
                    if check.failure_info is not None
                ]

    @property
    def requests(self) -> int:
        return sum(answers.total() for answers in self.answers.values())


def operation_settings(operation_id: str, others: set[str]) -> dict[str, Any]:
    accepted = sorted({*PositiveDataAcceptanceConfig().expected_statuses, *others})
    checks = {"positive_data_acceptance": {"expected-statuses": accepted}}
    settings: dict[str, Any] = {"include-operation-id": operation_id, "checks": checks}
    if operation_id == "update_organization":
        # With a quota of zero, or no entry granted, the rest would hardly be reached.
        settings["parameters"] = {"path.organization_id": {"dictionary": "another_organization_id", "probability": 1.0}}
    return settings


def tokens(api: Any, run_id: str, token_keys: str) -> dict[str, str]:
    """Make tokens that are good for an attempt of one of the runs."""
    claims = {"organization_id": api.organization_id, "run_id": UUID(run_id), "attempt": 1, "expires_at": FAR_AWAY}
    signer = parse_token_keys(token_keys)
    return {purpose.value: signer.sign(TokenClaims(purpose=purpose, **claims)) for purpose in Purpose}


def configuration(things: Mapping[str, list[str]]) -> dict[str, Any]:
    """Give all checks in all phases; four ids of five are of things that exist, and most schedules make sense."""
    words = {"cron_expr": EXPRESSIONS, "tz": ZONES, "entrypoint": ENTRIES}
    return {
        "seed": SEED,
        "continue-on-failure": True,
        "dictionaries": {name: {"values": values} for name, values in {**things, **words}.items()},
        "parameters": {
            **{f"path.{name}": {"dictionary": name, "probability": 0.8} for name in PATH_NAMES},
            **{f"body.{name}": {"dictionary": name, "probability": 0.8} for name in words},
        },
        "generation": {"max-examples": EXAMPLES, "no-shrink": True, "database": "none"},
        # Of two things that are wrong, the body's length or a precondition may be told first.
        "checks": {"enabled": True, "negative_data_rejection": {"expected-statuses": ["4xx"]}},
        "phases": {"stateful": {"generation": {"max-examples": EXAMPLES // 2}}},
        "operations": [operation_settings(*item) for item in BEYOND_SCHEMAS.items()],
    }


def run(application: Any, things: Mapping[str, list[str]], keys: Mapping[str, str]) -> Report:
    config = schemathesis.Config.from_dict(configuration(things))
    schema = schemathesis.openapi.from_asgi("/openapi.json", application, config=config)

    @schema.auth(refresh_interval=None)
    class Key:
        def get(self, case: schemathesis.Case[Any], _: schemathesis.AuthContext) -> str:
            if case.operation.path.startswith("/runs/"):
                return keys["callback" if case.operation.path.endswith("}/finish") else "attempt"]
            return keys["installation" if case.operation.path.startswith("/organizations") else "admin"]

        def set(self, case: schemathesis.Case[Any], data: str, _: schemathesis.AuthContext) -> None:
            case.headers["Authorization"] = f"Bearer {data}"

    report = Report()
    try:
        for event in engine.from_schema(schema).execute():
            report.note(event)
    finally:
        shutdown_lifespans()
    return report


async def test_the_api_keeps_to_its_description_whatever_it_is_asked(
    api: Any, api_settings: Any, entries: Any, token_keys: str, capsys: pytest.CaptureFixture[str]
) -> None:
    crons = [await api.register(f"cron {number}") for number in range(20)]
    runs = [(await api.call("POST", f"{crons[0]['id']}/trigger")).json() for _ in range(3)]
    keys = (await api.call("GET", f"/organizations/{api.organization_id}/keys")).json()["items"]
    things = {
        "organization_id": [str(api.organization_id)],
        "another_organization_id": [str(api.stranger_id)],
        "cron_id": [cron["id"] for cron in crons],
        "run_id": [run["id"] for run in runs],
        "key_id": [key["id"] for key in keys if key["role"] == "viewer"],
    }
    application = create_application(api_settings(), registry=entries)
    report = await asyncio.to_thread(run, application, things, api.keys | tokens(api, runs[0]["id"], token_keys))
    capsys.readouterr()  # A log line for each request would bury the failures.
    with capsys.disabled():
        sys.stdout.write(f"\nschemathesis: seed {SEED}, {EXAMPLES} examples, {report.requests} requests\n")
    assert not report.failures, "\n\n".join(report.failures[:20])
    documented = {
        f"{method.upper()} {path}"
        for path, operations in application.openapi()["paths"].items()
        for method in operations
    }
    # An attempt is begun and ended once, and only with a token that names it: they have tests of their own.
    documented = {label for label in documented if " /runs/" not in label}
    carried_out = {label for label, answers in report.answers.items() if any(200 <= status < 300 for status in answers)}
    assert documented <= carried_out
