"""What the Job of an attempt looks like (batch/v1; Kubernetes API reference, "Job").

Made from records alone. It holds no payload and no secret: what runs in the pod asks the API for what it has to do, and
proves by a projected service-account token, bound to its pod, that it may.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from cronplane_core.attempt_job_repository import UnlaunchedAttempt
from cronplane_core.kubernetes_client import Body
from cronplane_core.settings import PodProfile, PodSettings

INSTALLATION_LABEL = "crons.cronplane.dev/installation"
RUN_LABEL = "crons.cronplane.dev/run-id"
ATTEMPT_LABEL = "crons.cronplane.dev/attempt"
SETTLED_LABEL = "crons.cronplane.dev/settled"
CRON_LABEL = "crons.cronplane.dev/cron-id"
# By it a NetworkPolicy says where pods of an entry may go.
ENTRYPOINT_LABEL = "crons.cronplane.dev/entrypoint"
CRON_ANNOTATION = "crons.cronplane.dev/cron"
CONTAINER = "attempt"
AUDIENCE = "cronplane"
PROOF_DIRECTORY = "/var/run/secrets/cronplane"
# Seconds. After SIGTERM the executor is cancelled, and what is left of the time is for telling of it.
TERMINATION_GRACE = 30
# How long a Job that is over is kept for people to look at; its log is kept with the run.
_KEPT = 600
# The shortest that Kubernetes takes: the kubelet renews the token long before.
_TOKEN_SECONDS = 600
_USER = 65532
# What the process has beyond its attempt's timeout to tell of its end.
_MARGIN = timedelta(seconds=60)
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


def job(attempt: UnlaunchedAttempt, *, place: JobPlace, settings: PodSettings, profile: PodProfile) -> Body:
    """Make the Job that runs `cronplane attempt` for an attempt, in the profile of its entry."""
    marks = labels(installation=place.installation, run_id=attempt.run_id, number=attempt.number)
    marks |= {CRON_LABEL: str(attempt.cron_id), **_entrypoint_label(attempt.entrypoint)}
    metadata = {"labels": marks, "annotations": {CRON_ANNOTATION: attempt.cron_name}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(attempt.run_id, attempt.number), "namespace": place.namespace, **metadata},
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "activeDeadlineSeconds": _seconds(settings.pod_start_timeout + attempt.timeout + _MARGIN),
            "ttlSecondsAfterFinished": _KEPT,
            # A pod that is evicted before its attempt began is made anew; after that, the new one finds the gate shut.
            "podFailurePolicy": {
                "rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
            },
            "template": {"metadata": metadata, "spec": _pod(attempt, settings=settings, profile=profile)},
        },
    }


def _entrypoint_label(entrypoint: str) -> dict[str, str]:
    """Label what runs an entry with its name; one that ends in `_`, as no label may, goes nowhere but to the API."""
    return {} if entrypoint.endswith("_") else {ENTRYPOINT_LABEL: entrypoint}


def _pod(attempt: UnlaunchedAttempt, *, settings: PodSettings, profile: PodProfile) -> Body:
    optional = {
        "nodeSelector": profile.node_selector,
        "tolerations": profile.tolerations,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "runtimeClassName": profile.runtime_class,
        "priorityClassName": profile.priority_class,
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": service_account(settings, profile),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(attempt, settings=settings, profile=profile)],
        "volumes": [_token_volume(), {"name": "tmp", "emptyDir": {}}, *_secret_volumes(profile)],
        **{key: value for key, value in optional.items() if value},
    }


def _container(attempt: UnlaunchedAttempt, *, settings: PodSettings, profile: PodProfile) -> Body:
    mounts = [
        {"name": "token", "mountPath": PROOF_DIRECTORY, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own, and empty
        *({"name": f"secret-{n}", "mountPath": path, "readOnly": True} for n, path in _numbered(profile.secret_files)),
    ]
    resources = {"requests": profile.requests, "limits": profile.limits}
    return {
        "name": CONTAINER,
        "image": profile.image or settings.run_image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["attempt"],
        "env": _environment(attempt, settings=settings, profile=profile),
        "envFrom": [{"secretRef": {"name": name}} for name in profile.environment_secrets],
        "resources": {key: value for key, value in resources.items() if value},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _environment(attempt: UnlaunchedAttempt, *, settings: PodSettings, profile: PodProfile) -> list[Body]:
    ours = {
        "CRONPLANE_RUN_API_URL": settings.run_api_url,
        "CRONPLANE_RUN_ID": str(attempt.run_id),
        "CRONPLANE_ATTEMPT": str(attempt.number),
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


def _numbered(secret_files: Mapping[str, str]) -> list[tuple[int, str]]:
    return list(enumerate(secret_files.values()))


def _seconds(duration: timedelta) -> int:
    return -(-duration // _SECOND)
