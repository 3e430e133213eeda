"""What a CronJob has and a cron has not, field by field: whether that changes what the job does, and who can help.

Whatever is not named here is a loss: a field of a newer Kubernetes is told and not overlooked. Fields that have the
value which Kubernetes itself gives them are no remark. Only names are said, never a value.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cronplane_cli.cronjob import Body, CronJob, PodSpec, Resources
from cronplane_entries.resource_quantities import RESOURCES


class Effect(enum.StrEnum):
    """What a remark means for the job."""

    LOST = "lost"
    NOTED = "noted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something to know of one field; what is `lost` changes what the job does."""

    path: str
    effect: Effect
    message: str

    def is_within(self, path: str) -> bool:
        """Whether it is about that field or one inside it."""
        return self.path == path or self.path.startswith((f"{path}.", f"{path}["))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    message: str
    effect: Effect = Effect.LOST
    default: object = None


_PROFILE = "the administrator can set `{}` in the pod profile `container`, for all such runs"


def _noted(message: str, *, default: object = None) -> _Rule:
    return _Rule(message=message, effect=Effect.NOTED, default=default)


def _silent(default: object) -> _Rule:
    return _Rule(message="a run has only what Kubernetes sets by itself here", default=default)


def _profile(name: str) -> _Rule:
    return _Rule(message=_PROFILE.format(name))


_HISTORY = "runs are kept in the table, however many"
_CRONJOB_SPEC = {
    "successfulJobsHistoryLimit": _noted(_HISTORY, default=3),
    "failedJobsHistoryLimit": _noted(_HISTORY, default=1),
}
_ONE_POD = "a run is one pod at a time"
_JOB_SPEC = {
    "parallelism": _Rule(message=_ONE_POD, default=1),
    "completions": _Rule(message=_ONE_POD, default=1),
    "completionMode": _Rule(message=_ONE_POD, default="NonIndexed"),
    "podFailurePolicy": _Rule(message="every failure is tried again until no attempt is left"),
    "ttlSecondsAfterFinished": _noted("Jobs are deleted ten minutes after their end; the run and its log are kept"),
    "podReplacementPolicy": _noted("a pod is replaced when it has ended, not before", default="TerminatingOrFailed"),
    "managedBy": _Rule(message="another controller runs these Jobs", default="kubernetes.io/job-controller"),
    "suspend": _Rule(message="Jobs that somebody has to start by hand are not made"),
}
_NO_ACCOUNT = "the container has no service-account token, so that it can do nothing in the cluster"
_POD_SPEC = {
    "initContainers": _Rule(message="a run is one container; what they do has to go into its image or command"),
    "volumes": _Rule(
        message="there are no volumes; for Secrets, " + _PROFILE.format("secret_files"),
    ),
    "serviceAccountName": _Rule(message=_NO_ACCOUNT, default="default"),
    "serviceAccount": _Rule(message=_NO_ACCOUNT, default="default"),
    "automountServiceAccountToken": _Rule(message=_NO_ACCOUNT),
    "nodeSelector": _profile("node_selector"),
    "tolerations": _profile("tolerations"),
    "imagePullSecrets": _profile("image_pull_secrets"),
    "runtimeClassName": _profile("runtime_class"),
    "priorityClassName": _profile("priority_class"),
    "priority": _noted("it follows from the priority class"),
    "preemptionPolicy": _noted("it follows from the priority class", default="PreemptLowerPriority"),
    "dnsPolicy": _silent("ClusterFirst"),
    "schedulerName": _silent("default-scheduler"),
    "terminationGracePeriodSeconds": _noted("a run has the time to clean up that every run has", default=30),
    "enableServiceLinks": _silent(default=True),
}
_CONTAINER = {
    "envFrom": _Rule(message="values come from the payload only; " + _PROFILE.format("environment_secrets")),
    "volumeMounts": _Rule(message="there are no volumes; see spec.volumes of the pod"),
    "ports": _noted("nothing is asked of a run over a port"),
    "terminationMessagePath": _silent("/dev/termination-log"),
    "terminationMessagePolicy": _silent("File"),
    "readinessProbe": _noted("nobody asks whether a run is ready"),
    "stdin": _noted("nobody writes to a run"),
    "stdinOnce": _noted("nobody writes to a run"),
    "tty": _noted("a run has no terminal"),
}
_VARIABLE = {
    "valueFrom": _Rule(
        message="a variable has a plain value; " + _PROFILE.format("environment_secrets"),
    ),
}
# What every run has is no remark, nor is a `false`: less is allowed to no one.
_SECURITY = {
    "runAsNonRoot": _silent(default=True),
    "allowPrivilegeEscalation": _Rule(message="a run cannot get more rights than it began with"),
    "capabilities": _Rule(message="a run has no capabilities", default={"drop": ["ALL"]}),
    "seccompProfile": _Rule(
        message="a run has the profile of its container runtime", default={"type": "RuntimeDefault"}
    ),
    "readOnlyRootFilesystem": _noted("a run may write to its own file system"),
    "runAsUser": _profile("run_as_user"),
    "runAsGroup": _profile("run_as_user"),
    "fsGroup": _profile("run_as_user"),
}
_TEMPLATE = {
    "labels": _noted("they are not set; what selects pods by them, such as a NetworkPolicy, does not find these"),
    "annotations": _noted("they are not set; what reads them, such as a mesh or a log collector, does not find them"),
}
JOB = "spec.jobTemplate.spec"
POD = f"{JOB}.template.spec"
CONTAINER = f"{POD}.containers[0]"


