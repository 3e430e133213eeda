"""Images for the cluster of the tests: `CRONPLANE_TEST_IMAGE_COMMAND` builds one and brings it there.

It is called as `… TAG -f DOCKERFILE CONTEXT`, with further options of `docker build` before the context.
"""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def build_image(tag: str, *options: str, dockerfile: Path = DOCKERFILE, context: Path = ROOT) -> str:
    """Build an image, that of every role unless another is named, and bring it into the cluster; gives its tag."""
    command = os.environ.get("CRONPLANE_TEST_IMAGE_COMMAND")
    if not command:
        pytest.skip("CRONPLANE_TEST_IMAGE_COMMAND is not set, so that there is no image for pods")
    subprocess.run(
        [*shlex.split(command), tag, "-f", str(dockerfile), *options, str(context)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return tag
