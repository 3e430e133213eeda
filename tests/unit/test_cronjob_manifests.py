"""CronJobs are found in whatever kubectl and repositories hold them in."""

import json
import sys
from pathlib import Path

import pytest

from cronplane_cli import cronjob_manifests
from cronplane_cli.errors import CommandError

CRONJOB = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "a"}}


def test_cronjobs_of_a_list_of_kubectl_are_found_in_json() -> None:
    found = cronjob_manifests.read(json.dumps({"apiVersion": "v1", "kind": "List", "items": [CRONJOB, CRONJOB]}))
    assert (found.cronjobs, found.others) == ((CRONJOB, CRONJOB), 0)


def test_objects_of_a_list_of_the_api_need_not_say_what_they_are() -> None:
    items = [{"metadata": {"name": "a"}}]
    found = cronjob_manifests.read(json.dumps({"apiVersion": "batch/v1", "kind": "CronJobList", "items": items}))
    assert found.cronjobs == (CRONJOB,)


def test_other_objects_are_passed_over_and_counted() -> None:
    text = (
        "---\n# nothing\n---\napiVersion: v1\nkind: Service\n---\n"
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: a}\n---\napiVersion: batch/v1beta1\nkind: CronJob\n"
    )
    found = cronjob_manifests.read(text)
    assert (found.cronjobs, found.others) == ((CRONJOB,), 2)


def test_json_needs_no_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert cronjob_manifests.read(json.dumps(CRONJOB)).cronjobs == (CRONJOB,)
    with pytest.raises(CommandError, match="pip install"):
        cronjob_manifests.read("kind: CronJob")


@pytest.mark.parametrize("text", ["password: [", "kind: !!python/object:os.system {}", "just words", "[1]", "5"])
def test_what_is_no_manifest_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(CommandError) as refused:
        cronjob_manifests.read(text)
    assert text not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"absent\.yaml cannot be read"):
        cronjob_manifests.read_file(str(tmp_path / "absent.yaml"))
