"""The installed API as a person at a laptop reaches it: by `kubectl port-forward`, over REST.

The way ends when the pod behind it goes. Then another one is made and the request is sent again, which the API's
idempotency keys make safe: so a request is carried out once, whatever goes away meanwhile.
"""

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

import httpx2

from tests.kubectl import Kubectl

# Seconds; the second only keeps a test from waiting forever.
_TIMEOUT = 10.0
_PATIENCE = 120.0
_ENDED = {"completed", "error", "timed_out", "cancelled", "skipped", "missed", "lost"}


class ForwardError(Exception):
    """There was nobody to forward to."""


class RestClient:
    """A client with a key of an organization, or with the installation key."""

    def __init__(self, *, kubectl: Kubectl, key: str, service: str = "service/cronplane-api") -> None:
        self._kubectl = kubectl
        self._service = service
        self._headers = {"Authorization": f"Bearer {key}"}
        self._forward: subprocess.Popen[str] | None = None
        self._client: httpx2.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hang_up()

    def get(self, path: str, **query: str) -> Any:
        """Read something."""
        return self._answer("GET", path, params=query)

    def post(self, path: str, body: Any = None) -> Any:
        """Have something done, once."""
        return self._answer("POST", path, json=body, headers={"Idempotency-Key": token_hex(16)})

    def ended_run(self, path: str) -> dict[str, Any]:
        """Read a run until it is over."""
        return self.get_until(path, lambda run: run["status"] in _ENDED)

    def get_until(self, path: str, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read something until it is so; a pod of before an upgrade may answer until it has gone."""
        found: dict[str, Any] = self._until(lambda: self.get(path), is_so)
        return found

    def _until(self, look: Callable[[], Any], is_so: Callable[[Any], bool]) -> Any:
        give_up = time.monotonic() + _PATIENCE
        while not is_so(seen := look()):
            assert time.monotonic() < give_up, f"it is still so: {seen}"
        return seen

    def _answer(self, method: str, path: str, **request: Any) -> Any:
        answer = self._until(lambda: self._sent(method, path, **request), lambda sent: sent is not None)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def _sent(self, method: str, path: str, **request: Any) -> httpx2.Response | None:
        """Send a request; gives nothing if the API was not there to answer it."""
        try:
            answer = (self._client or self._reach()).request(method, path, **request)
        except (httpx2.TransportError, ForwardError):
            self._hang_up()
            return None
        return None if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE else answer

    def _reach(self) -> httpx2.Client:
        command = self._kubectl.command("port-forward", self._service, ":8080")
        self._forward = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._forward.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", self._forward.stdout.readline())
        if found is None:
            raise ForwardError("there is no pod to forward to")
        url = f"http://127.0.0.1:{found[1]}"
        self._client = httpx2.Client(base_url=url, headers=self._headers, timeout=_TIMEOUT)
        return self._client

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._forward is not None:
            with self._forward, suppress(ProcessLookupError):
                self._forward.terminate()
            self._forward = None
