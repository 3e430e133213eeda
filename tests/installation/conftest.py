"""The chart, installed on the cluster that KUBECONFIG names, as the README tells it.

One installation serves many tests. `kubectl` and `helm` have to be in PATH, `CRONPLANE_TEST_IMAGE_COMMAND` builds
images and brings them into the cluster, and `CRONPLANE_TEST_HOST` is the address by which pods reach this machine. When
a test fails, what there was to see in the cluster is kept below `CRONPLANE_TEST_ARTIFACTS` (.cronplane/artifacts).
"""

import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from secrets import token_hex

import pytest
import yaml

from tests.images import ROOT, build_image
from tests.installation import evidence
from tests.installation.release import CHART, Release
from tests.kubectl import Kubectl

DEFINITIONS = ("crd/crons.crons.cronplane.dev", "crd/runners.crons.cronplane.dev")
ARTIFACTS = Path(os.environ.get("CRONPLANE_TEST_ARTIFACTS", ROOT / ".cronplane" / "artifacts"))
NAMESPACES: set[str] = set()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep what there is to see when a test, or what it stands on, has failed."""
    report = yield
    if report.failed:
        name = re.sub(r"\W+", "-", f"{item.name}-{report.when}")
        evidence.keep(ARTIFACTS / name, namespaces=sorted(NAMESPACES))
    return report


@pytest.fixture(scope="session", autouse=True)
def _settings() -> None:
    for name in ("KUBECONFIG", "CRONPLANE_TEST_IMAGE_COMMAND", "CRONPLANE_TEST_HOST"):
        if not os.environ.get(name):
            pytest.exit(f"Set {name}; docs/kubernetes.md says to what", returncode=2)


@pytest.fixture(scope="session")
def host() -> str:
    """Give the address by which pods reach this machine."""
    return os.environ["CRONPLANE_TEST_HOST"]


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image that the chart takes if nothing is said, with the tag that docs/install.md gives it."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    return build_image(f"cronplane:{chart['appVersion']}")


@pytest.fixture(scope="session")
def image_with_greeting(image: str) -> str:
    """Build upon it the image with one more entry, as docs/install.md tells it."""
    example = ROOT / "examples" / "greeting_entry"
    arguments = ("--build-arg", f"CRONPLANE={image}")
    return build_image(f"{image}-greeting", *arguments, dockerfile=example / "Dockerfile", context=example)


@pytest.fixture(scope="session")
def _no_definitions() -> Iterator[None]:
    """Begin and end in a cluster that has never seen a Cron, whatever else was tried in it."""
    kubectl = Kubectl()
    kubectl("delete", "--ignore-not-found", *DEFINITIONS)
    yield
    kubectl("delete", "--ignore-not-found", *DEFINITIONS)


@pytest.fixture(scope="module")
def make_namespace(_no_definitions: None) -> Iterator[Callable[[str], str]]:
    """Make namespaces that take restricted pods only; they go when the module ends."""
    kubectl, made = Kubectl(patience=120), []

    def make(prefix: str) -> str:
        name = f"{prefix}-{token_hex(3)}"
        kubectl("create", "namespace", name)
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        NAMESPACES.add(name)
        made.append(name)
        return name

    yield make
    kubectl("delete", "namespace", "--ignore-not-found", *made)
    NAMESPACES.difference_update(made)


@pytest.fixture(scope="module")
def release(make_namespace: Callable[[str], str]) -> Iterator[Release]:
    """Give a namespace for a release; whatever is installed there goes when the module ends."""
    release = Release(namespace=make_namespace("cronplane"))
    yield release
    release.remove()
