"""What a Job and its pods say about an attempt: what keeps it from beginning, and how it ended if nobody told.

Read from the objects' status alone (Kubernetes API reference, "Pod" and "Job"); nothing here asks or changes anything.
"""

import enum
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cronplane_core.kubernetes_client import Body
from cronplane_core.run_states import AttemptEnd, EndedAttempt

# What the kubelet calls an image that it does not get (its package `images`).
_IMAGE_TROUBLE = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_CONFIGURATION_TROUBLE = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
# A process that was killed by a signal ends with 128 and its number.
_KILLED = 137
_LONGEST = 1000
# The Events in which the Job controller tells of a pod that it could not make. No condition of the Job does.
POD_REFUSED = "FailedCreate"


class ExitCode(enum.IntEnum):
    """What the process of an attempt says to whoever looks at its Job.

    It told the API of an end that is `DONE` or `FAILED`, and could not tell it of one that is `UNTOLD`. `NOT_OURS` is
    that of a process which found the gate shut, and did nothing.
    """

    DONE = 0
    FAILED = 1
    NOT_OURS = 3
    UNTOLD = 4


class Obstacle(NamedTuple):
    """What keeps a pod from running: a stable word and a sentence."""

    reason: str
    message: str


def obstacle(pods: Sequence[Body], *, refused: str | None = None) -> Obstacle:
    """Say what keeps the pods of a Job from beginning their attempt, as far as it shows.

    `refused` is why Kubernetes last made no pod for the Job, if an Event says so.
    """
    for pod in pods:
        for waiting in _waiting(pod):
            if waiting.get("reason") in _IMAGE_TROUBLE:
                return Obstacle("ImagePull", _sentence("The image cannot be pulled", waiting.get("message")))
            if waiting.get("reason") in _CONFIGURATION_TROUBLE:
                return Obstacle("PodConfiguration", _sentence("The container cannot be made", waiting.get("message")))
        condition = _condition(pod, "PodScheduled")
        if condition.get("status") == "False":
            return Obstacle("Unschedulable", _sentence("No node takes the pod", condition.get("message")))
    if pods:
        return Obstacle("PodNotStarted", "The pod has not begun the attempt yet.")
    if refused is not None:
        reason = "Quota" if is_quota(refused) else "PodRefused"
        return Obstacle(reason, _sentence("Kubernetes makes no pod for the Job at the moment", without_usage(refused)))
    return Obstacle("PodNotMade", "Kubernetes has made no pod for the Job yet.")


def is_quota(refusal: str) -> bool:
    """Say whether it is a quota because of which Kubernetes refuses something (its admission plugin ResourceQuota)."""
    return "exceeded quota" in refusal


def without_usage(refusal: str) -> str:
    """Give a refusal without how much of a quota all organizations use: none is to infer that of another."""
    return refusal.partition(", requested: ")[0] if is_quota(refusal) else refusal


def refusals(events: Sequence[Body]) -> dict[str, str]:
    """Give why Kubernetes last made no pod, by the UID of the Job, from Events of the reason `POD_REFUSED`."""
    in_turn = sorted(events, key=lambda event: str(event.get("lastTimestamp") or ""))
    return {event["involvedObject"]["uid"]: str(event.get("message") or "") for event in in_turn}


def is_finished(job: Body) -> bool:
    """Say whether a Job is over."""
    return any(_condition(job, kind).get("status") == "True" for kind in ("Complete", "Failed"))


def is_running(job: Body) -> bool:
    """Say whether a container of a Job runs."""
    return bool(job.get("status", {}).get("ready"))


def has_ended_pods(job: Body) -> bool:
    """Say whether a pod of a Job ended or is about to, also one that is not counted yet or is gone already."""
    status = job.get("status", {})
    uncounted = status.get("uncountedTerminatedPods") or {}
    return any(status.get(key) for key in ("succeeded", "failed", "terminating")) or any(uncounted.values())


def has_begun(pods: Sequence[Body]) -> bool:
    """Say whether a container of these pods runs, or did."""
    states = [status.get("state", {}) for pod in pods for status in pod.get("status", {}).get("containerStatuses", [])]
    return any("running" in state or "terminated" in state for state in states)


def ended(job: Body, pods: Sequence[Body], *, idle_code: int | None = ExitCode.NOT_OURS) -> EndedAttempt:
    """Say how an attempt ended whose Job is over, and of which nobody told; what ended with `idle_code` did nothing."""
    if _condition(job, "Complete").get("status") == "True":
        return EndedAttempt(
            end=AttemptEnd.COMPLETED, reason="Completed", message="The Job is complete; its result was not told."
        )
    if _condition(job, "Failed").get("reason") == "DeadlineExceeded":
        return EndedAttempt(
            end=AttemptEnd.TIMED_OUT, reason="AttemptTimeout", message="The Job was not over by its deadline."
        )
    is_disrupted = _condition(job, "Failed").get("reason") == "PodFailurePolicy"
    if is_disrupted or any(_is_disrupted(pod) for pod in pods):
        return EndedAttempt(
            end=AttemptEnd.LOST,
            reason="Evicted",
            message="Its pod was evicted or preempted; how far it got is not known.",
        )
    for terminated in terminations(pods):
        if terminated.get("exitCode") != idle_code:
            return _after_exit(terminated)
    return EndedAttempt(end=AttemptEnd.LOST, reason="PodGone", message="Its pod is gone; how far it got is not known.")


def _after_exit(terminated: Body) -> EndedAttempt:
    code = terminated.get("exitCode")
    if terminated.get("reason") == "OOMKilled":
        return EndedAttempt(
            end=AttemptEnd.ERROR,
            reason="OutOfMemory",
            message="The pod took more memory than its limit, and was killed; let it take less at a time, or have the "
            "limit raised.",
        )
    hint = " It was killed." if code == _KILLED else ""
    return EndedAttempt(
        end=AttemptEnd.ERROR,
        reason="ExitCode",
        message=f"The pod's process ended with exit code {code} and told nothing; its log may say why.{hint}",
    )


def _waiting(pod: Body) -> Iterator[Body]:
    for status in pod.get("status", {}).get("containerStatuses", []):
        if waiting := status.get("state", {}).get("waiting"):
            yield waiting


def terminations(pods: Sequence[Body]) -> Iterator[Body]:
    """Give how containers ended (Kubernetes API reference, "ContainerStateTerminated")."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses", []):
            if terminated := status.get("state", {}).get("terminated"):
                yield terminated


def _is_disrupted(pod: Body) -> bool:
    is_target = _condition(pod, "DisruptionTarget").get("status") == "True"
    return is_target or pod.get("status", {}).get("reason") in {"Evicted", "Preempted", "NodeLost"}


def _condition(body: Body, kind: str) -> Body:
    found: list[Body] = body.get("status", {}).get("conditions") or []
    return next((condition for condition in found if condition["type"] == kind), {})


def _sentence(start: str, detail: object) -> str:
    return f"{start}: {str(detail)[:_LONGEST]}" if detail else f"{start}."
