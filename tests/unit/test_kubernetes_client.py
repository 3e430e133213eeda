"""What answers of an API server mean to whoever asked: no, not now, or not known."""

from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from kubernetes.aio.client import Configuration

from cronplane_core.kubernetes_client import (
    JOBS,
    KubernetesClient,
    KubernetesRefusedError,
    KubernetesUnavailableError,
    ResourceConflictError,
    ResourceNotFoundError,
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def ask(handler: Handler) -> None:
    """Create a Job at a server that answers like this."""
    async with RawTestServer(handler) as server, aiohttp.ClientSession() as session:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
        await KubernetesClient(configuration, session).create(JOBS, {"kind": "Job"}, namespace="runs")


def answering(status: int, body: str = "{}", **headers: str) -> Handler:
    async def answer(_: web.BaseRequest) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=body, headers=named)

    return answer


@pytest.mark.parametrize(
    ("status", "headers", "retry_after"),
    [
        (429, {"Retry_After": "7"}, 7.0),
        (429, {}, None),
        (500, {}, None),
        (503, {"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        (504, {"Retry_After": "-1"}, None),
    ],
)
async def test_too_many_requests_and_errors_of_the_server_mean_not_now(
    status: int, headers: dict[str, str], retry_after: float | None
) -> None:
    with pytest.raises(KubernetesUnavailableError) as raised:
        await ask(answering(status, "<html>not of Kubernetes</html>", **headers))
    assert raised.value.retry_after == retry_after


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, ResourceNotFoundError),
        (409, ResourceConflictError),
        (403, KubernetesRefusedError),
        (422, KubernetesRefusedError),
    ],
)
async def test_a_refusal_is_told_with_kubernetes_own_words(status: int, kind: type[KubernetesRefusedError]) -> None:
    with pytest.raises(kind, match=f"Kubernetes answered {status}: because") as raised:
        await ask(answering(status, '{"reason": "Word", "message": "because"}'))
    assert (raised.value.status, raised.value.reason) == (status, "Word")


async def test_a_connection_that_is_closed_before_the_answer_leaves_it_open_what_was_done() -> None:
    async def close(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    with pytest.raises(KubernetesUnavailableError):
        await ask(close)


async def test_an_answer_that_breaks_off_is_none() -> None:
    async def break_off(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": "1000"})
        await answer.prepare(request)
        await answer.write(b'{"kind":')
        assert request.transport is not None
        request.transport.close()
        return answer

    with pytest.raises(KubernetesUnavailableError):
        await ask(break_off)


@pytest.mark.parametrize("body", ["", "<html>a proxy's page</html>", "[1]"])
async def test_an_answer_that_is_no_object_of_kubernetes_is_none(body: str) -> None:
    with pytest.raises(KubernetesUnavailableError):
        await ask(answering(200, body))
