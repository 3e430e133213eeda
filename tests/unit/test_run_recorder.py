"""Each event of the runner is told to people in a line, and to machines in a number; neither names a tenant."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from cronplane_core.account import ViolationKind
from cronplane_core.database import DatabaseUnavailableError
from cronplane_core.run_states import RunState
from cronplane_core.run_transitions import FinishedRun, NewRun, StartedAttempt
from cronplane_core.tables import RunStatus, TriggerKind
from cronplane_operator.account_scan import ScanReport
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner_metrics import Load

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def recorder() -> RunRecorder:
    return RunRecorder()


@pytest.fixture(autouse=True)
def every_line() -> Iterator[None]:
    """Let the recorder write a line for each completed run, whatever other tests have set."""
    log = logging.getLogger("cronplane.runner")
    level = log.level
    log.setLevel(logging.INFO)
    yield
    log.setLevel(level)


def value(recorder: RunRecorder, name: str, **labels: str) -> float | None:
    return recorder.process.registry.get_sample_value(f"cronplane_{name}", labels)


def new_run(status: RunStatus, reason: str, *, missed: int | None = None) -> NewRun:
    return NewRun(
        id=uuid4(),
        organization_id=uuid4(),
        cron_id=uuid4(),
        scheduled_for=NOON,
        status=status,
        reason=reason,
        message="",
        generation=1,
        missed_until=NOON if missed else None,
        missed_count=missed,
    )


def attempt(*, lag: float, number: int = 1, trigger: TriggerKind = TriggerKind.SCHEDULE) -> StartedAttempt:
    return StartedAttempt(
        run=RunState(id=uuid4(), status=RunStatus.RUNNING, attempt=number),
        nonce=uuid4(),
        organization_id=uuid4(),
        cron_id=uuid4(),
        cron_name="a secret name",
        entrypoint="no_op",
        payload_json="{}",
        scheduled_for=NOON,
        trigger_kind=trigger,
        started_at=NOON + timedelta(seconds=lag),
        deadline=NOON + timedelta(seconds=lag + 1),
        run_deadline=NOON + timedelta(hours=1),
    )


def finished_run(reason: str = "Completed", status: RunStatus = RunStatus.COMPLETED) -> FinishedRun:
    return FinishedRun(
        id=uuid4(),
        organization_id=uuid4(),
        cron_id=uuid4(),
        cron_name="a secret name",
        entrypoint="no_op",
        scheduled_for=NOON,
        status=status,
        reason=reason,
        started_at=NOON,
        finished_at=NOON,
    )


def test_fires_are_counted_by_outcome_and_reason_and_each_of_a_missed_range_counts(recorder: RunRecorder) -> None:
    with capture_logs() as lines:
        recorder.claimed(
            [
                new_run(RunStatus.QUEUED, "Claimed"),
                new_run(RunStatus.QUEUED, "Claimed"),
                new_run(RunStatus.SKIPPED, "OverlapSkip"),
                new_run(RunStatus.MISSED, "Superseded", missed=9),
            ]
        )
    assert value(recorder, "fires_total", outcome="queued", reason="Claimed") == 2
    assert value(recorder, "fires_total", outcome="skipped", reason="OverlapSkip") == 1
    assert value(recorder, "fires_total", outcome="missed", reason="Superseded") == 9
    assert [line["event"] for line in lines] == ["run skipped", "run missed"]


def test_the_start_lag_is_that_of_first_attempts_of_the_schedule(recorder: RunRecorder) -> None:
    recorder.started(
        [
            attempt(lag=0.004),
            attempt(lag=2),
            attempt(lag=500, number=2),
            attempt(lag=500, trigger=TriggerKind.MANUAL),
        ]
    )
    assert value(recorder, "attempts_started_total") == 4
    assert value(recorder, "start_lag_seconds_count") == 2
    assert value(recorder, "start_lag_seconds_sum") == pytest.approx(2.004)
    assert value(recorder, "start_lag_seconds_bucket", le="0.005") == 1
    assert value(recorder, "start_lag_seconds_bucket", le="2.5") == 2


def test_ends_of_attempts_and_of_runs_are_counted_apart(recorder: RunRecorder) -> None:
    with capture_logs() as lines:
        recorder.attempts_ended(["completed", "error", "completed"])
        recorder.finished([finished_run(), finished_run("EntryError", RunStatus.ERROR)])
    assert value(recorder, "attempts_ended_total", outcome="completed") == 2
    labels = {"status": "error", "reason": "EntryError", "entrypoint": "no_op"}
    assert value(recorder, "runs_finished_total", **labels) == 1
    assert [line["event"] for line in lines] == ["run completed", "run error"]


def test_attempts_that_were_handed_back_are_over_too(recorder: RunRecorder) -> None:
    recorder.handed_back(attempts=3)
    assert value(recorder, "attempts_ended_total", outcome="handed_back") == 3


def test_reasons_that_a_worker_makes_up_do_not_grow_the_metrics_without_bound(recorder: RunRecorder) -> None:
    recorder.finished([finished_run(f"Reason{number}") for number in range(1000)])
    text = recorder.process.render().decode()
    assert text.count("\ncronplane_runs_finished_total{") == 65
    labels = {"status": "completed", "reason": "Other", "entrypoint": "no_op"}
    assert value(recorder, "runs_finished_total", **labels) == 1000 - 64


def test_a_leader_tells_what_it_has_to_do_and_a_former_one_has_nothing(recorder: RunRecorder) -> None:
    assert value(recorder, "leader") == 0
    recorder.became_leader(holder="me", epoch=7)
    recorder.observed(Load(scheduled=5, queued=4, workers=3, busy=2, next_fire_lag=1.5, next_fire=None))
    names = ("leader", "crons_scheduled", "queue_length", "workers", "workers_busy", "next_fire_lag_seconds")
    assert [value(recorder, name) for name in names] == [1, 5, 4, 3, 2, 1.5]
    recorder.term_ended()
    assert [value(recorder, name) for name in names] == [0, 0, 0, 0, 0, 0]


def test_an_absent_database_is_counted_by_what_it_kept_from_being_done(recorder: RunRecorder) -> None:
    recorder.leader_seen(None)
    assert value(recorder, "database_up") == 1
    with capture_logs() as lines:
        recorder.claim_postponed(jobs=3, error=DatabaseUnavailableError("gone"))
        recorder.database_away(doing="starting runs", error=DatabaseUnavailableError("gone"))
    assert value(recorder, "database_up") == 0
    assert value(recorder, "database_away_total", doing="claiming") == 1
    assert value(recorder, "database_away_total", doing="starting runs") == 1
    assert [line["event"] for line in lines] == ["claim postponed", "database away"]


def test_a_scan_says_a_line_per_kind_and_a_number_for_every_kind(recorder: RunRecorder) -> None:
    report = ScanReport(counts={ViolationKind.GAP: 12}, examples={ViolationKind.GAP: ["one", "two"]}, seconds=3.5)
    with capture_logs() as lines:
        recorder.scanned(report)
    assert [(line["event"], line.get("count"), line.get("first")) for line in lines] == [
        ("scanned", None, None),
        ("the guarantee is violated", 12, ["one", "two"]),
    ]
    kinds = {kind: value(recorder, "violations", kind=kind.value) for kind in ViolationKind}
    assert kinds == dict.fromkeys(ViolationKind, 0) | {ViolationKind.GAP: 12}
    assert value(recorder, "scan_duration_seconds") == 3.5
    assert (value(recorder, "scan_timestamp_seconds") or 0) > 0
    recorder.scanned(ScanReport(counts={}, examples={}, seconds=1))
    assert value(recorder, "violations", kind="gap") == 0


@pytest.mark.parametrize(
    ("event", "arguments", "name", "count"),
    [
        ("term_failed", {"error": ValueError()}, "term_failures_total", 1),
        ("reconciled", {"changed": 3, "removed": 2, "scheduled": 9}, "crons_reconciled_total", 5),
        ("schedule_refused", {"cron_id": "an id", "reason": "a reason"}, "schedules_refused_total", 1),
        ("superseded", {"attempts": 4}, "attempts_superseded_total", 4),
        ("result_refused", {"run_id": "an id", "error": "DataError"}, "results_refused_total", 1),
        ("scan_failed", {"reason": "a reason"}, "scan_failures_total", 1),
    ],
)
def test_an_event_is_a_line_and_a_number(
    recorder: RunRecorder, event: str, arguments: dict[str, Any], name: str, count: int
) -> None:
    with capture_logs() as lines:
        getattr(recorder, event)(**arguments)
    assert len(lines) == 1
    assert value(recorder, name) == count


def test_no_metric_names_a_cron_a_run_or_an_organization(recorder: RunRecorder) -> None:
    claimed, started, finished = new_run(RunStatus.QUEUED, "Claimed"), attempt(lag=1), finished_run()
    recorder.claimed([claimed])
    recorder.started([started])
    recorder.finished([finished])
    text = recorder.process.render().decode()
    for record in (claimed, started, finished):
        assert str(record.cron_id) not in text
        assert str(record.organization_id) not in text
    assert "a secret name" not in text
