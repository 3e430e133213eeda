"""Which entries there are: the built-in ones, and those of every installed distribution that offers some.

A distribution registers by the entry-point group `cronplane.entries` (name = the entry's name, value = `module:spec`).
An entry that is broken or taken is an error when a process starts, never when a cron fires.
"""

import re
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Self, cast

from cronplane_entries import agent_inference, container, dummy_print, http_request
from cronplane_entries.core import (
    AnyCronEntrySpec,
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    EntryError,
    ExecutionMode,
)

ENTRY_POINT_GROUP = "cronplane.entries"
SHORTEST_TIMEOUT = timedelta(seconds=1)
LONGEST_TIMEOUT = timedelta(days=7)
MOST_ATTEMPTS = 100
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)


class UnknownEntryError(EntryError, KeyError):
    """No entry of this name is registered; install the distribution that brings it."""

    def __str__(self) -> str:
        """Give the message plainly; KeyError would quote it."""
        return str(self.args[0])


class InvalidEntryError(EntryError):
    """This is no entry; the message says what is wrong with its name or its specification."""


class DuplicateEntryError(EntryError):
    """Two entries have one name; remove or rename one of them."""


class BrokenEntryError(EntryError):
    """An installed distribution offers an entry that cannot be loaded; mend or remove the distribution."""


class _CronEntrypointMeta(type):
    """Makes the registered names attributes, a set and a constructor, as an enum's members are."""

    _members: ClassVar[dict[str, "CronEntrypoint"]] = {}

    def __iter__(cls) -> Iterator["CronEntrypoint"]:
        return iter(tuple(cls._members.values()))

    def __len__(cls) -> int:
        return len(cls._members)

    def __contains__(cls, name: object) -> bool:
        return name in cls._members

    def __getattr__(cls, attribute: str) -> "CronEntrypoint":
        member = cls._members.get(attribute.lower()) if attribute.isupper() else None
        if member is None:
            raise AttributeError(f"There is no entry {attribute}; add its name first: CronEntrypoint.add(…)")
        return member


class CronEntrypoint(str, metaclass=_CronEntrypointMeta):
    """The name of an entry. Like an enum, but it can be extended: `add("my_entry")` makes `MY_ENTRY` a member."""

    __slots__ = ()

    def __new__(cls, name: str) -> Self:
        """Find a member by its name.

        Raises:
            UnknownEntryError: there is none of this name.

        """
        member = cls._members.get(name)
        if member is None:
            raise UnknownEntryError(f"There is no entry named {name!r}")
        return cast("Self", member)

    @classmethod
    def add(cls, name: str) -> "CronEntrypoint":
        """Make `name` a member, if it is not one, and give it.

        Raises:
            InvalidEntryError: the name does not match `[a-z][a-z0-9_]{0,62}`.

        """
        if not _NAME.fullmatch(name):
            raise InvalidEntryError(f"{name!r} is no name for an entry: it must match [a-z][a-z0-9_]{{0,62}}")
        return cls._members.setdefault(name, str.__new__(cls, name))


