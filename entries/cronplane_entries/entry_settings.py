"""What the administrator sets for single entries, read once when a process starts.

A variable `CRONPLANE_ENTRY_<NAME>_<KEY>` belongs to the entry with the longest name that fits, so that what is set for
`http_request` never reaches one named `http`. A setting that is wrong is an error then, not when a cron fires.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from cronplane_entries.core import AnyCronEntrySpec, EntryError, ExecutionMode
from cronplane_entries.registry import CronRegistry

PREFIX = "CRONPLANE_ENTRY_"
EntrySettings = Mapping[str, Mapping[str, str]]
NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
# Not for the entry itself: where it runs is none of its business.
_EXECUTION = "execution"


class InvalidSettingsError(EntryError):
    """An entry refuses its settings; mend the environment variables that the message names."""


def read_entry_settings(
    environment: Mapping[str, str], registry: CronRegistry, *, only: str | None = None
) -> EntrySettings:
    """Give the settings of every entry that has some: names and keys in lower case.

    With `only`, those of one entry: what runs nothing else need not have what the others ask for.

    Raises:
        InvalidSettingsError: a setting is not UTF-8, or an entry refuses its settings.

    """
    found = _by_entry(environment, [str(name) for name in registry])
    settings = {name: _without_execution(keys) for name, keys in found.items()}
    if only is not None:
        settings = {name: keys for name, keys in settings.items() if name == only}
    for name, spec in registry.items():
        if spec.check_settings is None or only not in {None, str(name)}:
            continue
        try:
            spec.check_settings(settings.get(name, NO_SETTINGS))
        except ValueError as error:
            raise InvalidSettingsError(f"The settings {PREFIX}{name.upper()}_… are refused: {error}") from error
    return settings


def read_execution_modes(environment: Mapping[str, str], registry: CronRegistry) -> dict[str, ExecutionMode]:
    """Give where each entry runs: as `CRONPLANE_ENTRY_<NAME>_EXECUTION` says, or else as its spec does.

    Raises:
        InvalidSettingsError: a setting is neither `in_process` nor `pod`, or `in_process` for an entry that cannot.

    """
    settings = _by_entry(environment, [str(name) for name in registry])
    return {
        str(name): _execution(name, spec, settings.get(name, NO_SETTINGS).get(_EXECUTION, spec.execution.value))
        for name, spec in registry.items()
    }


def _execution(name: str, spec: AnyCronEntrySpec, mode: str) -> ExecutionMode:
    variable = f"{PREFIX}{name.upper()}_{_EXECUTION.upper()}"
    if spec.container is not None and mode == ExecutionMode.IN_PROCESS:
        raise InvalidSettingsError(f"{variable} cannot be in_process: the entry runs containers, which need pods")
    try:
        return ExecutionMode(mode)
    except ValueError as error:
        raise InvalidSettingsError(f"{variable} is neither in_process nor pod") from error


def _without_execution(keys: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in keys.items() if key != _EXECUTION}


def _by_entry(environment: Mapping[str, str], names: Iterable[str]) -> dict[str, dict[str, str]]:
    longest_first = sorted(names, key=len, reverse=True)
    found: dict[str, dict[str, str]] = {}
    for variable, value in environment.items():
        for name in longest_first:
            prefix = f"{PREFIX}{name.upper()}_"
            if variable.startswith(prefix) and variable != prefix:
                _check_is_text(variable, value)
                found.setdefault(name, {})[variable.removeprefix(prefix).lower()] = value
                break
    return found


def _check_is_text(variable: str, value: str) -> None:
    """Refuse bytes that Python keeps as lone surrogates (PEP 383), which cannot be handed on to a worker."""
    try:
        (variable + value).encode()
    except UnicodeEncodeError as error:
        raise InvalidSettingsError(f"The variable {ascii(variable)[1:-1]} is not UTF-8") from error
