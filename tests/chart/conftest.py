"""helm has to be in PATH; a cluster is neither needed nor asked."""

import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    if not shutil.which("helm"):
        pytest.exit("Put helm in PATH, or call `make chart`, which gets it", returncode=2)
