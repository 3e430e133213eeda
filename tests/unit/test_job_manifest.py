"""The Job of an attempt: its name, its limits, and what must not be in it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cronplane_core.attempt_job_repository import PendingAttempt, UnlaunchedAttempt
from cronplane_core.settings import PodProfile, PodSettings
from cronplane_entries.core import PodContainer
from cronplane_operator.job_manifest import (
    JobPlace,
    container_mark,
    image_job,
    is_job_of,
    job,
    job_name,
    made_mark,
    resumption,
)

ATTEMPT = UnlaunchedAttempt(
    run_id=UUID(int=1),
    number=2,
    organization_id=UUID(int=2),
    cron_id=UUID(int=3),
    cron_name="nightly",
    entrypoint="an_entry",
    timeout=timedelta(minutes=5),
    since=datetime(2026, 6, 1, tzinfo=UTC),
    catchup_window=None,
)
PLACE = JobPlace(installation="here", namespace="runs")
SETTINGS = PodSettings(run_image="an-image", run_api_url="http://api:8080")


def test_the_name_is_a_dns_label_that_run_and_attempt_decide() -> None:
    name = job_name(UUID(int=2**128 - 1), 1000)
    assert len(name) + len("-abcde") <= 63
    assert name == job_name(UUID(int=2**128 - 1), 1000)
    assert len({job_name(UUID(int=run), number) for run in (1, 2) for number in (1, 2)}) == 4


def test_a_job_is_known_as_the_attempts_by_its_labels_and_by_all_of_them() -> None:
    made = job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile())
    assert is_job_of(made, installation="here", run_id=ATTEMPT.run_id, number=2)
    assert not is_job_of(made, installation="there", run_id=ATTEMPT.run_id, number=2)
    assert not is_job_of(made, installation="here", run_id=ATTEMPT.run_id, number=1)
    assert not is_job_of({"metadata": {}}, installation="here", run_id=ATTEMPT.run_id, number=2)


def test_a_job_outlives_its_pods_start_and_its_attempt_and_is_never_restarted() -> None:
    spec = job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile())["spec"]
    assert spec["activeDeadlineSeconds"] == 600 + 300 + 60
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_deadline_is_rounded_up_to_whole_seconds() -> None:
    short = replace(ATTEMPT, timeout=timedelta(milliseconds=1))
    assert job(short, place=PLACE, settings=SETTINGS, profile=PodProfile())["spec"]["activeDeadlineSeconds"] == 661


def test_a_pod_has_no_token_for_the_cluster_and_one_for_us() -> None:
    pod = job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile())["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    [source] = pod["volumes"][0]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "cronplane"


def test_a_profile_makes_the_pod_and_cannot_take_our_variables() -> None:
    profile = PodProfile(
        image="theirs",
        service_account="reporter",
        limits={"memory": "64Mi"},
        node_selector={"disk": "fast"},
        environment={"CRONPLANE_RUN_ID": "another", "COLOR": "blue"},
        environment_secrets=["credentials"],
        secret_files={"certificate": "/certificate"},
        runtime_class="gvisor",
    )
    pod = job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=profile)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert (container["image"], pod["serviceAccountName"], pod["runtimeClassName"]) == ("theirs", "reporter", "gvisor")
    assert (environment["CRONPLANE_RUN_ID"], environment["COLOR"]) == (str(ATTEMPT.run_id), "blue")
    assert environment["CRONPLANE_ATTEMPT_ENTRYPOINT"] == ATTEMPT.entrypoint
    assert container["envFrom"] == [{"secretRef": {"name": "credentials"}}]
    assert {"name": "secret-0", "secret": {"secretName": "certificate"}} in pod["volumes"]
    assert {"name": "secret-0", "mountPath": "/certificate", "readOnly": True} in container["volumeMounts"]
    assert pod["nodeSelector"] == {"disk": "fast"}


@pytest.mark.parametrize("unknown", [{"hostNetwork": True}, {"imagePullPolicy": "Always"}])
def test_a_profile_with_an_unknown_setting_is_refused(unknown: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        PodProfile.model_validate(unknown)


def test_no_organization_and_no_payload_is_in_a_job() -> None:
    written = json.dumps(job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile()))
    assert str(ATTEMPT.organization_id) not in written


def test_a_pod_says_whose_entrys_it_is_where_a_label_may_say_so() -> None:
    def label(entrypoint: str) -> str | None:
        made = job(replace(ATTEMPT, entrypoint=entrypoint), place=PLACE, settings=SETTINGS, profile=PodProfile())
        labels: dict[str, str] = made["spec"]["template"]["metadata"]["labels"]
        return labels.get("crons.cronplane.dev/entrypoint")

    assert label("http_request") == "http_request"
    assert label("ends_in_") is None


# Containers of a payload

CONTAINER = PodContainer(
    image="registry.example/team/report:1",
    args=("--run", "$(CRONPLANE_RUN_ID)"),
    env=(("COLOR", "blue"), ("PROXY", "theirs")),
    limits={"memory": "64Mi"},
)
TOLD = PendingAttempt(
    run_id=ATTEMPT.run_id,
    number=ATTEMPT.number,
    organization_id=ATTEMPT.organization_id,
    cron_id=ATTEMPT.cron_id,
    cron_name=ATTEMPT.cron_name,
    entrypoint=ATTEMPT.entrypoint,
    payload_json="{}",
    scheduled_for=datetime(2026, 6, 1, tzinfo=UTC),
    trigger_kind="schedule",
    deadline=datetime(2026, 6, 1, 0, 5, tzinfo=UTC),
)


def made_for(container: PodContainer, profile: PodProfile | None = None) -> dict[str, Any]:
    profile = profile or PodProfile()
    return image_job(ATTEMPT, container, told=TOLD, place=PLACE, settings=SETTINGS, profile=profile)


def test_a_containers_job_waits_for_the_gate_and_fails_when_its_pod_is_disrupted() -> None:
    spec = made_for(CONTAINER)["spec"]
    assert spec["suspend"] is True
    assert spec["backoffLimit"] == 0
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_a_containers_job_is_kept_until_somebody_has_seen_how_it_ended() -> None:
    ours = job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile())["spec"]["ttlSecondsAfterFinished"]
    assert made_for(CONTAINER)["spec"]["ttlSecondsAfterFinished"] > 100 * ours


def test_no_token_and_nothing_of_ours_is_in_a_containers_pod() -> None:
    pod = made_for(CONTAINER)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["volumes"] == pod["containers"][0]["volumeMounts"] == []


def test_a_container_is_as_it_was_asked_for_with_our_variables_first_and_the_administrators_above_its_own() -> None:
    profile = PodProfile(environment={"PROXY": "ours", "CRONPLANE_ATTEMPT": "3"})
    pod = made_for(CONTAINER, profile)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (container["image"], container["args"]) == (CONTAINER.image, ["--run", "$(CRONPLANE_RUN_ID)"])
    assert "command" not in container
    assert [(each["name"], each["value"]) for each in container["env"]] == [
        ("CRONPLANE_RUN_ID", str(ATTEMPT.run_id)),
        ("CRONPLANE_ATTEMPT", "2"),
        ("CRONPLANE_SCHEDULED_FOR", "2026-06-01T00:00:00+00:00"),
        ("PROXY", "ours"),
        ("COLOR", "blue"),
    ]
    assert container["resources"] == {"requests": {}, "limits": {"memory": "64Mi"}}


def test_a_container_is_never_root_and_is_the_images_user_unless_the_profile_names_one() -> None:
    of_image = made_for(CONTAINER)["spec"]["template"]["spec"]["securityContext"]
    named = made_for(CONTAINER, PodProfile(run_as_user=1000))["spec"]["template"]["spec"]["securityContext"]
    assert of_image["runAsNonRoot"] is named["runAsNonRoot"] is True
    assert "runAsUser" not in of_image
    assert (named["runAsUser"], named["runAsGroup"]) == (1000, 1000)


def test_a_job_tells_by_its_template_which_container_it_was_made_of() -> None:
    made, other = made_for(CONTAINER), replace(CONTAINER, args=("--all",))
    made["metadata"]["annotations"] = {}
    assert made_mark(made) == container_mark(CONTAINER) != container_mark(other)
    assert made_mark(job(ATTEMPT, place=PLACE, settings=SETTINGS, profile=PodProfile())) is None


@pytest.mark.parametrize(("within", "seconds"), [(59.5, 70), (0, 10), (-3600, 1)])
def test_a_job_that_goes_on_has_until_a_moment_after_its_deadline(within: float, seconds: int) -> None:
    patch = resumption(uid="a uid", within=timedelta(seconds=within))
    assert patch == {"metadata": {"uid": "a uid"}, "spec": {"suspend": False, "activeDeadlineSeconds": seconds}}
