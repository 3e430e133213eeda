"""The Cron resources of an installation's namespaces, as they were last listed or seen.

Those who compare them with the table share this memory; nothing here says which of them is whose.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from cronplane_core.kubernetes_client import (
    CRONS,
    NAMESPACES,
    Body,
    KubernetesClient,
    KubernetesRefusedError,
    ResourceNotFoundError,
)
from cronplane_operator.leader_extension import ChangeSignal

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
        found: list[Body] = []
        unlisted: dict[str, KubernetesRefusedError] = {}
        for namespace in self.namespaces:
            try:
                found += await self._client.list_all(CRONS, namespace=namespace)
            except ResourceNotFoundError:
                self._take_in([], unlisted={})
                raise
            except KubernetesRefusedError as error:
                # With a namespace goes the right to look into it.
                if await self._is_there(namespace):
                    unlisted[namespace] = error
        kept = [body for (namespace, _), body in self._bodies.items() if namespace in unlisted]
        self._take_in([*found, *kept], unlisted=unlisted)

    async def _is_there(self, namespace: str) -> bool:
        with suppress(ResourceNotFoundError):
            await self._client.get(NAMESPACES, name=namespace)
            return True
        return False

    def _take_in(self, found: Collection[Body], *, unlisted: Mapping[str, KubernetesRefusedError]) -> None:
        self._bodies = {_key(body): _kept(body) for body in found}
        self.unlisted = unlisted
        self.lists += 1
        self.changed.set()

    def seen(self, event: str | None, body: Body) -> bool:
        """Learn what a resource is, or that it is gone (`DELETED`); tells whether that was news."""
        known = self._bodies.get(_key(body))
        if event == "DELETED":
            if known is None or known["metadata"]["uid"] != body["metadata"]["uid"]:
                return False
            del self._bodies[_key(body)]
        elif _is_newer(body, known):
            self._bodies[_key(body)] = _kept(body)
        else:
            return False
        self.changed.set()
        return True

    def written(self, body: Body) -> None:
        """Take in what became of a resource by our own hand, which is news to nobody."""
        self._bodies[_key(body)] = _kept(body)

    def removed(self, *, namespace: str, name: str) -> None:
        """Take in that a resource is gone by our own hand."""
        self._bodies.pop((namespace, name), None)

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
    if known is None or known["metadata"]["uid"] != body["metadata"]["uid"]:
        return True
    return int(body["metadata"]["resourceVersion"]) > int(known["metadata"]["resourceVersion"])
