"""What the Job of an attempt looks like (batch/v1; Kubernetes API reference, "Job").

Made from records alone. It holds no secret. Where our own process runs in the pod, it holds no payload either: that
process asks the API for what it has to do, and proves by a projected service-account token, bound to its pod, that it
may. Where the body is a container of the payload's, that stands in the Job, and no token is in the pod.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from uuid import UUID

import orjson

from cronplane_core.attempt_job_repository import PendingAttempt, UnlaunchedAttempt
from cronplane_core.kubernetes_client import Body
from cronplane_core.settings import PodProfile, PodSettings
from cronplane_entries.core import PodContainer

INSTALLATION_LABEL = "crons.cronplane.dev/installation"
RUN_LABEL = "crons.cronplane.dev/run-id"
ATTEMPT_LABEL = "crons.cronplane.dev/attempt"
SETTLED_LABEL = "crons.cronplane.dev/settled"
CRON_LABEL = "crons.cronplane.dev/cron-id"
# By it a NetworkPolicy says where pods of an entry may go.
ENTRYPOINT_LABEL = "crons.cronplane.dev/entrypoint"
CRON_ANNOTATION = "crons.cronplane.dev/cron"
CONTAINER_ANNOTATION = "crons.cronplane.dev/container"
CONTAINER = "attempt"
AUDIENCE = "cronplane"
PROOF_DIRECTORY = "/var/run/secrets/cronplane"
# Seconds. After SIGTERM the executor is cancelled, and what is left of the time is for telling of it.
TERMINATION_GRACE = 30
# A container of a payload has as long as an executor of ours has to clean up.
_IMAGE_TERMINATION_GRACE = 15
# How long a Job that is over is kept for people to look at; its log is kept with the run.
KEPT = 600
# And for whoever leads next to learn how its attempt ended, where only the Job can tell.
_KEPT_UNSEEN = 7 * 24 * 3600
# The shortest that Kubernetes takes: the kubelet renews the token long before.
_TOKEN_SECONDS = 600
_USER = 65532
# What the process has beyond its attempt's timeout to tell of its end.
_MARGIN = timedelta(seconds=60)
# What a Job whose attempt nobody tells of is left beyond its deadline: the leader ends it then, and keeps its log.
_LATE = timedelta(seconds=10)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlace:
    """Whose Jobs these are, and where they are made."""

    installation: str
    namespace: str


def job_name(run_id: UUID, number: int) -> str:
    """Name the Job of an attempt: the same each time, so that it cannot be made twice."""
    return f"cronplane-{run_id.hex}-{number}"


def labels(*, installation: str, run_id: UUID, number: int) -> dict[str, str]:
    """Give the labels by which a Job is known as that of an attempt."""
    return {
        "app.kubernetes.io/managed-by": "cronplane",
        "app.kubernetes.io/component": "run",
        INSTALLATION_LABEL: installation,
        RUN_LABEL: str(run_id),
        ATTEMPT_LABEL: str(number),
    }


def is_job_of(body: Body, *, installation: str, run_id: UUID, number: int) -> bool:
    """Say whether a Job that has an attempt's name was made for it."""
    wanted = labels(installation=installation, run_id=run_id, number=number)
    found = body["metadata"].get("labels", {})
    return all(found.get(key) == value for key, value in wanted.items())


def service_account(settings: PodSettings, profile: PodProfile) -> str:
    """Name the account that pods of a profile run as."""
    return profile.service_account or settings.run_service_account


def container_mark(container: PodContainer) -> str:
    """Give a short text that is another one for another container."""
    return hashlib.sha256(orjson.dumps(asdict(container), option=orjson.OPT_SORT_KEYS)).hexdigest()


def made_mark(job: Body) -> str | None:
    """Give the mark of the container that is the body of a Job's attempt; None if that is a process of ours.

    It is read where nobody can change it: a Job's template stays as it was made.
    """
    annotations = job["spec"]["template"].get("metadata", {}).get("annotations", {})
    mark: str | None = annotations.get(CONTAINER_ANNOTATION)
    return mark


def job(attempt: UnlaunchedAttempt, *, place: JobPlace, settings: PodSettings, profile: PodProfile) -> Body:
    """Make the Job that runs `cronplane attempt` for an attempt, in the profile of its entry."""
    pod = _pod(settings=settings, profile=profile, user=profile.run_as_user or _USER)
    pod["containers"] = [_container(attempt, settings=settings, profile=profile)]
    pod["volumes"] = [_token_volume(), {"name": "tmp", "emptyDir": {}}, *_secret_volumes(profile)]
    # A pod that is evicted before its attempt began is made anew; after that, the new one finds the gate shut.
    return _job(attempt, place=place, settings=settings, pod=pod, when_disrupted="Ignore")


def image_job(
    attempt: UnlaunchedAttempt,
    container: PodContainer,
    *,
    told: PendingAttempt,
    place: JobPlace,
    settings: PodSettings,
    profile: PodProfile,
) -> Body:
    """Make the Job whose pod is a container of the payload's, suspended until the attempt has passed the start gate."""
    pod = _pod(settings=settings, profile=profile, user=profile.run_as_user)
    pod["terminationGracePeriodSeconds"] = _IMAGE_TERMINATION_GRACE
    pod["containers"] = [_image_container(container, told=told, profile=profile)]
    pod["volumes"] = _secret_volumes(profile)
    made = _job(
        attempt,
        place=place,
        settings=settings,
        pod=pod,
        # The body may have been entered: whoever looks at the Job says what becomes of the attempt, not another pod.
        when_disrupted="FailJob",
        annotations={CONTAINER_ANNOTATION: container_mark(container)},
    )
    made["spec"] |= {"suspend": True, "ttlSecondsAfterFinished": _KEPT_UNSEEN}
    return made