class CronRegistry(MutableMapping[CronEntrypoint, AnyCronEntrySpec]):
    """The specification of each entry; a name can be given once."""

    def __init__(self) -> None:
        self._specs: dict[CronEntrypoint, AnyCronEntrySpec] = {}

    def __getitem__(self, name: CronEntrypoint) -> AnyCronEntrySpec:
        try:
            return self._specs[name]
        except KeyError as error:
            raise UnknownEntryError(f"There is no entry named {name!r}") from error

    def __setitem__(self, name: CronEntrypoint, spec: CronEntrySpec[Any, Any]) -> None:
        if not isinstance(name, CronEntrypoint):
            raise InvalidEntryError(f"{name!r} is not a member of CronEntrypoint; add it first")
        if name in self._specs:
            raise DuplicateEntryError(f"The entry {name} is registered already")
        _check(name, spec)
        self._specs[name] = spec

    def __delitem__(self, name: CronEntrypoint) -> None:
        del self._specs[name]

    def __iter__(self) -> Iterator[CronEntrypoint]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def load(self) -> None:
        """Register the built-in entries and those of every installed distribution; a second call changes nothing.

        Raises:
            BrokenEntryError: an entry cannot be imported, or is none; the message names its distribution.
            DuplicateEntryError: two distributions offer one name, or one offers a built-in's; the message names them.

        """
        owners: dict[str, str] = dict.fromkeys(BUILT_IN, "cronplane")
        for name, spec in BUILT_IN.items():
            self._register(name, spec)
        for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=_order):
            owner = owners.setdefault(point.name, _distribution(point))
            if owner != _distribution(point):
                raise DuplicateEntryError(f"{_distribution(point)} and {owner} both offer the entry {point.name}")
            self._register_offered(point)

    def _register_offered(self, point: EntryPoint) -> None:
        try:
            self._register(CronEntrypoint.add(point.name), point.load())
        except DuplicateEntryError as error:
            raise DuplicateEntryError(f"{error}, and {_distribution(point)} offers it too") from error
        except (Exception, SystemExit) as error:
            raise BrokenEntryError(
                f"{_distribution(point)} offers the entry {point.name} ({point.value}), which cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _register(self, name: CronEntrypoint, spec: object) -> None:
        # An entry's module may have registered itself while it was imported.
        if self._specs.get(name) is not spec:
            self[name] = spec  # type: ignore[assignment]  # checked there, whatever a distribution offers


def load_entries() -> None:
    """Fill `CRON_REGISTRY`; every process calls this once, when it starts."""
    CRON_REGISTRY.load()


def _order(point: EntryPoint) -> tuple[str, str]:
    return point.name, _distribution(point)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _check(name: str, spec: object) -> None:
    if not isinstance(spec, CronEntrySpec):
        raise InvalidEntryError(f"The entry {name} is a {type(spec).__name__}, not a CronEntrySpec")
    wrong = [
        message
        for holds, message in (
            (_is_model(spec.user_payload_model, BaseUserPayload), "user_payload_model is no BaseUserPayload"),
            (
                _is_model(spec.execution_payload_model, BaseExecutionPayload),
                "execution_payload_model is no BaseExecutionPayload",
            ),
            (callable(spec.registration_validator), "registration_validator cannot be called"),
            (callable(spec.execution_validator), "execution_validator cannot be called"),
            (callable(spec.executor), "executor cannot be called"),
            (isinstance(spec.execution, ExecutionMode), "execution is neither in_process nor pod"),
            (_is_timeout(spec.timeout), "timeout is no timedelta from 1 second to 7 days"),
            (_is_count(spec.attempts), f"attempts is no number from 1 to {MOST_ATTEMPTS}"),
            (isinstance(spec.completes_by_callback, bool), "completes_by_callback is neither True nor False"),
            (spec.container is None or callable(spec.container), "container cannot be called"),
            (spec.container is None or spec.execution is ExecutionMode.POD, "a container runs in pods only"),
            (spec.check_settings is None or callable(spec.check_settings), "check_settings cannot be called"),
        )
        if not holds
    ]
    if wrong:
        raise InvalidEntryError(f"The entry {name} is not sound: {'; '.join(wrong)}")


def _is_model(model: object, base: type) -> bool:
    return isinstance(model, type) and issubclass(model, base)


def _is_count(attempts: object) -> bool:
    return isinstance(attempts, int) and not isinstance(attempts, bool) and 1 <= attempts <= MOST_ATTEMPTS


def _is_timeout(timeout: object) -> bool:
    return isinstance(timeout, timedelta) and SHORTEST_TIMEOUT <= timeout <= LONGEST_TIMEOUT


BUILT_IN: dict[CronEntrypoint, CronEntrySpec[Any, Any]] = {
    CronEntrypoint.add("agent_inference"): agent_inference.spec,
    CronEntrypoint.add("container"): container.spec,
    CronEntrypoint.add("dummy_print"): dummy_print.spec,
    CronEntrypoint.add("http_request"): http_request.spec,
}

CRON_REGISTRY = CronRegistry()
