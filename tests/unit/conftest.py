"""What the tests of entries share: names that do not outlive their test, distributions to install, and contexts."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from cronplane_entries.core import (
    CronReference,
    ExecutionContext,
    Organization,
    RegistrationContext,
    RunReference,
    Services,
    User,
)
from cronplane_entries.registry import BUILT_IN, CronEntrypoint

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)

Install = Callable[..., Path]


@pytest.fixture
def only_built_in_entries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the distributions of other tests, and forget the names and modules that this one makes known."""
    trial = Path(__file__).parents[1] / "distributions"
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry) != trial])
    monkeypatch.setattr(type(CronEntrypoint), "_members", {str(name): name for name in BUILT_IN})
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only_built_in_entries: None) -> Install:
    """Install distributions, as a wheel's files would lie in site-packages."""

    def install(distribution: str, *, modules: Mapping[str, str], entries: Mapping[str, str]) -> Path:
        place = tmp_path / distribution
        metadata = place / f"{distribution.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        points = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (metadata / "entry_points.txt").write_text(f"[cronplane.entries]\n{points}")
        for module, source in modules.items():
            (place / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(place))
        return place

    return install


@pytest.fixture
def registration_context() -> RegistrationContext:
    return RegistrationContext(
        organization=Organization(id=UUID(int=1), name="acme"),
        user=User(id="key:1", name="laptop"),
        cron_id=UUID(int=7),
        services=Services(settings={}),
    )


@pytest.fixture
def execution_context() -> ExecutionContext:
    return ExecutionContext(
        cron=CronReference(id=UUID(int=7), name="my job", organization_id=UUID(int=1)),
        run=RunReference(id=UUID(int=8), trigger="schedule"),
        attempt=1,
        scheduled_for=NOON,
        deadline=NOON + timedelta(hours=1),
        log=logging.getLogger("test.entry"),
        services=Services(settings={}),
    )
