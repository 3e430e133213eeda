"""The REST interface as commands ask it: one request at a time, and a refusal as an error that says what it said."""

from collections.abc import Mapping
from typing import Any

import httpx2

from cronplane_cli.errors import CommandError

_TIMEOUT = 30.0


class ApiUnavailableError(CommandError):
    """There was no answer; whether the request was carried out is not known."""


class ApiRefusedError(CommandError):
    """The API answered no; `reasons` are the fields that it names, by JSON pointer, and what it says of each."""

    def __init__(self, message: str, *, status: int, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.reasons = reasons


class ApiClient:
    """Asks one API with one key."""

    def __init__(self, *, url: str, key: str, transport: httpx2.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Send a request and give the answer's body, empty if it has none.

        Raises:
            ApiUnavailableError: there was no answer.
            ApiRefusedError: it was not a good one.

        """
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        try:
            answer = self._client.request(method, path, json=body, params=query, headers=headers)
        except httpx2.HTTPError as error:
            raise ApiUnavailableError(f"The API at {self._client.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise _refusal(answer)
        result: dict[str, Any] = answer.json() if answer.content else {}
        return result


def _refusal(answer: httpx2.Response) -> ApiRefusedError:
    try:
        problem = answer.json()
    except ValueError:
        problem = {}
    reasons = {error["pointer"]: error["message"] for error in problem.get("errors", [])}
    named = "; ".join(f"{pointer}: {message}" for pointer, message in reasons.items())
    said = problem.get("detail") or problem.get("title") or f"The API answered {answer.status_code}"
    return ApiRefusedError(f"{said}{f' ({named})' if named else ''}", status=answer.status_code, reasons=reasons)
