"""The guide's code does what the guide says."""

import re
import tomllib
from pathlib import Path
from typing import Any
from uuid import uuid4

from cronplane_entries.core import CronEntrySpec, Organization, RegistrationContext, Services, User
from cronplane_entries.invocation import register
from cronplane_entries.registry import CronRegistry

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "entries.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


async def test_the_guides_module_is_an_entry_that_registers() -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python")[0], namespace)  # noqa: S102 - the guide is ours
    spec: CronEntrySpec[Any, Any] = namespace["spec"]
    context = RegistrationContext(
        organization=Organization(id=uuid4(), name="acme"),
        user=User(id="key:1", name="somebody"),
        cron_id=uuid4(),
        services=Services(),
    )
    found = await register(spec, payload={}, context=context)
    assert found.execution_payload == {"greeting": "HELLO"}
    assert await namespace["execute"](namespace["MyExecutionPayload"](greeting="x"), context=None) == {"ok": True}


def test_the_guides_entry_point_is_in_the_group_that_is_read() -> None:
    [offered] = blocks("toml")
    group = tomllib.loads(offered)["project"]["entry-points"]
    example = tomllib.loads((ROOT / "examples" / "greeting_entry" / "pyproject.toml").read_text())["project"]
    assert group == {"cronplane.entries": {"my_entry": "my_entry:spec"}}
    assert example["entry-points"] == {"cronplane.entries": {"greeting": "greeting_entry:spec"}}
    assert "dummy_print" in set(_loaded())


def _loaded() -> CronRegistry:
    registry = CronRegistry()
    registry.load()
    return registry
