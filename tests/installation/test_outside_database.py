"""The chart with a PostgreSQL of one's own outside the cluster, and runs and a team in namespaces of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import pytest

from tests.installation.release import HelmError, Release
from tests.kubectl import Kubectl

COMMAND = Path(sys.executable).with_name("cronplane")
# The definitions may still be those of a release before, which kept them.
TAKE_OVER = "--take-ownership"
EVERYWHERE = "0.0.0.0"  # noqa: S104 - pods come from elsewhere


@pytest.fixture(scope="module")
def server(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Serve a PostgreSQL on this machine; gives its addresses as service and as owner, as pods see it."""
    directory = tmp_path_factory.mktemp("postgresql")
    for folder in (directory, directory.parent, directory.parent.parent):
        folder.chmod(0o755)
    with socket.create_server((EVERYWHERE, 0)) as reserved:
        port = reserved.getsockname()[1]
    service_password, owner_password = token_urlsafe(32), token_urlsafe(32)
    settings = {
        "PATH": os.defpath,
        "CRONPLANE_POSTGRES_DIRECTORY": str(directory),
        "CRONPLANE_POSTGRES_PORT": str(port),
        "CRONPLANE_POSTGRES_SERVICE_PASSWORD": service_password,
        "CRONPLANE_POSTGRES_OWNER_PASSWORD": owner_password,
    }
    with subprocess.Popen(
        [COMMAND, "postgres"], env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        assert any("PostgreSQL serves" in line for line in server.stdout), "PostgreSQL did not start"
        yield {
            "url": f"postgresql://cronplane_service:{service_password}@{host}:{port}/cronplane",
            "owner-url": f"postgresql://cronplane:{owner_password}@{host}:{port}/cronplane",
        }
        server.terminate()


@pytest.fixture(scope="module")
def team(make_namespace: Callable[[str], str]) -> Kubectl:
    """Give a team its namespace."""
    return Kubectl(namespace=make_namespace("team"), patience=120)


@pytest.fixture(scope="module")
def values(make_namespace: Callable[[str], str], team: Kubectl) -> dict[str, Any]:
    return {
        "database": {"existingSecret": "our-database"},
        "migrations": {"wait": 10},
        "organizations": {"acme": {"namespaces": [team.namespace], "cronQuota": 2}},
        "runs": {"namespace": make_namespace("runs")},
    }


@pytest.fixture(scope="module")
def keep_addresses(release: Release, server: dict[str, str]) -> Callable[..., None]:
    """Put the addresses of the database into a Secret, with some of them changed."""

    def keep(**changed: str) -> None:
        data = server | changed
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "our-database"}, "stringData": data}
        release.kubectl("apply", "--filename", "-", given=json.dumps(secret))

    return keep


@pytest.fixture(scope="module")
def installed(release: Release, values: dict[str, Any], keep_addresses: Callable[..., None]) -> Release:
    release.remove()
    keep_addresses()
    release.install(TAKE_OVER, values=values)
    return release


def test_a_migration_that_fails_fails_the_release_and_says_why(
    release: Release, values: dict[str, Any], server: dict[str, str], keep_addresses: Callable[..., None]
) -> None:
    keep_addresses(**{"owner-url": server["owner-url"].replace("cronplane:", "cronplane:not-")})
    with pytest.raises(HelmError, match="password authentication failed"):
        release.install(TAKE_OVER, values=values)
    assert release.kubectl("get", "deployments", "--output=name") == "", "no new code is started"


def test_the_helm_test_passes(installed: Release) -> None:
    assert "has completed" in installed.test()


def test_a_cron_of_a_team_runs_where_runs_are(installed: Release, values: dict[str, Any], team: Kubectl) -> None:
    cron = {
        "apiVersion": "crons.cronplane.dev/v1alpha1",
        "kind": "Cron",
        "metadata": {"name": "each-minute"},
        "spec": {"cron_expr": "* * * * *", "tz": "UTC", "entrypoint": "dummy_print", "payload": {"message": "ours"}},
    }
    team("apply", "--filename", "-", given=json.dumps(cron))
    team.wait("jsonpath={.status.last_result}=completed", "cron/each-minute")
    [run, *_] = team.read("cron/each-minute")["status"]["runs"]
    assert run["job"].partition("/")[0] == values["runs"]["namespace"]
    assert installed.check() == ""


def test_quotas_of_the_values_hold(installed: Release, team: Kubectl) -> None:
    spec = {"cron_expr": "@yearly", "tz": "UTC", "entrypoint": "dummy_print", "payload": {"message": "one more"}}
    for name in ("second", "third"):
        cron = {"apiVersion": "crons.cronplane.dev/v1alpha1", "kind": "Cron", "metadata": {"name": name}, "spec": spec}
        team("apply", "--filename", "-", given=json.dumps(cron))
    team.wait("condition=Ready", "cron/second")
    team.wait("condition=Ready=False", "cron/third")
    assert "QuotaExceeded" in json.dumps(team.read("cron/third")["status"]["conditions"])


def test_nothing_that_the_operator_asks_for_is_forbidden(installed: Release) -> None:
    said = installed.kubectl("logs", "--selector=app.kubernetes.io/component=operator", "--tail=-1")
    assert "became leader" in said
    assert "forbidden" not in said


def test_uninstalling_leaves_only_what_the_team_applied(
    installed: Release, values: dict[str, Any], team: Kubectl
) -> None:
    installed.uninstall()
    assert len(team("get", "crons", "--output=name").split()) == 3
    runs = Kubectl(namespace=values["runs"]["namespace"])
    assert runs("get", "jobs,pods,roles,rolebindings,serviceaccounts", "--output=name") == "serviceaccount/default\n"
    everywhere = installed.kubectl("get", "clusterroles,clusterrolebindings", "--output=name")
    assert installed.namespace not in everywhere
