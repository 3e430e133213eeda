"""The commands that the chart calls, with accounts that have just the rights they need, on a real API server."""

import asyncio
import base64
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

COMMAND = str(Path(sys.executable).with_name("cronplane"))
EVERYWHERE = "0.0.0.0"  # noqa: S104 - pods come from elsewhere
HANG_GUARD = 120
CRONS_GROUP = "crons.cronplane.dev"
INSTALLATION_LABEL = f"{CRONS_GROUP}/installation"
DECLARED: list[dict[str, Any]] = [
    {
        "name": "x-installation",
        "keys": {"installation-key": {"generate": "password"}, "token-keys": {"generate": "token-keys"}},
        "labels": {"app.kubernetes.io/component": "credentials"},
    },
    {
        "name": "x-database",
        "keys": {
            "owner-password": {"generate": "password"},
            "owner-url": {"template": "postgresql://cronplane:{owner-password}@database:5432/cronplane"},
        },
    },
]


def start(*arguments: str, kubeconfig: Path, **settings: object) -> subprocess.Popen[str]:
    given = {f"CRONPLANE_{name.upper()}": str(value) for name, value in settings.items()}
    return subprocess.Popen(
        [COMMAND, *arguments],
        env={"PATH": os.defpath, "CRONPLANE_KUBECONFIG": str(kubeconfig), **given},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def told(process: subprocess.Popen[str], *, status: int = 0) -> str:
    said, _ = process.communicate(timeout=HANG_GUARD)
    assert process.returncode == status, said
    assert "Traceback" not in said
    return said


@pytest.fixture
def namespace(kubectl: Any) -> Iterator[str]:
    name = f"cronplane-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    kubectl("delete", "namespace", "--wait=false", name)


# Credentials


@pytest.fixture
def make_credentials(namespace: str, make_account: Callable[..., Path]) -> Callable[..., subprocess.Popen[str]]:
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create", "patch"]}]
    kubeconfig = make_account("credentials", namespace=namespace, rights={namespace: rules})

    def make(declared: object = DECLARED) -> subprocess.Popen[str]:
        declared = json.dumps(declared)
        return start("credentials", kubeconfig=kubeconfig, release_namespace=namespace, credentials=declared)

    return make


def values(kubectl: Any, name: str, namespace: str) -> dict[str, str]:
    data = kubectl.read(f"secret/{name}", "--namespace", namespace)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


async def test_passwords_are_made_once_and_never_said(kubectl: Any, namespace: str, make_credentials: Any) -> None:
    first = told(make_credentials())
    assert first.count(": made.") == 2
    made = [values(kubectl, declared["name"], namespace) for declared in DECLARED]
    assert len(made[0]["installation-key"]) >= 32
    assert re.fullmatch(r"1:[-_A-Za-z0-9]{43}", made[0]["token-keys"])
    assert made[1]["owner-url"] == f"postgresql://cronplane:{made[1]['owner-password']}@database:5432/cronplane"
    labels = kubectl.read("secret/x-installation", "--namespace", namespace)["metadata"]["labels"]
    assert labels == DECLARED[0]["labels"]

    assert told(make_credentials()).count(": nothing is missing.") == 2
    assert [values(kubectl, declared["name"], namespace) for declared in DECLARED] == made
    said = first.encode()
    assert [value for each in made for value in each.values() if value.encode() in said] == []


async def test_what_a_secret_of_ones_own_lacks_is_added_and_the_rest_kept(
    kubectl: Any, namespace: str, make_credentials: Any
) -> None:
    own = ("--from-literal=owner-password=p@ss/word", "--from-literal=other=mine")
    kubectl("create", "secret", "generic", "x-database", "--namespace", namespace, *own)
    assert "x-database: added owner-url." in told(make_credentials())
    assert values(kubectl, "x-database", namespace) == {
        "owner-password": "p@ss/word",
        "other": "mine",
        "owner-url": "postgresql://cronplane:p%40ss%2Fword@database:5432/cronplane",
    }


async def test_many_that_make_credentials_at_once_agree(kubectl: Any, namespace: str, make_credentials: Any) -> None:
    kubectl("create", "secret", "generic", "x-installation", "--namespace", namespace, "--from-literal=other=mine")
    said = [told(job) for job in [make_credentials() for _ in range(4)]]
    assert sum("x-database: made." in each for each in said) == 1
    assert sum("x-installation: added" in each for each in said) == 1
    database = values(kubectl, "x-database", namespace)
    assert database["owner-password"] in database["owner-url"]


async def test_a_template_that_names_nothing_is_refused_before_anything_is_made(
    kubectl: Any, namespace: str, make_credentials: Any
) -> None:
    wrong = {"name": "x-other", "keys": {"url": {"template": "postgresql://{nobody}@database"}}}
    assert "nobody" in told(make_credentials([*DECLARED, wrong]), status=1)
    assert kubectl("get", "secrets", "--namespace", namespace, "--output=name") == ""


# Selftest


@pytest.fixture
def selftest(
    *, installation: Any, make_account: Callable[..., Path], image: str, start_process: Any, start_operator: Any
) -> Callable[..., subprocess.Popen[str]]:
    """Start API and operator, which runs `dummy_print` in pods, and then the trial of both."""
    host = os.environ.get("CRONPLANE_TEST_HOST")
    if not host:
        pytest.skip("CRONPLANE_TEST_HOST is not set, so that pods cannot reach the API")
    rules = [{"apiGroups": [CRONS_GROUP], "resources": ["crons"], "verbs": ["get"]}]
    kubeconfig = make_account("selftest", namespace=installation.namespace, rights={installation.tenant: rules})
    key = secrets.token_urlsafe(32)
    with socket.create_server((EVERYWHERE, 0)) as reserved:
        port = reserved.getsockname()[1]
    in_pods = {"entry_dummy_print_execution": "pod"}
    api = {"host": EVERYWHERE, "port": port, "pod_attempts": True, "kubeconfig": installation.api_kubeconfig, **in_pods}

    def selftest(*, with_operator: bool = True, **settings: object) -> subprocess.Popen[str]:
        start_process("api", installation_key=key, **api).log.wait_for("Uvicorn running on")
        if with_operator:
            start_operator(
                run_image=image,
                run_namespace=installation.runs,
                run_service_account=f"{installation.name}-run",
                run_api_url=f"http://{host}:{port}",
                **in_pods,
            )
        asked = {
            "url": f"http://127.0.0.1:{port}",
            "installation_key": key,
            "selftest_organization": "acme",
            "release_namespace": installation.namespace,
            "namespaces": json.dumps({installation.tenant: "acme"}),
        }
        return start("selftest", kubeconfig=kubeconfig, **asked | settings)

    return selftest


LEFT_OVER = """
    SELECT (SELECT count(*) FROM scheduler.cron_jobs WHERE deleted_at IS NULL),
           (SELECT count(*) FROM scheduler.api_keys WHERE revoked_at IS NULL)
"""


async def test_an_installation_that_works_passes_its_selftest_and_nothing_is_left_of_it(
    database: Any, kubectl: Any, installation: Any, selftest: Any
) -> None:
    said = await asyncio.to_thread(told, selftest())
    assert "has completed" in said
    assert f"its Job was {installation.runs}/cronplane-" in said
    assert database.execute(LEFT_OVER) == [(0, 0)]
    assert kubectl("get", "crons", "--namespace", installation.tenant, "--output=name") == ""


async def test_without_an_operator_the_selftest_says_where_it_stands_and_leaves_nothing(
    database: Any, selftest: Any
) -> None:
    said = await asyncio.to_thread(told, selftest(with_operator=False, selftest_patience=3), status=1)
    assert "the run is queued" in said
    assert database.execute(LEFT_OVER) == [(0, 0)]


# Uninstall


def cron(name: str, namespace: str, *, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    shown = {"cron_expr": "@daily", "tz": "UTC", "entrypoint": "dummy_print"}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": f"{CRONS_GROUP}/v1alpha1", "kind": "Cron", "metadata": metadata, "spec": shown | spec}


def job(name: str, namespace: str, *, labels: dict[str, str]) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "idle", "image": "none"}]}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    spec = {"suspend": True, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


async def test_an_uninstallation_removes_what_was_made_and_keeps_what_people_applied(
    *, kubectl: Any, installation: Any, make_account: Callable[..., Path], start_operator: Any, add_cron: Any
) -> None:
    operator = start_operator()
    await add_cron("mirrored")
    here = ("--namespace", installation.tenant)
    kubectl.wait("create", "cron/mirrored", *here)
    kubectl.wait("create", f"runner/{installation.name}", "--namespace", installation.namespace)
    operator.stop()

    ours, others = {INSTALLATION_LABEL: installation.name}, {INSTALLATION_LABEL: "another"}
    bodies = [
        cron("applied", installation.tenant, labels={}, payload={"message": "hello"}),
        cron("copied-from-a-mirror", installation.tenant, labels=ours, payload={"message": "hello"}),
        cron("of-another", installation.tenant, labels=others),
        cron("mirrored-in-the-release", installation.namespace, labels=ours),
        job("ours", installation.runs, labels=ours),
        job("of-another", installation.runs, labels=others),
    ]
    for body in bodies:
        kubectl("create", "--filename", "-", given=json.dumps(body))
    crons = {"apiGroups": [CRONS_GROUP], "resources": ["crons"], "verbs": ["list", "delete"]}
    runners = {"apiGroups": [CRONS_GROUP], "resources": ["runners"], "verbs": ["delete"]}
    jobs = {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list", "delete"]}
    rights = {installation.namespace: [crons, runners], installation.tenant: [crons], installation.runs: [jobs]}
    kubeconfig = make_account("uninstall", namespace=installation.namespace, rights=rights)

    def uninstall() -> str:
        return told(
            start(
                "uninstall",
                kubeconfig=kubeconfig,
                installation=installation.name,
                release_namespace=installation.namespace,
                namespaces=json.dumps({installation.tenant: "acme"}),
                run_namespace=installation.runs,
            )
        )

    assert "2 mirrors, 1 Jobs, the Runner. Crons kept: 3" in uninstall()
    left = kubectl("get", "crons", *here, "--output=name").split()
    assert [name.rpartition("/")[2] for name in left] == ["applied", "copied-from-a-mirror", "of-another"]
    for kind, place, names in (
        ("crons", installation.namespace, []),
        ("runners", installation.namespace, []),
        ("jobs", installation.runs, ["of-another"]),
    ):
        found = kubectl("get", kind, "--namespace", place, "--output=name").split()
        assert [name.rpartition("/")[2] for name in found] == names
    assert "0 mirrors" in uninstall()


# PostgreSQL


def postgresql_pod(image: str) -> dict[str, Any]:
    container = {
        "name": "database",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["postgres"],
        "envFrom": [{"secretRef": {"name": "passwords"}}],
        "ports": [{"containerPort": 5432}],
        "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        "startupProbe": {"exec": {"command": ["cronplane", "postgres", "--check"]}, "failureThreshold": 60},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/var/lib/cronplane"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        ],
    }
    security = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "fsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": security,
        "containers": [container],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "database"}, "spec": spec}


