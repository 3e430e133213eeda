"""What Jobs and pods say, held against the reason that a person reads."""

from typing import Any

import pytest

from cronplane_core.run_states import AttemptEnd
from cronplane_operator import pod_outcome


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "a-pod"}, "status": status}


def waiting(reason: str) -> dict[str, Any]:
    return pod(containerStatuses=[{"state": {"waiting": {"reason": reason, "message": "why"}}}])


def terminated(code: int, reason: str = "Error") -> dict[str, Any]:
    return pod(containerStatuses=[{"state": {"terminated": {"exitCode": code, "reason": reason}}}])


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message}]}


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([waiting("ErrImagePull")], "ImagePull"),
        ([waiting("ImagePullBackOff")], "ImagePull"),
        ([waiting("InvalidImageName")], "ImagePull"),
        ([waiting("CreateContainerConfigError")], "PodConfiguration"),
        ([pod(**condition("PodScheduled", "False", message="0/1 nodes"))], "Unschedulable"),
        ([waiting("ContainerCreating")], "PodNotStarted"),
        ([], "PodNotMade"),
    ],
)
def test_what_keeps_a_pod_from_its_attempt_is_named(pods: list[dict[str, Any]], reason: str) -> None:
    assert pod_outcome.obstacle(pods).reason == reason


@pytest.mark.parametrize(
    ("refusal", "reason", "told"),
    [
        # What all organizations use together is not for one of them to know.
        (
            'pods "a" is forbidden: exceeded quota: small, requested: pods=1, used: pods=57, limited: pods=57',
            "Quota",
            'pods "a" is forbidden: exceeded quota: small',
        ),
        ("admission webhook said no, requested: more", "PodRefused", "admission webhook said no, requested: more"),
    ],
)
def test_why_kubernetes_makes_no_pod_is_named_and_told(refusal: str, reason: str, told: str) -> None:
    found = pod_outcome.obstacle([], refused=refusal)
    assert found == (reason, f"Kubernetes makes no pod for the Job at the moment: {told}")


def test_a_pod_that_is_there_counts_for_more_than_one_that_was_not_made() -> None:
    assert pod_outcome.obstacle([waiting("ErrImagePull")], refused="exceeded quota").reason == "ImagePull"


def test_the_last_refusal_of_each_job_counts() -> None:
    def event(uid: str, at: str | None, message: str) -> dict[str, Any]:
        return {"involvedObject": {"uid": uid}, "lastTimestamp": at, "message": message}

    events = [
        event("one", "2026-06-01T12:00:02Z", "last"),
        event("one", "2026-06-01T12:00:01Z", "first"),
        event("another", None, "alone"),
    ]
    assert pod_outcome.refusals(events) == {"one": "last", "another": "alone"}


def test_what_kubernetes_says_is_in_the_message() -> None:
    found = pod_outcome.obstacle([pod(**condition("PodScheduled", "False", message="0/1 nodes are available"))])
    assert found.message == "No node takes the pod: 0/1 nodes are available"


@pytest.mark.parametrize(
    ("job", "pods", "end", "reason"),
    [
        (condition("Complete"), [], AttemptEnd.COMPLETED, "Completed"),
        (condition("Failed", reason="DeadlineExceeded"), [], AttemptEnd.TIMED_OUT, "AttemptTimeout"),
        (condition("Failed"), [pod(**condition("DisruptionTarget"))], AttemptEnd.LOST, "Evicted"),
        (condition("Failed"), [pod(reason="Evicted")], AttemptEnd.LOST, "Evicted"),
        (condition("Failed"), [terminated(137, "OOMKilled")], AttemptEnd.ERROR, "OutOfMemory"),
        (condition("Failed"), [terminated(7)], AttemptEnd.ERROR, "ExitCode"),
        (condition("Failed"), [terminated(137)], AttemptEnd.ERROR, "ExitCode"),
        (condition("Failed"), [], AttemptEnd.LOST, "PodGone"),
        # The pod that came instead of a lost one found the gate shut, and did nothing.
        (condition("Failed"), [terminated(3)], AttemptEnd.LOST, "PodGone"),
        (condition("Failed"), [terminated(3), terminated(7)], AttemptEnd.ERROR, "ExitCode"),
    ],
)
def test_an_end_that_nobody_told_is_read_from_the_job_and_its_pods(
    job: dict[str, Any], pods: list[dict[str, Any]], end: AttemptEnd, reason: str
) -> None:
    ended = pod_outcome.ended({"status": job}, pods)
    assert (ended.end, ended.reason) == (end, reason)


def test_the_exit_code_is_told() -> None:
    assert "exit code 7" in pod_outcome.ended({"status": condition("Failed")}, [terminated(7)]).message


@pytest.mark.parametrize(
    ("status", "is_finished"),
    [(condition("Complete"), True), (condition("Failed"), True), (condition("Complete", "False"), False), ({}, False)],
)
def test_a_job_is_over_when_a_condition_says_so(status: dict[str, Any], *, is_finished: bool) -> None:
    assert pod_outcome.is_finished({"status": status}) is is_finished


def test_a_jobs_own_policy_tells_of_a_disruption_when_the_pod_is_gone_already() -> None:
    ended = pod_outcome.ended({"status": condition("Failed", reason="PodFailurePolicy")}, [])
    assert (ended.end, ended.reason) == (AttemptEnd.LOST, "Evicted")


@pytest.mark.parametrize(
    ("pods", "has_begun"),
    [
        ([], False),
        ([waiting("ContainerCreating")], False),
        ([terminated(0)], True),
        ([pod(containerStatuses=[{"state": {"running": {}}}])], True),
    ],
)
def test_a_container_has_begun_when_it_runs_or_ran(pods: list[dict[str, Any]], *, has_begun: bool) -> None:
    assert pod_outcome.has_begun(pods) is has_begun


@pytest.mark.parametrize(
    ("status", "has_ended_pods"),
    [
        ({}, False),
        ({"active": 1, "ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}, False),
        ({"active": 1, "uncountedTerminatedPods": {"succeeded": ["a uid"]}}, True),
        ({"terminating": 1}, True),
        ({"succeeded": 1}, True),
        ({"failed": 1}, True),
    ],
)
def test_a_pod_that_ended_shows_in_its_job_before_the_job_is_over(
    status: dict[str, Any], *, has_ended_pods: bool
) -> None:
    assert pod_outcome.has_ended_pods({"status": status}) is has_ended_pods


def test_a_job_runs_while_a_pod_of_it_is_ready() -> None:
    assert pod_outcome.is_running({"status": {"active": 1, "ready": 1}})
    assert not pod_outcome.is_running({"status": {"active": 1, "ready": 0}})
    assert not pod_outcome.is_running({})