def resumption(*, uid: str, within: timedelta) -> Body:
    """Give the patch that lets a suspended Job go on, and only the one of this UID, for so long."""
    seconds = max(_seconds(within + _LATE), 1)
    return {"metadata": {"uid": uid}, "spec": {"suspend": False, "activeDeadlineSeconds": seconds}}


def _job(
    attempt: UnlaunchedAttempt,
    *,
    place: JobPlace,
    settings: PodSettings,
    pod: Body,
    when_disrupted: str,
    annotations: Mapping[str, str] | None = None,
) -> Body:
    marks = labels(installation=place.installation, run_id=attempt.run_id, number=attempt.number)
    marks |= {CRON_LABEL: str(attempt.cron_id), **_entrypoint_label(attempt.entrypoint)}
    metadata = {"labels": marks, "annotations": {CRON_ANNOTATION: attempt.cron_name, **(annotations or {})}}
    disruption = {"type": "DisruptionTarget", "status": "True"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(attempt.run_id, attempt.number), "namespace": place.namespace, **metadata},
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": _seconds(settings.pod_start_timeout + attempt.timeout + _MARGIN),
            "ttlSecondsAfterFinished": KEPT,
            "podFailurePolicy": {"rules": [{"action": when_disrupted, "onPodConditions": [disruption]}]},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _entrypoint_label(entrypoint: str) -> dict[str, str]:
    """Label what runs an entry with its name; one that ends in `_`, as no label may, goes nowhere but to the API."""
    return {} if entrypoint.endswith("_") else {ENTRYPOINT_LABEL: entrypoint}


def _pod(*, settings: PodSettings, profile: PodProfile, user: int | None) -> Body:
    optional = {
        "nodeSelector": profile.node_selector,
        "tolerations": profile.tolerations,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "runtimeClassName": profile.runtime_class,
        "priorityClassName": profile.priority_class,
    }
    as_user = {} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        "restartPolicy": "Never",
        "serviceAccountName": service_account(settings, profile),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **as_user},
        **{key: value for key, value in optional.items() if value},
    }


def _container(attempt: UnlaunchedAttempt, *, settings: PodSettings, profile: PodProfile) -> Body:
    mounts = [
        {"name": "token", "mountPath": PROOF_DIRECTORY, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own, and empty
        *_secret_mounts(profile),
    ]
    resources = {"requests": profile.requests, "limits": profile.limits}
    return {
        "name": CONTAINER,
        "image": profile.image or settings.run_image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["attempt"],
        "env": _environment(attempt, settings=settings, profile=profile),
        "envFrom": _secret_variables(profile),
        "resources": {key: value for key, value in resources.items() if value},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "securityContext": {**_RESTRICTED, "readOnlyRootFilesystem": True},
    }


_RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _image_container(container: PodContainer, *, told: PendingAttempt, profile: PodProfile) -> Body:
    """Give the container as it was asked for; Kubernetes puts variables into its words where they say `$(NAME)`."""
    optional = {"command": list(container.command), "args": list(container.args)}
    ours = {
        "CRONPLANE_RUN_ID": str(told.run_id),
        "CRONPLANE_ATTEMPT": str(told.number),
        "CRONPLANE_SCHEDULED_FOR": told.scheduled_for.isoformat(),
    }
    # First ours, so that the others may refer to them; and of a name that is there twice, the administrator's.
    known = {**ours, **profile.environment, **ours}
    variables = [*known.items(), *((name, value) for name, value in container.env if name not in known)]
    return {
        "name": CONTAINER,
        "image": container.image,
        "env": [{"name": name, "value": value} for name, value in variables],
        "envFrom": _secret_variables(profile),
        "resources": {"requests": dict(container.requests), "limits": dict(container.limits)},
        "terminationMessagePolicy": "File",
        "volumeMounts": _secret_mounts(profile),
        "securityContext": _RESTRICTED,
        **{key: value for key, value in optional.items() if value},
    }


def _environment(attempt: UnlaunchedAttempt, *, settings: PodSettings, profile: PodProfile) -> list[Body]:
    ours = {
        "CRONPLANE_RUN_API_URL": settings.run_api_url,
        "CRONPLANE_RUN_ID": str(attempt.run_id),
        "CRONPLANE_ATTEMPT": str(attempt.number),
        "CRONPLANE_ATTEMPT_ENTRYPOINT": attempt.entrypoint,
        "CRONPLANE_ATTEMPT_TOKEN_FILE": f"{PROOF_DIRECTORY}/token",
    }
    told: list[Body] = [{"name": name, "value": value} for name, value in {**profile.environment, **ours}.items()]
    pod_name = {"fieldRef": {"fieldPath": "metadata.name"}}
    return [*told, {"name": "CRONPLANE_ATTEMPT_LOCATION", "valueFrom": pod_name}]


def _token_volume() -> Body:
    token = {"path": "token", "audience": AUDIENCE, "expirationSeconds": _TOKEN_SECONDS}
    return {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}}


def _secret_volumes(profile: PodProfile) -> list[Body]:
    return [{"name": f"secret-{n}", "secret": {"secretName": name}} for n, name in enumerate(profile.secret_files)]


def _secret_mounts(profile: PodProfile) -> list[Body]:
    paths = enumerate(profile.secret_files.values())
    return [{"name": f"secret-{n}", "mountPath": path, "readOnly": True} for n, path in paths]


def _secret_variables(profile: PodProfile) -> list[Body]:
    return [{"secretRef": {"name": name}} for name in profile.environment_secrets]


def _seconds(duration: timedelta) -> int:
    return -(-duration // _SECOND)
