"""Kopf, in a thread and a loop of its own: it watches Crons, Jobs and namespaces, and tells of what it saw.

Kopf ends as a whole when the API server is away at its start, when its CRD is deleted or when a right is missing, and
when it ends it cancels tasks that are not its own; so it shares no loop with the runner, and is started again with
back-off for as long as this process lives. It writes nothing: its handlers only hand events on.

Kopf watches all that it handles in all of its namespaces. What is watched elsewhere than the rest, by other rights, is
watched by a kopf of its own.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import kopf

from cronplane_core.kubernetes_client import CRONS, JOBS, NAMESPACES, Body, load_configuration

# Seconds. A watch is asked for anew, so that one that fell silent, or whose right was taken away, is noticed soon.
_WATCH_SERVER_TIMEOUT = 10
_WATCH_CLIENT_TIMEOUT = 15
# Kopf's own tries before it ends; the long waits are those between its starts.
_REQUEST_BACKOFFS = (0.5, 1.0, 2.0)
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
# After so many seconds of service an end counts as the first one.
_STABLE = 120.0
_OURS = {"app.kubernetes.io/managed-by": "cronplane"}
_CREDENTIALS_LIFE = timedelta(minutes=1)

OnEvent = Callable[[str | None, Body], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """Whether kopf is watching; `ends` counts how often it ended by itself, `reason` is why it did so last."""

    is_watching: bool
    ends: int
    reason: str


class KopfWatch:
    """Keeps kopf going, and calls back in the loop that started it.

    `on_event` is told of Crons: event type (None from a list), body. `on_namespace` is told the name of a namespace of
    which something has become, `on_job` that a Job of ours has changed; what nobody is to be told of is not watched.
    `probes` give what kopf's own liveness endpoint answers, for as long as kopf goes, at `probe_url` if there is one.
    """

    def __init__(
        self,
        *,
        namespaces: Collection[str],
        kubeconfig: Path | None,
        on_ended: Callable[[str], None],
        on_event: OnEvent | None = None,
        on_namespace: Callable[[str], None] | None = None,
        on_job: Callable[[], None] | None = None,
        probes: Mapping[str, Callable[[], object]] = MappingProxyType({}),
        probe_url: str | None = None,
    ) -> None:
        self._namespaces = frozenset(namespaces)
        self._kubeconfig = kubeconfig
        self._on_event = on_event
        self._on_job = on_job
        self._on_ended = on_ended
        self._on_namespace = on_namespace
        self._probes = probes
        self._probe_url = probe_url
        self._stop = threading.Event()
        self._stop_kopf = threading.Event()
        self._ready = threading.Event()
        self._ends = 0
        self._reason = ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch; called in the loop that is to be told of events."""
        quiet_kopf()
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._keep_going, args=[loop], name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._stop_kopf.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    @property
    def state(self) -> WatchState:
        """Whether kopf is watching right now."""
        return WatchState(is_watching=self._ready.is_set(), ends=self._ends, reason=self._reason)

    def _keep_going(self, loop: asyncio.AbstractEventLoop) -> None:
        pause = _SHORTEST_PAUSE
        while not self._stop.is_set():
            began = datetime.now(UTC)
            reason = self._watch_once(loop)
            self._ready.clear()
            if self._stop.is_set():
                return
            self._ends, self._reason = self._ends + 1, reason
            loop.call_soon_threadsafe(self._on_ended, reason)
            is_stable = (datetime.now(UTC) - began).total_seconds() > _STABLE
            pause = _SHORTEST_PAUSE if is_stable else min(2 * pause, _LONGEST_PAUSE)
            self._stop.wait(pause)

    def _watch_once(self, loop: asyncio.AbstractEventLoop) -> str:
        """Let kopf run until it ends, and give why it did."""
        self._stop_kopf = threading.Event()
        if self._stop.is_set():
            self._stop_kopf.set()
        try:
            asyncio.run(self._serve(loop, self._stop_kopf))
        except Exception as error:  # noqa: BLE001 - whatever ends kopf must not end what runs beside it
            return f"{type(error).__name__}: {error}"
        return "it ended without saying why"

    async def _serve(self, loop: asyncio.AbstractEventLoop, stop: threading.Event) -> None:
        try:
            await kopf.operator(
                registry=self._handlers(loop),
                settings=_settings(),
                namespaces=sorted(self._namespaces),
                standalone=True,
                liveness_endpoint=self._probe_url,
                stop_flag=stop,
                ready_flag=self._ready,
            )
        finally:
            # Kopf leaves a thread waiting for its flag, and the loop's end would wait for that thread.
            stop.set()

    def _handlers(self, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        if self._on_event is not None:
            of_cron = partial(_hand_on_event, loop, self._on_event)
            kopf.on.event(CRONS.group, CRONS.version, CRONS.plural, registry=registry)(of_cron)
        if self._on_namespace is not None:
            of_namespace = partial(_hand_on_name, loop, self._on_namespace)
            kopf.on.event(NAMESPACES.group, NAMESPACES.version, NAMESPACES.plural, registry=registry)(of_namespace)
        if self._on_job is not None:
            of_job = Hint(loop, self._on_job).happened
            kopf.on.event(JOBS.group, JOBS.version, JOBS.plural, labels=_OURS, registry=registry)(of_job)
        for name, probe in self._probes.items():
            kopf.on.probe(id=name, registry=registry)(partial(_answer, probe))
        kopf.on.login(registry=registry, errors=kopf.ErrorsMode.TEMPORARY)(self._log_in)
        return registry

    async def _log_in(self, **_: object) -> kopf.ConnectionInfo:
        found = await load_configuration(self._kubeconfig)
        credential = await found.get_api_key_with_prefix("BearerToken")
        return kopf.ConnectionInfo(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            scheme="Bearer" if credential else None,
            token=credential.split(" ", 1)[1] if credential else None,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
            # A pod's token is replaced now and then.
            expiration=datetime.now(UTC) + _CREDENTIALS_LIFE if credential else None,
        )


def combined(states: Sequence[WatchState]) -> WatchState:
    """Give the state of several as that of one, which watches if all do."""
    troubled = next((state for state in states if not state.is_watching), states[0])
    return WatchState(
        is_watching=troubled.is_watching, ends=sum(state.ends for state in states), reason=troubled.reason
    )


# Not in a thread of its own each, which kopf would give to handlers that are no coroutines.
async def _hand_on_event(loop: asyncio.AbstractEventLoop, tell: OnEvent, *, event: kopf.RawEvent, **_: object) -> None:
    loop.call_soon_threadsafe(tell, event["type"], _plain(event["object"]))


async def _hand_on_name(
    loop: asyncio.AbstractEventLoop, tell: Callable[[str], None], *, name: str, **_: object
) -> None:
    loop.call_soon_threadsafe(tell, name)


class Hint:
    """Tells a loop that something has happened, once for all that happens until it has heard."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._is_on_its_way = False

    async def happened(self, **_: object) -> None:
        """Tell it, unless it is being told already."""
        if not self._is_on_its_way:
            self._is_on_its_way = True
            self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        # Before it is told: what happens from here on may not be seen any more by whoever hears of it.
        self._is_on_its_way = False
        self._tell()


async def _answer(probe: Callable[[], object], **_: object) -> object:
    return probe()


def _plain(body: Mapping[str, Any]) -> Body:
    return {key: value for key, value in body.items() if key != "managedFields"}


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.watching.server_timeout = _WATCH_SERVER_TIMEOUT
    settings.watching.client_timeout = _WATCH_CLIENT_TIMEOUT
    settings.networking.error_backoffs = _REQUEST_BACKOFFS
    settings.persistence.diffbase_storage = _NothingKept()
    return settings


class _NothingKept(kopf.DiffBaseStorage):
    """Keeps nothing of a resource to compare it with later; kopf would copy each one, twice, for nobody."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        return None


def quiet_kopf() -> None:
    """Keep kopf from telling of each event in the log, where bodies would be seen."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").setLevel(logging.ERROR)
