"""Kubernetes' API for those who write many small objects: plain JSON bodies over one pool of connections.

The official library finds the cluster and renews credentials; its typed models take several times the CPU of the
request itself, so bodies are mappings here, as they go over the wire. Nothing here retries: who asks knows whether to.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from kubernetes.aio import config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from cronplane_core.errors import CronplaneError

Body = dict[str, Any]
_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)
_CONNECTIONS = 40
# Seconds. Longer than a minute, since most crons fire on one; the API server itself closes them after 90.
_KEPT_OPEN = 75.0
_PAGE = 500
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
# By which name Kubernetes keeps which fields we have set (its documentation of server-side apply, "Managers").
_OURS = {"fieldManager": "cronplane"}


class KubernetesError(CronplaneError):
    """Kubernetes did not do what it was asked."""


class KubernetesUnavailableError(KubernetesError):
    """No answer, or one that says to try again later; `retry_after` is in seconds, if Kubernetes told.

    Whether the request was carried out is not known.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KubernetesRefusedError(KubernetesError):
    """Kubernetes answered no; `reason` is its machine-readable word (`Status.reason`), and trying again is no use."""

    def __init__(self, message: str, *, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class ResourceNotFoundError(KubernetesRefusedError):
    """There is no such object, or no such kind of object (its CRD is missing)."""


class ResourceConflictError(KubernetesRefusedError):
    """An object of that name is there (`AlreadyExists`), or it has changed meanwhile (`Conflict`)."""


class ResourceInvalidError(KubernetesRefusedError):
    """The object would not be valid so, or it is another one by now than the one that was meant (its UID)."""


class KubernetesConfigurationError(KubernetesError):
    """There is no usable kubeconfig, and this is not a pod with a service account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceKind:
    """A kind of resource by its API group ("" is the core one), version and plural name."""

    group: str
    version: str
    plural: str

    def path(self, *, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Give the path of one object, or of all, in a namespace or the cluster."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


CRONS = ResourceKind(group="crons.cronplane.dev", version="v1alpha1", plural="crons")
RUNNERS = ResourceKind(group="crons.cronplane.dev", version="v1alpha1", plural="runners")
CRONJOBS = ResourceKind(group="batch", version="v1", plural="cronjobs")
JOBS = ResourceKind(group="batch", version="v1", plural="jobs")
PODS = ResourceKind(group="", version="v1", plural="pods")
SECRETS = ResourceKind(group="", version="v1", plural="secrets")
NAMESPACES = ResourceKind(group="", version="v1", plural="namespaces")
RESOURCE_DEFINITIONS = ResourceKind(group="apiextensions.k8s.io", version="v1", plural="customresourcedefinitions")
EVENTS = ResourceKind(group="", version="v1", plural="events")
TOKEN_REVIEWS = ResourceKind(group="authentication.k8s.io", version="v1", plural="tokenreviews")


async def load_configuration(kubeconfig: Path | None) -> Configuration:
    """Find the cluster and the credentials for it, from a kubeconfig, or without one from the pod which this runs in.

    Raises:
        KubernetesConfigurationError: neither is there, or the file cannot be used.

    """
    configuration = Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        where = "the service account of this pod" if kubeconfig is None else str(kubeconfig)
        raise KubernetesConfigurationError(f"Kubernetes cannot be reached with {where}: {error}") from error
    return configuration


class KubernetesClient:
    """Asks one cluster. Every method raises `KubernetesUnavailableError`, or `KubernetesRefusedError` if it said no."""

    def __init__(self, configuration: Configuration, session: aiohttp.ClientSession) -> None:
        self._configuration = configuration
        self._session = session

    @classmethod
    @asynccontextmanager
    async def connected(cls, *, kubeconfig: Path | None = None) -> AsyncIterator["KubernetesClient"]:
        """Keep connections to the cluster of a kubeconfig, or without one to that of the pod which this runs in.

        Raises:
            KubernetesConfigurationError: neither is there, or the file cannot be used.

        """
        configuration = await load_configuration(kubeconfig)
        context = RESTClientObject(configuration).ssl_context
        connector = aiohttp.TCPConnector(ssl=context, limit=_CONNECTIONS, keepalive_timeout=_KEPT_OPEN)
        # No proxy from the environment: service-account tokens go to the API server and nowhere else.
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, trust_env=False) as session:
            yield cls(configuration, session)

    async def get(self, kind: ResourceKind, *, name: str, namespace: str | None = None) -> Body:
        """Read one object."""
        return await self._json("GET", kind.path(namespace=namespace, name=name))

    async def list_all(
        self, kind: ResourceKind, *, namespace: str | None = None, selector: str = "", fields: str = ""
    ) -> list[Body]:
        """Read every object, in pages, of one moment; `selector` is of labels, `fields` of fields."""
        query = {"limit": str(_PAGE)}
        query |= {key: value for key, value in (("labelSelector", selector), ("fieldSelector", fields)) if value}
        found: list[Body] = []
        while True:
            page = await self._json("GET", kind.path(namespace=namespace), query=query)
            found += page["items"]
            following = page["metadata"].get("continue")
            if not following:
                return found
            query["continue"] = following

    async def create(self, kind: ResourceKind, body: Body, *, namespace: str | None = None) -> Body:
        """Make an object; `ResourceConflictError` if one of its name is there."""
        return await self._json("POST", kind.path(namespace=namespace), body=body, query=_OURS)

    async def apply(self, kind: ResourceKind, body: Body, *, namespace: str, subresource: str | None = None) -> Body:
        """Bring the fields of `body` about, whoever else had set them (server-side apply, KEP-555)."""
        path = kind.path(namespace=namespace, name=body["metadata"]["name"], subresource=subresource)
        return await self._json("PATCH", path, body=body, query=_OURS | {"force": "true"}, content_type=_APPLY)

    async def patch(
        self, kind: ResourceKind, body: Body, *, name: str, namespace: str, subresource: str | None = None
    ) -> Body:
        """Merge `body` into an object (RFC 7386)."""
        path = kind.path(namespace=namespace, name=name, subresource=subresource)
        return await self._json("PATCH", path, body=body, content_type=_MERGE)

    async def delete(
        self, kind: ResourceKind, *, name: str, namespace: str, uid: str | None = None, waits: bool = False
    ) -> None:
        """Delete an object, with what it owns; with `uid` only if it still is that one.

        One that `waits` stays until what it owns is gone, else that goes in the background.
        """
        options: Body = {"propagationPolicy": "Foreground" if waits else "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        await self._json("DELETE", kind.path(namespace=namespace, name=name), body=options)

    async def pod_log(self, *, name: str, namespace: str, container: str, tail_bytes: int) -> bytes:
        """Read the end of what a container wrote."""
        # The API bounds a log from its beginning (limitBytes) or by lines only, so the end is kept while it is read.
        query = {"container": container, "tailLines": str(tail_bytes)}
        kept = b""
        async with self._request("GET", PODS.path(namespace=namespace, name=name, subresource="log"), query) as answer:
            await _raise_for(answer)
            async for chunk in answer.content.iter_chunked(tail_bytes):
                kept = (kept + chunk)[-tail_bytes:]
        return kept

    async def _json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = _JSON,
    ) -> Body:
        async with self._request(method, path, query, body, content_type) as answer:
            await _raise_for(answer)
            found = _object(await answer.read())
        if not found:
            raise KubernetesUnavailableError("Kubernetes' API answers with something that is not of Kubernetes")
        return found

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = _JSON,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Accept": _JSON, "Content-Type": content_type}
        credential = await self._configuration.get_api_key_with_prefix("BearerToken")
        if credential:
            headers["Authorization"] = credential
        data = None if body is None else orjson.dumps(body)
        url = f"{self._configuration.host}{path}"
        try:
            async with self._session.request(method, url, params=query, data=data, headers=headers) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise KubernetesUnavailableError(f"Kubernetes' API does not answer: {type(error).__name__}") from error


async def _raise_for(answer: aiohttp.ClientResponse) -> None:
    """Raise what an answer means, if that is not success (Kubernetes' API conventions, "Response Status Kind")."""
    if answer.status < HTTPStatus.BAD_REQUEST:
        return
    told = _object(await answer.read())
    message = f"Kubernetes answered {answer.status}: {told.get('message') or answer.reason}"
    reason = str(told.get("reason") or "")
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        raise KubernetesUnavailableError(message, retry_after=_seconds(answer.headers.get("Retry-After")))
    kinds = {
        HTTPStatus.NOT_FOUND: ResourceNotFoundError,
        HTTPStatus.CONFLICT: ResourceConflictError,
        HTTPStatus.UNPROCESSABLE_ENTITY: ResourceInvalidError,
    }
    kind = kinds.get(HTTPStatus(answer.status), KubernetesRefusedError)
    raise kind(message, status=answer.status, reason=reason)


def _object(body: bytes) -> Body:
    """Read an object; it is empty if this is none, such as the page of a proxy on the way."""
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _seconds(header: str | None) -> float | None:
    return float(header) if header is not None and header.isascii() and header.isdigit() else None
