"""The guide's code does what the guide says."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copytree
from typing import Any
from uuid import uuid4

import pytest

from cronplane_entries import registry
from cronplane_entries.core import (
    CronEntrySpec,
    ExecutionContext,
    Organization,
    RegistrationContext,
    Services,
    User,
)
from cronplane_entries.invocation import (
    encode_result,
    execute,
    load_execution_payload,
    register,
    validate_execution,
)
from cronplane_entries.registry import CronEntrypoint, CronRegistry, load_entries

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


BUILD_GUARD = 60.0


def request_body() -> dict[str, Any]:
    """Give what the guide's first request sends."""
    [body] = re.findall(r"-d '(.*?)'$", blocks("sh")[0], re.MULTILINE | re.DOTALL)
    parsed: dict[str, Any] = json.loads(body)
    return parsed


def run(spec: Any, payload: Any, context: ExecutionContext) -> object:
    """Run an entry as a worker does, on a loop of its own."""
    with asyncio.Runner() as runner:
        wait = runner.get_loop().run_until_complete
        validate_execution(spec, payload=payload, context=context, run_until_complete=wait)
        return execute(spec, payload=payload, context=context, run_until_complete=wait)


@pytest.mark.parametrize("parts", [1, 2], ids=["by its entry point alone", "and by itself as well"])
async def test_the_guides_distribution_is_found_registers_what_the_guide_sends_and_executes(
    *,
    parts: int,
    install: Any,
    monkeypatch: pytest.MonkeyPatch,
    registration_context: RegistrationContext,
    execution_context: ExecutionContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(registry, "CRON_REGISTRY", CronRegistry())
    offered = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]["cronplane.entries"]
    install("acme-entries", modules={"my_entry": "".join(blocks("python")[:parts])}, entries=offered)
    load_entries()
    body = request_body()
    spec = registry.CRON_REGISTRY[CronEntrypoint(body["entrypoint"])]
    registered = await register(spec, payload=body["payload"], context=registration_context)
    payload = load_execution_payload(spec, json.dumps(registered.execution_payload))
    result = await asyncio.to_thread(run, spec, payload, execution_context)
    assert encode_result(result) == '{"ok":true}'
    assert capsys.readouterr().out == "HELLO\n"


@pytest.fixture
def example(only_built_in_entries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the example, as the wheel that it is published as."""
    source, site = copytree(ROOT / "examples" / "greeting_entry", tmp_path / "source"), tmp_path / "site"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=BUILD_GUARD)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))


async def test_the_example_brings_its_entry_when_its_wheel_is_installed(
    example: None, registration_context: RegistrationContext, execution_context: ExecutionContext
) -> None:
    entries = CronRegistry()
    entries.load()
    spec = entries[CronEntrypoint.GREETING]
    registered = await register(spec, payload={"name": "Ada"}, context=registration_context)
    payload = load_execution_payload(spec, json.dumps(registered.execution_payload))
    result = await asyncio.to_thread(run, spec, payload, execution_context)
    assert encode_result(result) == '{"said":"Hello Ada, says acme.","attempt":1}'
