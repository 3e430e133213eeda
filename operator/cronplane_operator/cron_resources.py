"""The Cron resources of an installation's namespaces, as they were last listed or seen.

Those who compare them with the table share this memory; nothing here says which of them is whose.
"""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from cronplane_core.kubernetes_client import (
    CRONS,
    NAMESPACES,
    RESOURCE_DEFINITIONS,
    Body,
    KubernetesClient,
    KubernetesRefusedError,
    KubernetesUnavailableError,
    ResourceKind,
    ResourceNotFoundError,
)
from cronplane_operator.leader_extension import ChangeSignal

CRON_DEFINITION = f"{CRONS.plural}.{CRONS.group}"
_METADATA = frozenset({"generation", "labels", "name", "namespace", "resourceVersion", "uid"})
_PARTS = frozenset({"apiVersion", "kind", "spec", "status"})
_Key = tuple[str, str]


class CronResources:
    """What is known of the resources.

    `changed` is set when somebody else has changed one, or a list has come. `lists` counts the lists; `unlisted` are
    the namespaces that the last one is without, with the reason, and what is known of them is what was known before.
    """

    def __init__(self, *, client: KubernetesClient, namespaces: Collection[str]) -> None:
        self._client = client
        self._bodies: dict[_Key, Body] = {}
        self._listing = asyncio.Lock()
        # What was learned since the last list was asked for, which may be older than that when it comes.
        self._news: set[_Key] = set()
        self._gone: set[str] = set()
        self.namespaces = sorted(set(namespaces))
        self.changed = ChangeSignal()
        self.lists = 0
        self.unlisted: Mapping[str, KubernetesRefusedError] = {}

    async def list(self) -> None:
        """Ask for all of them; what was known before is forgotten.

        Raises:
            ResourceNotFoundError: their definition is missing, and with it all of them.
            KubernetesUnavailableError: not all could be had, and what was known stays.

        """
        async with self._listing:
            self._news, self._gone = set(), set()
            try:
                found, unlisted = await self._ask()
            except ResourceNotFoundError as error:
                if await self._is_there(RESOURCE_DEFINITIONS, CRON_DEFINITION):
                    raise KubernetesUnavailableError(
                        f"Kubernetes has the definition {CRON_DEFINITION} and serves no Crons of version "
                        f"{CRONS.version}; see its conditions and versions"
                    ) from error
                self._take_in([], unlisted={})
                raise
            kept = [body for (namespace, _), body in self._bodies.items() if namespace in unlisted]
            self._take_in([*found, *kept], unlisted=unlisted)

    async def _ask(self) -> tuple[Collection[Body], Mapping[str, KubernetesRefusedError]]:
        """Give what there is, and the namespaces that could not be looked into."""
        found: list[Body] = []
        unlisted: dict[str, KubernetesRefusedError] = {}
        for namespace in self.namespaces:
            try:
                found += await self._client.list_all(CRONS, namespace=namespace)
            except ResourceNotFoundError:
                raise
            except KubernetesRefusedError as error:
                # With a namespace goes the right to look into it.
                if await self._is_there(NAMESPACES, namespace):
                    unlisted[namespace] = error
        return found, unlisted

    async def _is_there(self, kind: ResourceKind, name: str) -> bool:
        with suppress(ResourceNotFoundError):
            await self._client.get(kind, name=name)
            return True
        return False

    def _take_in(self, found: Collection[Body], *, unlisted: Mapping[str, KubernetesRefusedError]) -> None:
        """Keep what was found, and of what was learned meanwhile what is newer."""
        listed = {_key(body): _kept(body) for body in found if body["metadata"]["uid"] not in self._gone}
        news = {key: self._bodies[key] for key in self._news & self._bodies.keys()}
        self._bodies = listed | {key: body for key, body in news.items() if _is_newer(body, listed.get(key))}
        self.unlisted = unlisted
        self.lists += 1
        self.changed.set()

    def seen(self, event: str | None, body: Body) -> bool:
        """Learn what a resource is, or that it is gone (`DELETED`); tells whether that was news."""
        known = self._bodies.get(_key(body))
        if event == "DELETED":
            self._gone.add(body["metadata"]["uid"])
            if known is None or known["metadata"]["uid"] != body["metadata"]["uid"]:
                return False
            del self._bodies[_key(body)]
        elif _is_newer(body, known):
            self._keep(body)
        else:
            return False
        self.changed.set()
        return True

    def written(self, body: Body) -> None:
        """Take in what became of a resource by our own hand, which is news to nobody, unless it is known by now."""
        if _is_newer(body, self._bodies.get(_key(body))):
            self._keep(body)

    def _keep(self, body: Body) -> None:
        self._bodies[_key(body)] = _kept(body)
        self._news.add(_key(body))

    def removed(self, *, namespace: str, name: str, uid: str) -> None:
        """Take in that a resource is gone by our own hand; another one of its name stays."""
        self._gone.add(uid)
        known = self._bodies.get((namespace, name))
        if known is not None and known["metadata"]["uid"] == uid:
            del self._bodies[namespace, name]

    def at(self, *, namespace: str, name: str) -> Body | None:
        """Give the resource of a name, or None."""
        return self._bodies.get((namespace, name))

    def by_uid(self) -> dict[str, Body]:
        """Give all of them by their UIDs."""
        return {body["metadata"]["uid"]: body for body in self._bodies.values()}

    def __iter__(self) -> Iterator[Body]:
        return iter(list(self._bodies.values()))


def is_registration(body: Body) -> bool:
    """Say whether a resource has a payload: then a person applied it to register a cron; a mirror has none."""
    return "payload" in body.get("spec", {})


def _key(body: Body) -> _Key:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _kept(body: Body) -> Body:
    """Leave out what is never looked at, above all who manages which field, which is more than all the rest."""
    metadata = {name: value for name, value in body["metadata"].items() if name in _METADATA}
    return {name: value for name, value in body.items() if name in _PARTS} | {"metadata": metadata}


def _is_newer(body: Body, known: Body | None) -> bool:
    """Compare their versions, which go on from a resource to the one in its place (of one kind, they are one clock)."""
    if known is None:
        return True
    return int(body["metadata"]["resourceVersion"]) > int(known["metadata"]["resourceVersion"])
