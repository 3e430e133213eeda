"""A real cluster, given by KUBECONFIG: set up and looked at as its administrator, worked in as the chart's accounts.

`kubectl` and `helm` have to be in PATH. `CRONPLANE_TEST_PROGRAM_COMMAND`, called as `… kill|start PART`, breaks and
mends parts of the cluster, such as `kube-apiserver`. `CRONPLANE_TEST_IMAGE_COMMAND`, called as `… TAG -f DOCKERFILE
CONTEXT`, builds an image and brings it into the cluster, and `CRONPLANE_TEST_HOST` is the address by which pods reach
this machine. Tests that need what is not set say that they were skipped.
"""

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "cronplane"
# Seconds; generous, since it only keeps a test from waiting forever.
HANG_GUARD = 60
RELEASE = "test"
# API and operator are processes of the tests, not pods of the chart.
ACCOUNTS_AND_DEFINITIONS = ["api-rights", "operator-rights", "run-account", "crds"]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - pods come from elsewhere
_KUBECTL = shutil.which("kubectl") or "kubectl"
_HELM = shutil.which("helm") or "helm"


class Kubectl:
    """`kubectl` as the administrator."""

    def __call__(self, *arguments: str, given: str | None = None) -> str:
        done = subprocess.run([_KUBECTL, *arguments], input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"kubectl {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def read(self, *arguments: str) -> Any:
        """Get objects as they are stored."""
        return json.loads(self("get", *arguments, "--output=json"))

    def wait(self, condition: str, *arguments: str) -> None:
        """Wait until something is so, by the server's word."""
        self("wait", f"--for={condition}", f"--timeout={HANG_GUARD}s", *arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The chart's accounts and rights in namespaces of the test's own."""

    name: str
    namespace: str
    tenant: str
    runs: str
    kubeconfig: Path
    api_kubeconfig: Path


@pytest.fixture(scope="session", autouse=True)
def _cluster() -> None:
    if not os.environ.get("KUBECONFIG"):
        pytest.exit("Set KUBECONFIG to the cluster that the tests may use", returncode=2)


@pytest.fixture
def kubectl() -> Kubectl:
    return Kubectl()


@pytest.fixture
def apply_chart(kubectl: Kubectl) -> Callable[..., None]:
    """Apply the accounts, rights and definitions that the chart makes of these values, in a namespace."""

    def apply(namespace: str, values: dict[str, Any]) -> None:
        only = [f"--show-only=templates/{name}.yaml" for name in ACCOUNTS_AND_DEFINITIONS]
        options = [*only, "--namespace", namespace, "--kube-version", "1.34", "--values", "-"]
        rendered = subprocess.run(
            [_HELM, "template", RELEASE, str(CHART), *options],
            input=json.dumps(values),
            capture_output=True,
            text=True,
            check=False,
        )
        assert rendered.returncode == 0, rendered.stderr
        kubectl("apply", "--server-side", "--force-conflicts", "--filename", "-", given=rendered.stdout)

    return apply


@pytest.fixture
def installation(
    kubectl: Kubectl, apply_chart: Callable[..., None], organization: Any, tmp_path: Path
) -> Iterator[Installation]:
    """Install accounts, rights and definitions; `tenant` is the namespace of the test's organization."""
    suffix = secrets.token_hex(4)
    namespace, tenant, runs = f"cronplane-{suffix}", f"tenant-{suffix}", f"runs-{suffix}"
    for each in (namespace, tenant, runs):
        kubectl("create", "namespace", each)
    kubectl("label", "namespace", runs, "pod-security.kubernetes.io/enforce=restricted")
    organizations = {organization.name: {"namespaces": [tenant]}}
    apply_chart(namespace, {"fullnameOverride": RELEASE, "organizations": organizations, "runs": {"namespace": runs}})
    kubectl.wait("condition=Established", "crd/crons.crons.cronplane.dev", "crd/runners.crons.cronplane.dev")
    files = {role: tmp_path / f"{role}-kubeconfig" for role in ("operator", "api")}
    for role, file in files.items():
        file.write_text(json.dumps(_as_account(kubectl, namespace, f"{RELEASE}-{role}")), encoding="utf-8")
    yield Installation(
        name=RELEASE,
        namespace=namespace,
        tenant=tenant,
        runs=runs,
        kubeconfig=files["operator"],
        api_kubeconfig=files["api"],
    )
    kubectl("delete", "namespace", "--wait=false", namespace, tenant, runs)
    roles = [f"{namespace}-{RELEASE}-{role}" for role in files]
    kubectl("delete", "clusterrole,clusterrolebinding", *roles)


def _as_account(kubectl: Kubectl, namespace: str, account: str) -> dict[str, Any]:
    """Make a kubeconfig of the administrator's into one of a service account."""
    known = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output=json"))
    token = kubectl("create", "token", account, "--namespace", namespace, "--duration=1h").strip()
    known["users"] = [{"name": each["name"], "user": {"token": token}} for each in known["users"]]
    return dict(known)


@pytest.fixture
def make_account(kubectl: Kubectl, tmp_path: Path) -> Callable[..., Path]:
    """Make an account in a namespace with just these rights, a list of rules per namespace; gives its kubeconfig."""

    def make(name: str, *, namespace: str, rights: dict[str, list[dict[str, Any]]]) -> Path:
        kubectl("create", "serviceaccount", name, "--namespace", namespace)
        for place, rules in rights.items():
            metadata = {"name": name, "namespace": place}
            api_group = "rbac.authorization.k8s.io"
            role = {"apiVersion": f"{api_group}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
            binding = {
                "apiVersion": f"{api_group}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": api_group, "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            }
            for body in (role, binding):
                kubectl("create", "--filename", "-", given=json.dumps(body))
        file = tmp_path / f"{name}-kubeconfig"
        file.write_text(json.dumps(_as_account(kubectl, namespace, name)), encoding="utf-8")
        return file

    return make


@pytest.fixture
def start_operator(installation: Installation, organization: Any, start_process: Any) -> Callable[..., Any]:
    """Start the operator as a process, in the cluster as the chart's account."""

    def start(**settings: object) -> Any:
        return start_process(
            "operator",
            kubeconfig=installation.kubeconfig,
            installation=installation.name,
            release_namespace=installation.namespace,
            namespaces=json.dumps({installation.tenant: str(organization.id)}),
            **settings,
        )

    return start


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image of every role and bring it into the cluster."""
    command = os.environ.get("CRONPLANE_TEST_IMAGE_COMMAND")
    if not command:
        pytest.skip("CRONPLANE_TEST_IMAGE_COMMAND is not set, so that there is no image for pods")
    tag = "localhost/cronplane:test"
    subprocess.run(
        [*shlex.split(command), tag, "-f", str(ROOT / "deploy" / "Dockerfile"), str(ROOT)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return tag


@pytest.fixture
def start_with_pods(
    installation: Installation, image: str, start_operator: Callable[..., Any], start_process: Any
) -> Callable[..., Any]:
    """Start API and operator as processes, with the chart's accounts; `dummy_print` runs in pods."""
    host = os.environ.get("CRONPLANE_TEST_HOST")
    if not host:
        pytest.skip("CRONPLANE_TEST_HOST is not set, so that pods cannot reach the API")
    with socket.create_server((EVERYWHERE, 0)) as reserved:
        port = reserved.getsockname()[1]

    def start(**settings: object) -> Any:
        start_process(
            "api",
            host=EVERYWHERE,
            port=port,
            pod_attempts=True,
            kubeconfig=installation.api_kubeconfig,
        )
        return start_operator(
            run_image=settings.pop("run_image", image),
            run_namespace=installation.runs,
            run_service_account=f"{installation.name}-run",
            run_api_url=f"http://{host}:{port}",
            entry_dummy_print_execution="pod",
            **settings,
        )

    return start


@pytest.fixture
def program() -> Callable[[str, str], None]:
    """Break or mend a part of the cluster."""
    command = os.environ.get("CRONPLANE_TEST_PROGRAM_COMMAND")
    if not command:
        pytest.skip("CRONPLANE_TEST_PROGRAM_COMMAND is not set, so that no part of the cluster can be broken")

    def call(action: str, part: str) -> None:
        subprocess.run([*shlex.split(command), action, part], check=True, stdout=subprocess.DEVNULL)
        if action == "start":
            _wait_until_it_answers()

    return call


def _wait_until_it_answers() -> None:
    """Ask the API server until it says that it is ready."""
    give_up = time.monotonic() + HANG_GUARD
    while subprocess.run([_KUBECTL, "get", "--raw", "/readyz"], capture_output=True, check=False).returncode:
        assert time.monotonic() < give_up, "the API server does not answer"
