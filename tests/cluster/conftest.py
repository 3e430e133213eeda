"""A real cluster, given by KUBECONFIG: set up and looked at as its administrator, worked in as the chart's accounts.

`kubectl` and `helm` have to be in PATH. `CRONPLANE_TEST_PROGRAM_COMMAND`, called as `… kill|start PART`, breaks and
mends parts of the cluster, such as `kube-apiserver`. `CRONPLANE_TEST_IMAGE_COMMAND`, called as `… TAG -f DOCKERFILE
CONTEXT`, builds an image and brings it into the cluster, and `CRONPLANE_TEST_HOST` is the address by which pods reach
this machine. Tests that need what is not set say that they were skipped.
"""

import asyncio
import base64
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.images import build_image
from tests.kubectl import HANG_GUARD, Kubectl

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CHART = ROOT / "helm" / "cronplane"
RELEASE = "test"
# API and operator are processes of the tests, not pods of the chart.
ACCOUNTS_AND_DEFINITIONS = ["api-rights", "operator-rights", "run-account", "crds"]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - pods come from elsewhere
BEFORE = datetime(2026, 6, 1, 12, 0, 30, tzinfo=UTC)
_WITH_ENTRIES = """
FROM {image}
COPY distributions /opt/tests/distributions
COPY programs /opt/tests/programs
ENV PYTHONPATH=/opt/tests/distributions
ENTRYPOINT ["python", "/opt/tests/programs/cronplane_with_faults.py"]
"""
_HELM = shutil.which("helm") or "helm"


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
        ours = {
            "kubeconfig": installation.kubeconfig,
            "installation": installation.name,
            "release_namespace": installation.namespace,
            "namespaces": json.dumps({installation.tenant: str(organization.id)}),
        }
        return start_process("operator", **(ours | settings))

    return start


# Runs in pods


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image of every role."""
    return build_image("localhost/cronplane:test")


@pytest.fixture(scope="session")
def image_with_entries(image: str, tmp_path_factory: Any) -> str:
    """Build upon it an image with the entries of the tests, in which a failpoint may be armed."""
    context = tmp_path_factory.mktemp("image")
    for name in ("distributions", "programs"):
        shutil.copytree(TESTS / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    dockerfile = context / "Dockerfile"
    dockerfile.write_text(_WITH_ENTRIES.format(image=image), encoding="ascii")
    return build_image("localhost/cronplane-entries:test", dockerfile=dockerfile, context=context)


@pytest.fixture(scope="session")
def host() -> str:
    """Give the address by which pods reach this machine."""
    address = os.environ.get("CRONPLANE_TEST_HOST")
    if not address:
        pytest.skip("CRONPLANE_TEST_HOST is not set, so that pods cannot reach the API")
    return address


@pytest.fixture
def api_port() -> int:
    """Give the port of the API that pods are told of, whether it is there or not."""
    with socket.create_server((EVERYWHERE, 0)) as reserved:
        port: int = reserved.getsockname()[1]
    return port


@pytest.fixture
def start_pod_api(installation: Installation, api_port: int, start_process: Any) -> Callable[[], Any]:
    """Start the API as a process, in the cluster as the chart's account."""

    def start() -> Any:
        return start_process(
            "api", host=EVERYWHERE, port=api_port, pod_attempts=True, kubeconfig=installation.api_kubeconfig
        )

    return start


@pytest.fixture
def start_pod_operator(
    *,
    installation: Installation,
    image: str,
    image_with_entries: str,
    host: str,
    api_port: int,
    start_operator: Callable[..., Any],
) -> Callable[..., Any]:
    """Start an operator with which these entries run in pods, in the image that has them."""

    def start(entries: Sequence[str] = ("dummy_print",), **settings: object) -> Any:
        ours = {
            "run_image": image if entries == ("dummy_print",) else image_with_entries,
            "run_namespace": installation.runs,
            "run_service_account": f"{installation.name}-run",
            "run_api_url": f"http://{host}:{api_port}",
            **{f"entry_{name}_execution": "pod" for name in entries},
        }
        return start_operator(**(ours | settings))

    return start


@pytest.fixture
def start_with_pods(start_pod_api: Callable[[], Any], start_pod_operator: Callable[..., Any]) -> Callable[..., Any]:
    """Start API and operator as processes, with the chart's accounts; `dummy_print` runs in pods, or what is named."""

    def start(*entries: str, **settings: object) -> Any:
        start_pod_api()
        return start_pod_operator(entries or ("dummy_print",), **settings)

    return start


