"""What a CronJob becomes, and what is said of that which it does not."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from cronplane_cli.cronjob import CronJobInvalidError, read_cronjob
from cronplane_cli.cronjob_remainder import Effect
from cronplane_cli.cronjob_translation import Translation, translate
from cronplane_core.tables import Overlap
from cronplane_entries.container import UserPayload

NOW = datetime(2026, 11, 29, tzinfo=UTC)
SECRET = "correct horse battery staple"
POD = "spec.jobTemplate.spec.template.spec"
CONTAINER = f"{POD}.containers[0]"


def body(
    *, spec: dict[str, Any] | None = None, job: Any = None, pod: Any = None, container: Any = None, **metadata: Any
) -> dict[str, Any]:
    """A CronJob that loses nothing and has nothing to remark, with changes."""
    whole = {
        "name": "main",
        "image": "registry.example/shop/report:1.4",
        "resources": {"limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}},
        **(container or {}),
    }
    whole_pod = {
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True},
        "containers": [whole],
        **(pod or {}),
    }
    whole_job = {"backoffLimit": 0, "activeDeadlineSeconds": 600, "template": {"spec": whole_pod}, **(job or {})}
    whole_spec = {
        "schedule": "0 9 * * 1-5",
        "timeZone": "Europe/Paris",
        "startingDeadlineSeconds": 300,
        "jobTemplate": {"spec": whole_job},
        **(spec or {}),
    }
    return {"metadata": {"name": "report", "namespace": "shop", **metadata}, "spec": whole_spec}


def translation(*, default_zone: str = "UTC", is_paused: bool = False, **changes: Any) -> Translation:
    return translate(read_cronjob(body(**changes)), default_zone=default_zone, is_paused=is_paused, now=NOW)


def said(found: Translation, effect: Effect) -> dict[str, str]:
    return {remark.path: remark.message for remark in found.remarks if remark.effect is effect}


def cron(**changes: Any) -> dict[str, Any]:
    made = translation(**changes).cron
    assert made is not None
    dumped: dict[str, Any] = made.model_dump(mode="json", exclude_none=True)
    return dumped


def test_a_cronjob_that_loses_nothing_is_a_cron_without_a_remark() -> None:
    found = translation()
    assert found.remarks == ()
    assert cron() == {
        "name": "shop/report",
        "cron_expr": "0 9 * * 1-5",
        "tz": "Europe/Paris",
        "entrypoint": "container",
        "payload": {
            "image": "registry.example/shop/report:1.4",
            "resources": {"limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}},
        },
        "enabled": True,
        "overlap": "skip",
        "catchup_window": 300,
        "timeout": 600,
        "max_attempts": 1,
        "run_timeout": 600,
    }


def test_what_the_api_server_fills_in_is_no_remark() -> None:
    filled_in = {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    pod = {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30}
    spec = {
        "concurrencyPolicy": "Allow",
        "suspend": False,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1,
    }
    assert translation(spec=spec, pod=pod, container=filled_in).remarks == ()


def test_the_container_goes_into_a_payload_that_the_entry_takes() -> None:
    container = {
        "command": ["python", "-m"],
        "args": ["report", "$(DAY)"],
        "env": [{"name": "Z", "value": "1"}, {"name": "DAY", "value": "$(Z)"}, {"name": "EMPTY"}],
        "resources": {"requests": {"cpu": 0.5, "memory": 67108864}, "limits": {"cpu": 1}},
    }
    payload = cron(container=container)["payload"]
    assert payload == {
        "image": "registry.example/shop/report:1.4",
        "command": ["python", "-m"],
        "args": ["report", "$(DAY)"],
        "env": [{"name": "Z", "value": "1"}, {"name": "DAY", "value": "$(Z)"}, {"name": "EMPTY", "value": ""}],
        "resources": {"requests": {"cpu": "0.5", "memory": "67108864"}, "limits": {"cpu": "1"}},
    }
    UserPayload.model_validate_json(json.dumps(payload))


def test_of_two_variables_with_one_name_the_later_counts() -> None:
    container = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}
    assert cron(container=container)["payload"]["env"] == [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]


def test_a_variable_from_elsewhere_is_lost_and_told_by_its_name() -> None:
    reference = {"secretKeyRef": {"name": SECRET, "key": "password"}}
    found = translation(container={"env": [{"name": "PASSWORD", "valueFrom": reference}]})
    assert list(said(found, Effect.LOST)) == [f"{CONTAINER}.env[PASSWORD].valueFrom"]
    assert found.cron is not None
    assert "env" not in found.cron.payload


def test_values_of_variables_are_in_no_remark() -> None:
    env = [{"name": "PASSWORD", "value": SECRET}, {"name": "OTHER", "value": SECRET, "newField": SECRET}]
    found = translation(container={"env": env, "workingDir": SECRET, "envFrom": [{"prefix": SECRET}]})
    assert len(found.remarks) == 3
    assert SECRET not in str(found.remarks)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"pod": {"initContainers": [{"name": "a"}]}}, f"{POD}.initContainers"),
        ({"pod": {"volumes": [{"name": "a", "emptyDir": {}}]}}, f"{POD}.volumes"),
        ({"pod": {"serviceAccountName": "robot", "serviceAccount": "robot"}}, f"{POD}.serviceAccountName"),
        ({"pod": {"serviceAccount": "robot"}}, f"{POD}.serviceAccount"),
        ({"pod": {"activeDeadlineSeconds": 0}}, f"{POD}.activeDeadlineSeconds"),
        ({"pod": {"automountServiceAccountToken": True}}, f"{POD}.automountServiceAccountToken"),
        ({"pod": {"nodeSelector": {"disk": "ssd"}}}, f"{POD}.nodeSelector"),
        ({"pod": {"hostNetwork": True}}, f"{POD}.hostNetwork"),
        ({"pod": {"securityContext": {"runAsNonRoot": True, "runAsUser": 5}}}, f"{POD}.securityContext.runAsUser"),
        ({"container": {"envFrom": [{"secretRef": {"name": "a"}}]}}, f"{CONTAINER}.envFrom"),
        ({"container": {"volumeMounts": [{"name": "a", "mountPath": "/a"}]}}, f"{CONTAINER}.volumeMounts"),
        ({"container": {"workingDir": "/srv"}}, f"{CONTAINER}.workingDir"),
        ({"container": {"lifecycle": {"preStop": {}}}}, f"{CONTAINER}.lifecycle"),
        ({"container": {"imagePullPolicy": "Always"}}, f"{CONTAINER}.imagePullPolicy"),
        ({"container": {"securityContext": {"privileged": True}}}, f"{CONTAINER}.securityContext.privileged"),
        ({"container": {"resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}}, f"{CONTAINER}.resources.limits"),
        ({"container": {"resources": None}}, f"{CONTAINER}.resources.limits"),
        ({"job": {"parallelism": 2}}, "spec.jobTemplate.spec.parallelism"),
        ({"job": {"parallelism": 0}}, "spec.jobTemplate.spec.parallelism"),
        ({"job": {"completions": 3}}, "spec.jobTemplate.spec.completions"),
        ({"job": {"suspend": True}}, "spec.jobTemplate.spec.suspend"),
        ({"job": {"backoffLimit": 200}}, "spec.jobTemplate.spec.backoffLimit"),
        ({"job": {"podFailurePolicy": {"rules": []}}}, "spec.jobTemplate.spec.podFailurePolicy"),
        ({"spec": {"startingDeadlineSeconds": 0}}, "spec.startingDeadlineSeconds"),
        ({"spec": {"aFieldOfTomorrow": 1}}, "spec.aFieldOfTomorrow"),
    ],
)
def test_what_a_cron_has_not_is_lost(changes: dict[str, Any], path: str) -> None:
    assert list(said(translation(**changes), Effect.LOST)) == [path]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"spec": {"failedJobsHistoryLimit": 5}}, "spec.failedJobsHistoryLimit"),
        ({"spec": {"concurrencyPolicy": "Forbid"}}, "spec.concurrencyPolicy"),
        ({"spec": {"startingDeadlineSeconds": None}}, "spec.startingDeadlineSeconds"),
        ({"job": {"ttlSecondsAfterFinished": 60}}, "spec.jobTemplate.spec.ttlSecondsAfterFinished"),
        ({"pod": {"terminationGracePeriodSeconds": 0}}, f"{POD}.terminationGracePeriodSeconds"),
        ({"pod": {"securityContext": None}}, f"{POD}.securityContext"),
        ({"container": {"ports": [{"containerPort": 80}]}}, f"{CONTAINER}.ports"),
    ],
)
def test_what_changes_nothing_of_the_job_is_noted(changes: dict[str, Any], path: str) -> None:
    found = translation(**changes)
    assert list(said(found, Effect.NOTED)) == [path]
    assert said(found, Effect.LOST) == {}


def test_other_resources_are_lost() -> None:
    limits = {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": 1}
    found = translation(container={"resources": {"limits": limits}})
    assert list(said(found, Effect.LOST)) == [f"{CONTAINER}.resources.limits[nvidia.com/gpu]"]
    assert "nvidia.com/gpu" not in str(found.cron)


def test_of_several_containers_only_the_first_would_run() -> None:
    containers = [body()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0], {"image": "sidecar"}]
    assert "2" in said(translation(pod={"containers": containers}), Effect.LOST)[f"{POD}.containers"]


def test_labels_of_a_pod_are_noted() -> None:
    whole = body()
    whole["spec"]["jobTemplate"]["spec"]["template"]["metadata"] = {"labels": {"app": "a"}, "creationTimestamp": None}
    found = translate(read_cronjob(whole), default_zone="UTC", is_paused=False, now=NOW)
    assert list(said(found, Effect.NOTED)) == ["spec.jobTemplate.spec.template.metadata.labels"]


@pytest.mark.parametrize("image", ["nginx", "nginx:latest", "registry.example:5000/shop/report"])
def test_an_image_without_a_tag_of_its_own_is_pulled_each_time_as_in_kubernetes(image: str) -> None:
    assert translation(container={"image": image, "imagePullPolicy": "Always"}).remarks == ()
    assert said(translation(container={"image": image, "imagePullPolicy": "IfNotPresent"}), Effect.LOST)


def test_a_schedule_without_a_zone_is_in_that_of_the_cluster() -> None:
    found = translation(spec={"timeZone": None}, default_zone="Asia/Tokyo")
    assert found.time_zone == "Asia/Tokyo"
    assert list(said(found, Effect.NOTED)) == ["spec.timeZone"]


def test_a_zone_in_the_schedule_is_the_crons() -> None:
    made = cron(spec={"schedule": "CRON_TZ=Asia/Tokyo 0 9 * * *", "timeZone": None})
    assert (made["cron_expr"], made["tz"]) == ("0 9 * * *", "Asia/Tokyo")


@pytest.mark.parametrize(
    ("schedule", "zone"),
    [
        ("0 9 * * 7", "UTC"),
        ("0 0 31 2 *", "UTC"),
        ("@every 7m", "UTC"),
        ("@every 2h", "Mars/Phobos"),
        ("@daily", "Mars/Phobos"),
    ],
)
def test_a_schedule_that_cannot_be_written_makes_no_cron(schedule: str, zone: str) -> None:
    found = translation(spec={"schedule": schedule, "timeZone": zone})
    assert found.cron is None
    assert list(said(found, Effect.LOST)) == ["spec.schedule"]


def test_an_interval_becomes_its_nearest_schedule_and_is_a_loss() -> None:
    found = translation(spec={"schedule": "@every 2h"})
    assert found.cron is not None
    assert found.cron.cron_expr == "0 */2 * * *"
    assert list(said(found, Effect.LOST)) == ["spec.schedule"]


def test_a_schedule_that_is_read_otherwise_is_rewritten_and_noted() -> None:
    found = translation(spec={"schedule": "0 4 */10 * 1"})
    assert said(found, Effect.LOST) == {}
    assert "'0 4 1,11,21,31 * 1'" in said(found, Effect.NOTED)["spec.schedule"]


def test_fires_that_differ_on_days_of_a_clock_change_are_a_loss() -> None:
    found = translation(spec={"schedule": "30 2 * * *"})
    assert list(said(found, Effect.LOST)) == ["spec.schedule"]
    assert len(found.comparison.remaining) == 2


@pytest.mark.parametrize("policy", ["Allow", "Replace"])
def test_runs_that_may_overlap_lose_that_they_do(policy: str) -> None:
    found = translation(spec={"concurrencyPolicy": policy, "schedule": "*/10 * * * *"})
    assert list(said(found, Effect.LOST)) == ["spec.concurrencyPolicy"]
    assert found.cron is not None
    assert found.cron.overlap is Overlap.SKIP


@pytest.mark.parametrize("policy", ["Allow", "Replace"])
def test_runs_that_cannot_overlap_lose_nothing(policy: str) -> None:
    assert translation(spec={"concurrencyPolicy": policy, "schedule": "0 * * * *"}).remarks == ()


def test_retries_are_attempts_with_the_waits_of_a_job_which_are_those_of_a_cron() -> None:
    made = cron(job={"backoffLimit": None})
    assert made["max_attempts"] == 7
    assert "backoff" not in made


def test_restarts_in_the_same_pod_are_attempts_in_pods_of_their_own() -> None:
    found = translation(pod={"restartPolicy": "OnFailure"}, job={"backoffLimit": 3})
    assert list(said(found, Effect.NOTED)) == [f"{POD}.restartPolicy"]


def test_deadlines_of_a_pod_and_of_a_job_are_those_of_an_attempt_and_of_a_run() -> None:
    made = cron(pod={"activeDeadlineSeconds": 60})
    assert (made["timeout"], made["run_timeout"]) == (60, 600)


def test_without_deadlines_a_run_has_as_long_as_it_may() -> None:
    found = translation(job={"activeDeadlineSeconds": None}, spec={"concurrencyPolicy": "Forbid"})
    assert found.cron is not None
    assert (found.cron.timeout, found.cron.run_timeout) == (7 * 24 * 3600, None)
    assert "spec.jobTemplate.spec.activeDeadlineSeconds" in said(found, Effect.NOTED)


def test_a_suspended_cronjob_and_one_that_is_told_to_be_come_over_paused() -> None:
    assert cron(spec={"suspend": True})["enabled"] is False
    assert cron(is_paused=True)["enabled"] is False


def test_losses_can_be_accepted_by_their_field_or_one_above_it() -> None:
    found = translation(pod={"nodeSelector": {"a": "b"}}, container={"workingDir": "/srv"})
    assert len(found.losses(accepted=[])) == 2
    assert [loss.path for loss in found.losses(accepted=[f"{POD}.nodeSelector"])] == [f"{CONTAINER}.workingDir"]
    assert [loss.path for loss in found.losses(accepted=[f"{POD}.node"])] == [
        f"{POD}.nodeSelector",
        f"{CONTAINER}.workingDir",
    ]
    assert found.losses(accepted=[POD]) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a"}, "spec": SECRET},
        body(spec={"schedule": 5}),
        body(spec={"concurrencyPolicy": "Perhaps"}),
        body(pod={"containers": []}),
        body(pod={"restartPolicy": "Always"}),
        body(container={"env": [{"name": "A", "value": {"a": SECRET}}]}),
        body(container={"command": SECRET}),
        body(job={"backoffLimit": "6"}),
        body(job={"backoffLimit": -1}),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_without_its_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(CronJobInvalidError) as refused:
        read_cronjob(deepcopy(wrong))
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None
