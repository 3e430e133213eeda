"""Which setting reaches which entry, and that wrong ones stop a process at its start."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from cronplane_entries.dummy_print import spec
from cronplane_entries.entry_settings import InvalidSettingsError, read_entry_settings
from cronplane_entries.registry import CronEntrypoint, CronRegistry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CronRegistry:
    members = type(CronEntrypoint)._members
    monkeypatch.setattr(type(CronEntrypoint), "_members", dict(members))
    registry = CronRegistry()
    for name in ("web", "web_hook", "plain"):
        registry[CronEntrypoint.add(name)] = spec
    return registry


def test_a_setting_belongs_to_the_entry_with_the_longest_name_that_fits(registry: CronRegistry) -> None:
    environment = {
        "CRONPLANE_ENTRY_WEB_TOKEN": "1",
        "CRONPLANE_ENTRY_WEB_HOOK_TOKEN": "2",
        "CRONPLANE_ENTRY_WEB_HOOKS": "3",
        "CRONPLANE_ENTRY_ABSENT_TOKEN": "4",
        "CRONPLANE_ENTRY_WEB_HOOK_": "5",
        "CRONPLANE_ENTRY_PLAIN": "6",
        "CRONPLANE_DATABASE_URL": "7",
    }
    assert read_entry_settings(environment, registry) == {
        "web": {"token": "1", "hooks": "3", "hook_": "5"},
        "web_hook": {"token": "2"},
    }


def test_a_setting_that_is_no_text_is_an_error_that_does_not_repeat_it(registry: CronRegistry) -> None:
    with pytest.raises(InvalidSettingsError, match=r"^The variable CRONPLANE_ENTRY_WEB_TOKEN is not UTF-8$"):
        read_entry_settings({"CRONPLANE_ENTRY_WEB_TOKEN": "hunter2\udcff"}, registry)


def test_settings_that_an_entry_refuses_are_an_error_with_the_names_of_its_variables(registry: CronRegistry) -> None:
    def refuse(settings: Mapping[str, str]) -> None:
        if settings:
            raise ValueError("color is none of red, green")

    registry[CronEntrypoint.add("picky")] = replace(spec, check_settings=refuse)
    assert read_entry_settings({}, registry) == {}
    with pytest.raises(InvalidSettingsError, match="CRONPLANE_ENTRY_PICKY_… are refused: color is none of red"):
        read_entry_settings({"CRONPLANE_ENTRY_PICKY_COLOR": "blue"}, registry)


def test_what_runs_one_entry_is_given_and_checks_its_settings_only(registry: CronRegistry) -> None:
    def refuse(settings: Mapping[str, str]) -> None:
        raise ValueError("there is no key")

    registry[CronEntrypoint.add("picky")] = replace(spec, check_settings=refuse)
    environment = {"CRONPLANE_ENTRY_WEB_TOKEN": "1", "CRONPLANE_ENTRY_WEB_HOOK_TOKEN": "2"}
    assert read_entry_settings(environment, registry, only="web") == {"web": {"token": "1"}}
    with pytest.raises(InvalidSettingsError, match="there is no key"):
        read_entry_settings(environment, registry, only="picky")