async def test_postgresql_serves_in_a_restricted_pod_and_survives_a_kill(
    kubectl: Any, namespace: str, image: str
) -> None:
    password = secrets.token_urlsafe(32)
    here = ("--namespace", namespace)
    passwords = [
        f"--from-literal=CRONPLANE_POSTGRES_{role}_PASSWORD={value}"
        for role, value in (("OWNER", password), ("SERVICE", secrets.token_urlsafe(32)))
    ]
    kubectl("create", "secret", "generic", "passwords", *here, *passwords)
    kubectl("create", *here, "--filename", "-", given=json.dumps(postgresql_pod(image)))
    kubectl.wait("condition=Ready", "pod/database", *here)
    address = kubectl.read("pod/database", *here)["status"]["podIP"]
    url = f"postgresql://cronplane:{password}@{address}:5432/cronplane"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS number")

    dump = 'pg_dump --format=custom "postgresql://cronplane:$CRONPLANE_POSTGRES_OWNER_PASSWORD@localhost/cronplane"'
    listed = kubectl("exec", "database", *here, "--", "sh", "-c", f"{dump} | pg_restore --list")
    assert "TABLE DATA public kept" in listed

    kill = "kill -9 $(head -n 1 /var/lib/cronplane/postgresql/postmaster.pid)"
    kubectl("exec", "database", *here, "--", "sh", "-c", kill)
    kubectl.wait("jsonpath={.status.containerStatuses[0].restartCount}=1", "pod/database", *here)
    kubectl.wait("condition=Ready", "pod/database", *here)
    with closing(psycopg.connect(url)) as connection:
        assert connection.execute("SELECT number FROM kept").fetchone() == (42,)
        since = time.monotonic()
        kubectl("delete", "pod/database", *here)
        assert time.monotonic() - since < 30, "an open session must not hold the end up"
