"""The registry: names that can be added, specifications that must be sound, and what distributions bring."""

import copy
import pickle
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cronplane_entries import dummy_print
from cronplane_entries.registry import (
    CRON_REGISTRY,
    BrokenEntryError,
    CronEntrypoint,
    CronRegistry,
    DuplicateEntryError,
    InvalidEntryError,
    UnknownEntryError,
)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget, when the test ends, the names that it adds."""
    monkeypatch.setattr(type(CronEntrypoint), "_members", dict(type(CronEntrypoint)._members))


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: None) -> Any:
    """Install distributions: each a module of its own name, and the entries that it offers."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, module: str, **entries: str) -> None:
        (tmp_path / f"{name}_module.py").write_text(module)
        monkeypatch.delitem(sys.modules, f"{name}_module", raising=False)
        metadata = tmp_path / f"{name}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {name}_module:{attribute}" for entry, attribute in entries.items()]
        (metadata / "entry_points.txt").write_text("[cronplane.entries]\n" + "\n".join(lines))

    return install


SOUND: Any = dummy_print.spec
GOOD_MODULE = "from cronplane_entries.dummy_print import spec\n"


def test_a_name_that_is_added_becomes_a_member(names: None) -> None:
    added = CronEntrypoint.add("my_entry")
    assert added == "my_entry"
    assert CronEntrypoint.MY_ENTRY is added
    assert CronEntrypoint("my_entry") is added
    assert "my_entry" in CronEntrypoint
    assert added in list(CronEntrypoint)


def test_the_sample_registers_as_it_is_written(names: None) -> None:
    registry = CronRegistry()
    CronEntrypoint.add("my_entry")
    registry[CronEntrypoint.MY_ENTRY] = dummy_print.spec
    assert registry[CronEntrypoint.MY_ENTRY] is dummy_print.spec


@pytest.mark.parametrize("name", ["", "My_entry", "1st", "a-b", "a" * 64, "a\n", "é", "_x", "os.system"])
def test_a_name_that_does_not_match_is_refused(name: str, names: None) -> None:
    with pytest.raises(InvalidEntryError):
        CronEntrypoint.add(name)


def test_an_unknown_name_says_so() -> None:
    with pytest.raises(UnknownEntryError, match="nothing_of_the_kind"):
        CronEntrypoint("nothing_of_the_kind")
    with pytest.raises(AttributeError, match="NOTHING_OF_THE_KIND"):
        _ = CronEntrypoint.NOTHING_OF_THE_KIND


def test_a_name_is_given_once() -> None:
    registry = CronRegistry()
    registry[CronEntrypoint.DUMMY_PRINT] = dummy_print.spec
    with pytest.raises(DuplicateEntryError):
        registry[CronEntrypoint.DUMMY_PRINT] = dummy_print.spec


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (SimpleNamespace(), "SimpleNamespace"),
        (replace(SOUND, user_payload_model=dict), "user_payload_model"),
        (replace(SOUND, execution_payload_model=dummy_print.UserPayload), "execution_payload_model"),
        (replace(SOUND, registration_validator=None), "registration_validator"),
        (replace(SOUND, executor="print"), "executor"),
        (replace(SOUND, execution="somewhere"), "execution"),
        (replace(SOUND, timeout=-SOUND.timeout), "timeout"),
        (replace(SOUND, timeout=timedelta(0)), "timeout"),
        (replace(SOUND, timeout=timedelta(days=7, seconds=1)), "timeout"),
        (replace(SOUND, timeout=30), "timeout"),
        (replace(SOUND, executor=None, timeout=None), "executor cannot be called; timeout"),
        (replace(SOUND, attempts=0), "attempts is no number from 1 to 100"),
        (replace(SOUND, attempts=101), "attempts"),
        (replace(SOUND, attempts=True), "attempts"),
        (replace(SOUND, completes_by_callback="yes"), "completes_by_callback"),
    ],
)
def test_a_specification_that_is_not_sound_says_what_is_wrong(spec: Any, wrong: str) -> None:
    with pytest.raises(InvalidEntryError, match=wrong):
        CronRegistry()[CronEntrypoint.DUMMY_PRINT] = spec


def test_installed_distributions_bring_their_entries_and_loading_twice_is_loading_once(distribution: Any) -> None:
    distribution("acme", GOOD_MODULE, acme_entry="spec")
    registry = CronRegistry()
    registry.load()
    registry.load()
    assert {"dummy_print", "acme_entry"} <= set(registry)


def test_an_entry_that_registers_itself_while_it_is_imported_is_no_duplicate(distribution: Any) -> None:
    distribution(
        "acme",
        "from dataclasses import replace\n"
        "from cronplane_entries import dummy_print\n"
        "from cronplane_entries.registry import CRON_REGISTRY, CronEntrypoint\n"
        "spec = replace(dummy_print.spec)\n"
        "CRON_REGISTRY[CronEntrypoint.add('self_made')] = spec\n",
        self_made="spec",
    )
    CRON_REGISTRY.load()
    assert CronEntrypoint.SELF_MADE in CRON_REGISTRY
    for name in list(CRON_REGISTRY):
        del CRON_REGISTRY[name]


@pytest.mark.parametrize(
    ("module", "attribute"),
    [
        ("import no_such_module\n", "spec"),
        ("spec = 1\n", "spec"),
        (GOOD_MODULE, "absent"),
        ("raise SystemError", "spec"),
        ("import sys; sys.exit(0)", "spec"),
    ],
)
def test_a_broken_entry_names_its_distribution(distribution: Any, module: str, attribute: str) -> None:
    distribution("acme", module, acme_entry=attribute)
    with pytest.raises(BrokenEntryError, match=r"acme offers the entry acme_entry"):
        CronRegistry().load()


def test_a_broken_name_names_its_distribution(distribution: Any) -> None:
    distribution("acme", GOOD_MODULE, **{"Not-A-Name": "spec"})
    with pytest.raises(BrokenEntryError, match="acme"):
        CronRegistry().load()


def test_two_distributions_with_one_name_are_both_named(distribution: Any) -> None:
    distribution("acme", GOOD_MODULE, same_name="spec")
    distribution("rival", GOOD_MODULE, same_name="spec")
    with pytest.raises(DuplicateEntryError, match=r"(acme.*rival|rival.*acme)"):
        CronRegistry().load()


def test_a_built_in_name_cannot_be_taken(distribution: Any) -> None:
    distribution("acme", GOOD_MODULE, dummy_print="spec")
    with pytest.raises(DuplicateEntryError, match="acme and cronplane"):
        CronRegistry().load()


def test_a_member_stays_itself_when_it_is_copied() -> None:
    member = CronEntrypoint.DUMMY_PRINT
    assert pickle.loads(pickle.dumps(member)) is member  # noqa: S301 - made in the same line
    assert copy.deepcopy(member) is member


def test_a_string_that_is_no_member_is_no_key() -> None:
    registry: Any = CronRegistry()
    with pytest.raises(InvalidEntryError, match="add it first"):
        registry["dummy_print"] = dummy_print.spec
    assert len(registry) == 0


def test_a_distribution_that_offers_a_name_twice_is_named(distribution: Any, tmp_path: Path) -> None:
    distribution("acme", GOOD_MODULE + "from dataclasses import replace\nother = replace(spec)\n", twice="spec")
    with (tmp_path / "acme-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write("\ntwice = acme_module:other\n")
    with pytest.raises(DuplicateEntryError, match="twice is registered already, and acme offers it too"):
        CronRegistry().load()