class LedgerServer:
    """Keeps the ledger for bodies in pods, and is what they wait for."""

    def __init__(self, *, ledger: Path, address: str) -> None:
        self.address, self.pipe = f"{address}/ledger", f"{address}/pipe"
        self._ledger = ledger
        self._may_go_on = threading.Event()
        self._written = threading.Condition()

    def write(self, lines: str) -> None:
        """Add what a body did."""
        with self._written:
            with self._ledger.open("a", encoding="ascii") as file:
                file.write(lines)
            self._written.notify_all()

    def hold(self) -> None:
        """Wait until bodies may go on."""
        self._may_go_on.wait(HANG_GUARD)

    def let_go(self) -> None:
        """Let every body that waits, or will, go on."""
        self._may_go_on.set()

    def count(self, what: str) -> int:
        """Count the lines that say that a body was `entered`, was `cancelled`, or had its `effect`."""
        return sum(1 for line in import_module("fault_entries").read_ledger(self._ledger) if line.what == what)

    async def until(self, what: str, *, times: int = 1) -> None:
        """Wait until so many lines say it."""
        await asyncio.to_thread(self._wait, what, times)

    def _wait(self, what: str, times: int) -> None:
        with self._written:
            assert self._written.wait_for(lambda: self.count(what) >= times, HANG_GUARD), f"not {times} {what}"


@pytest.fixture
def ledger_server(ledger: Path, host: str, entries: Any) -> Iterator[LedgerServer]:
    """Serve the test's ledger to pods."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kept.hold()
            self._answer()

        def do_POST(self) -> None:
            kept.write(self.rfile.read(int(self.headers["Content-Length"])).decode("ascii"))
            self._answer()

        def _answer(self) -> None:
            # Whoever asked may be gone.
            with suppress(OSError):
                self.send_response(HTTPStatus.NO_CONTENT)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer((EVERYWHERE, 0), Handler) as server:
        server.daemon_threads = True
        kept = LedgerServer(ledger=ledger, address=f"http://{host}:{server.server_port}")
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield kept
        kept.let_go()
        server.shutdown()
        serving.join()


@pytest.fixture
def add_work(add_cron: Any, database: Any, ledger_server: LedgerServer) -> Callable[..., Any]:
    """Write a cron whose effects are counted, half a minute before it fires once; held, its bodies wait for a sign."""
    database.set_clock(BEFORE, speed=0)

    async def add(name: str = "work", *, held: bool = False, cron_expr: str = "1 12 * * *", **policy: Any) -> Any:
        payload = {"ledger": ledger_server.address, "pipe": ledger_server.pipe if held else ""}
        return await add_cron(name, cron_expr=cron_expr, entrypoint="keep_ledger", payload=payload, **policy)

    return add


# Faults


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRelay:
    """Another way to an HTTP API, on which requests break as ordered (see `http_relay`)."""

    port: int
    process: subprocess.Popen[str]
    told: Any

    def order(self, **order: object) -> None:
        """Break requests like this from now on, and in no other way."""
        orders = self.told.count("ordered")
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self.told.wait_for("ordered", times=orders + 1)


@pytest.fixture
def start_relay(make_lines: Any) -> Iterator[Callable[..., HttpRelay]]:
    """Start relays; they end with the test."""
    with ExitStack() as stack:

        def start(upstream: str, *, host: str = "127.0.0.1", ca_file: Path | None = None) -> HttpRelay:
            given = [host, upstream, *([] if ca_file is None else [str(ca_file)])]
            process = subprocess.Popen(
                [sys.executable, str(TESTS / "programs" / "http_relay.py"), *given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            told = make_lines(process.stdout)
            stack.callback(told.close)
            stack.callback(process.kill)
            return HttpRelay(port=int(told.wait_for("ready").split()[1]), process=process, told=told)

        yield start


@pytest.fixture
def kubernetes_relay(
    installation: Installation, start_relay: Callable[..., HttpRelay], kubectl: Kubectl, tmp_path: Path
) -> tuple[HttpRelay, Path]:
    """Give a relay before the API server, and the operator's kubeconfig by way of it."""
    known = json.loads(installation.kubeconfig.read_text(encoding="utf-8"))
    cluster = known["clusters"][0]["cluster"]
    ca_file = tmp_path / "cluster-ca"
    ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    relay = start_relay(cluster["server"], ca_file=ca_file)
    known["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{relay.port}"}
    file = tmp_path / "relay-kubeconfig"
    file.write_text(json.dumps(known), encoding="utf-8")
    return relay, file


@pytest.fixture
def program() -> Iterator[Callable[[str, str], None]]:
    """Break or mend a part of the cluster; what a test leaves broken is mended."""
    command = os.environ.get("CRONPLANE_TEST_PROGRAM_COMMAND")
    if not command:
        pytest.skip("CRONPLANE_TEST_PROGRAM_COMMAND is not set, so that no part of the cluster can be broken")
    broken: list[str] = []

    def call(action: str, part: str) -> None:
        subprocess.run([*shlex.split(command), action, part], check=True, stdout=subprocess.DEVNULL)
        if action == "start":
            broken.remove(part)
            _wait_until_it_answers()
        else:
            broken.append(part)

    yield call
    while broken:
        call("start", broken[-1])


def _wait_until_it_answers() -> None:
    """Ask the API server until it says that it is ready."""
    give_up = time.monotonic() + HANG_GUARD
    while subprocess.run(Kubectl().command("get", "--raw", "/readyz"), capture_output=True, check=False).returncode:
        assert time.monotonic() < give_up, "the API server does not answer"