def remainder_of(cronjob: CronJob) -> Iterator[Remark]:
    """Say what does not go over of the fields that a cron has not."""
    job = cronjob.spec.job_template
    yield from _remarks("spec", cronjob.spec.remainder, _CRONJOB_SPEC)
    yield from _remarks("spec.jobTemplate.metadata", job.metadata, _TEMPLATE)
    yield from _remarks(JOB, job.spec.remainder, _JOB_SPEC)
    yield from _remarks(f"{JOB}.template.metadata", job.spec.template.metadata, _TEMPLATE)
    yield from _of_pod(job.spec.template.spec)


def _of_pod(pod: PodSpec) -> Iterator[Remark]:
    container = pod.containers[0]
    # The API server writes the account twice, the second time under its former name.
    former = {"serviceAccount"} if "serviceAccountName" in pod.remainder else set()
    fields = {name: value for name, value in pod.remainder.items() if name not in former}
    yield from _remarks(POD, fields, _POD_SPEC)
    if len(pod.containers) > 1:
        message = f"a run is one container, and here are {len(pod.containers)}; only the first would run"
        yield Remark(path=f"{POD}.containers", effect=Effect.LOST, message=message)
    yield from _remarks(CONTAINER, container.remainder, _CONTAINER)
    yield from _of_security(pod.security_context or {}, container.security_context or {})
    for variable in container.env or []:
        yield from _remarks(f"{CONTAINER}.env[{variable.name}]", variable.remainder, _VARIABLE)
    yield from _of_resources(container.resources or Resources())


def _of_security(pod: Body, container: Body) -> Iterator[Remark]:
    yield from _remarks(f"{POD}.securityContext", pod, _SECURITY)
    yield from _remarks(f"{CONTAINER}.securityContext", container, _SECURITY)
    if not any(context.get("runAsNonRoot") or context.get("runAsUser") for context in (pod, container)):
        message = "a run is never root; if the image's user is, or has no number, " + _PROFILE.format("run_as_user")
        yield Remark(path=f"{POD}.securityContext", effect=Effect.NOTED, message=message)


def _of_resources(resources: Resources) -> Iterator[Remark]:
    path = f"{CONTAINER}.resources"
    yield from _remarks(path, resources.remainder, {})
    for kind, amounts in (("requests", resources.requests or {}), ("limits", resources.limits or {})):
        for name in sorted(amounts.keys() - set(RESOURCES)):
            message = f"a run can ask for {', '.join(RESOURCES)} only"
            yield Remark(path=f"{path}.{kind}[{name}]", effect=Effect.LOST, message=message)
    if missing := [name for name in RESOURCES if name not in (resources.limits or {})]:
        message = f"there is no limit of {', '.join(missing)}, so a run gets the one that is usual, or the ceiling"
        yield Remark(path=f"{path}.limits", effect=Effect.LOST, message=message)


def _remarks(path: str, fields: Body | None, rules: Mapping[str, _Rule]) -> Iterator[Remark]:
    for name, value in (fields or {}).items():
        rule = rules.get(name, _Rule(message="a cron has nothing like it"))
        if not (_says_nothing(value) or _is_same(value, rule.default)):
            yield Remark(path=f"{path}.{name}", effect=rule.effect, message=rule.message)


def _says_nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _is_same(value: object, default: object) -> bool:
    # True equals 1.
    return value == default and isinstance(value, bool) == isinstance(default, bool)
