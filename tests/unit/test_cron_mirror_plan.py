"""What a mirror has to be and what is written of it, decided from records alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.cron_mirror_repository import ShownCron, ShownRun
from cronplane_core.tables import CronSource, RunStatus
from cronplane_operator.cron_mirror_plan import (
    is_label,
    mirror_body,
    mirror_spec,
    mirror_status,
    plan_write,
    readable_label,
    remarks_on,
)

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
POLICIES: dict[str, Any] = {
    "overlap": "skip",
    "catchup": "latest",
    "catchup_window": None,
    "timeout": timedelta(hours=1),
    "max_attempts": 3,
    "backoff_initial": timedelta(seconds=10),
    "backoff_maximum": timedelta(minutes=10),
    "run_timeout": None,
    "jitter": timedelta(0),
    "starts_at": None,
    "ends_at": None,
    "max_runs": None,
}


def run(status: RunStatus, reason: str = "Because", *, ago: int = 0) -> ShownRun:
    return ShownRun(id=uuid4(), scheduled_for=NOW - timedelta(minutes=ago), status=status, reason=reason, job=None)


def cron(**changes: Any) -> ShownCron:
    values: dict[str, Any] = {
        "id": uuid4(),
        "organization_id": uuid4(),
        "name": "nightly report",
        "cron_expr": "0 3 * * *",
        "tz": "Europe/Paris",
        "entrypoint": "dummy_print",
        "enabled": True,
        "policies": POLICIES,
        "generation": 4,
        "source": CronSource.API,
        "source_uid": None,
        "source_generation": None,
        "next_fire": LATER,
        "is_scheduled": True,
        "runs": (),
        "failures": 0,
        "place": None,
    }
    return ShownCron(**(values | changes))


def resource(of: ShownCron, *, generation: int = 1, status: dict[str, Any] | None = None) -> dict[str, Any]:
    body = mirror_body(of, namespace="acme", name="nightly", installation="demo", spec=mirror_spec(of))
    body["metadata"] |= {"generation": generation, "uid": "a uid", "resourceVersion": "1"}
    return body | {"status": status} if status is not None else body


def verdict(status: dict[str, Any], name: str) -> tuple[str, str]:
    [found] = [each for each in status["conditions"] if each["type"] == name]
    return found["status"], found["reason"]


@given(name=st.text(max_size=200), cron_id=st.uuids())
def test_any_name_becomes_a_label_that_kubernetes_takes_the_same_each_time(name: str, cron_id: UUID) -> None:
    label = readable_label(name, cron_id)
    assert is_label(label)
    assert label == readable_label(name, cron_id)


def test_a_label_reads_like_the_name_and_is_its_crons_alone() -> None:
    one, other = readable_label("Täglicher Bericht!", UUID(int=1)), readable_label("Täglicher Bericht!", UUID(int=2))
    assert one.startswith("taglicher-bericht-")
    assert one != other


def test_names_that_kubernetes_refuses_are_no_labels() -> None:
    refused = ["", "-a", "a-", "A", "a.b", "a b", "a\n", "ä", "a" * 64]
    assert [name for name in refused if is_label(name)] == []
    assert is_label("a" * 63)


def test_a_mirror_has_every_policy_that_is_set_and_no_payload() -> None:
    spec = mirror_spec(cron())
    assert spec == {
        "name": "nightly report",
        "cron_expr": "0 3 * * *",
        "tz": "Europe/Paris",
        "entrypoint": "dummy_print",
        "enabled": True,
        "overlap": "skip",
        "catchup": "latest",
        "timeout": 3600,
        "max_attempts": 3,
        "backoff": {"initial": 10, "maximum": 600},
        "jitter": 0,
    }


def test_what_is_as_it_has_to_be_is_not_written() -> None:
    shown = cron(runs=(run(RunStatus.COMPLETED),))
    status = mirror_status(shown, generation=1, before={}, now=NOW)
    write = plan_write(shown, resource(shown, status=status), now=LATER)
    assert (write.spec, write.surplus, write.status) == (None, (), None)


def test_an_edit_is_reverted_with_what_was_put_beside_it() -> None:
    shown = cron()
    edited = resource(shown, generation=2)
    edited["spec"] |= {"cron_expr": "* * * * *", "max_runs": 3}
    write = plan_write(shown, edited, now=NOW)
    assert (write.spec, write.surplus) == (mirror_spec(shown), ("max_runs",))


def test_a_resource_that_is_gone_is_written_and_its_status_later() -> None:
    shown = cron()
    write = plan_write(shown, None, now=NOW)
    assert (write.spec, write.status) == (mirror_spec(shown), None)


def test_a_condition_keeps_the_time_of_its_change_and_tells_of_the_generation_that_it_is_about() -> None:
    before = mirror_status(cron(), generation=1, before={}, now=NOW)
    after = mirror_status(cron(enabled=False), generation=2, before=before, now=LATER)
    since = {each["type"]: each["lastTransitionTime"] for each in after["conditions"]}
    assert since == {"Ready": "2026-06-01T12:00:00Z", "Scheduled": "2026-06-01T12:05:00Z", "Degraded": since["Ready"]}
    assert {each["observedGeneration"] for each in after["conditions"]} == {2}


def test_the_conditions_tell_of_pauses_of_the_last_fire_of_all_and_of_failures() -> None:
    def told(**changes: Any) -> dict[str, Any]:
        return mirror_status(cron(**changes), generation=1, before={}, now=NOW)

    assert verdict(told(), "Scheduled") == ("True", "FireAhead")
    assert verdict(told(enabled=False), "Scheduled") == ("False", "Paused")
    assert verdict(told(next_fire=None), "Scheduled") == ("False", "NeverFiresAgain")
    assert verdict(told(is_scheduled=False), "Ready") == ("False", "NotTakenUp")
    failed = told(runs=(run(RunStatus.ERROR, "ExecutorFailed"),), failures=2)
    assert verdict(failed, "Degraded") == ("True", "ExecutorFailed")
    assert failed["consecutive_failures"] == 2


def test_the_last_result_is_that_of_the_newest_run_that_is_over() -> None:
    runs = (run(RunStatus.RUNNING), run(RunStatus.SKIPPED, "OverlapSkip", ago=1), run(RunStatus.COMPLETED, ago=2))
    status = mirror_status(cron(runs=runs), generation=1, before={}, now=NOW)
    assert (status["last_result"], status["last_reason"]) == ("skipped", "OverlapSkip")
    assert status["last_fire"] == "2026-06-01T12:00:00Z"


def test_a_paused_cron_shows_no_next_fire() -> None:
    assert "next_fire" not in mirror_status(cron(enabled=False), generation=1, before={}, now=NOW)


def test_failures_misses_and_pauses_are_worth_an_event_once_and_completions_are_not() -> None:
    missed, failed, done = run(RunStatus.MISSED, ago=2), run(RunStatus.TIMED_OUT, ago=1), run(RunStatus.COMPLETED)
    before = mirror_status(cron(), generation=1, before={}, now=NOW)
    shown = cron(runs=(done, failed, missed), enabled=False)
    after = mirror_status(shown, generation=1, before=before, now=NOW)
    assert [remark.reason for remark in remarks_on(before, after)] == ["RunMissed", "RunFailed", "Paused"]
    assert remarks_on(after, after) == []
    again = mirror_status(cron(runs=shown.runs), generation=1, before=after, now=NOW)
    assert [remark.reason for remark in remarks_on(after, again)] == ["Resumed"]


def test_a_run_that_fails_after_it_was_seen_running_is_told_of() -> None:
    running = run(RunStatus.RUNNING)
    before = mirror_status(cron(runs=(running,)), generation=1, before={}, now=NOW)
    ended = ShownRun(
        id=running.id, scheduled_for=running.scheduled_for, status=RunStatus.LOST, reason="RunnerGone", job=None
    )
    after = mirror_status(cron(runs=(ended,), failures=1), generation=1, before=before, now=NOW)
    [remark] = remarks_on(before, after)
    assert (remark.reason, "RunnerGone" in remark.message) == ("RunFailed", True)
