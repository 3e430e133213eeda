"""The agent backend of the examples, as a service of this machine that the cluster calls."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_urlsafe
from uuid import UUID

import httpx2

from tests.images import ROOT

WORD_COUNT = UUID("5d1c8f0e-3b9a-4c55-9d0e-6a1f0c7b2a01")
_PROGRAM = ROOT / "examples" / "agent_backend" / "agent_backend.py"
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - pods come from elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Agents:
    """A running agent backend: its port, and the key that it asks for."""

    port: int
    api_key: str

    def give_word_count_to(self, organization_id: str) -> None:
        """Make an organization the owner of the project that counts words."""
        httpx2.put(
            f"http://127.0.0.1:{self.port}/projects/{WORD_COUNT}/owner",
            json={"organization_id": organization_id},
            headers={"X-API-Key": self.api_key},
        ).raise_for_status()


@contextmanager
def running_agents() -> Iterator[Agents]:
    """Run an agent backend until the end."""
    api_key = token_urlsafe(32)
    settings = {"AGENT_BACKEND_API_KEY": api_key, "AGENT_BACKEND_HOST": _EVERYWHERE, "AGENT_BACKEND_PORT": "0"}
    with subprocess.Popen([sys.executable, _PROGRAM], stdout=subprocess.PIPE, text=True, env=settings) as program:
        assert program.stdout is not None
        found = re.search(r"is at http://\S+:(\d+)", program.stdout.readline())
        assert found, "the agent backend did not start"
        yield Agents(port=int(found[1]), api_key=api_key)
        program.terminate()
