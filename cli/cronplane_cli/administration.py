"""The administrator's commands, over the same REST interface that everybody uses."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2

from cronplane_cli.errors import CommandError

_TIMEOUT = 30.0


class Administration:
    """A client with the installation key, or a key of an organization."""

    def __init__(self, *, url: str, key: str, transport: httpx2.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(base_url=url, headers=headers, timeout=_TIMEOUT, transport=transport)

    def create_organization(self, *, name: str) -> dict[str, Any]:
        """Make an organization."""
        return self._call("POST", "/organizations", body={"name": name})

    def list_organizations(self) -> Iterator[dict[str, Any]]:
        """Yield every organization."""
        cursor: str | None = None
        while True:
            page = self._call("GET", "/organizations", query={"cursor": cursor} if cursor else {})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def read_organization(self, *, organization_id: UUID) -> dict[str, Any]:
        """Read an organization."""
        return self._call("GET", f"/organizations/{organization_id}")

    def limit_organization(self, *, organization_id: UUID, changes: dict[str, Any]) -> dict[str, Any]:
        """Change what an organization may use, and how much of it; None asks for the default."""
        return self._call("PATCH", f"/organizations/{organization_id}", body=changes)

    def create_key(self, *, organization_id: UUID, name: str, role: str) -> dict[str, Any]:
        """Make a key; its text is in `key`, this once."""
        return self._call("POST", f"/organizations/{organization_id}/keys", body={"name": name, "role": role})

    def list_keys(self, *, organization_id: UUID) -> list[dict[str, Any]]:
        """List an organization's keys."""
        keys: list[dict[str, Any]] = self._call("GET", f"/organizations/{organization_id}/keys")["items"]
        return keys

    def revoke_key(self, *, organization_id: UUID, key_id: UUID) -> None:
        """Revoke a key."""
        self._call("DELETE", f"/organizations/{organization_id}/keys/{key_id}")

    def list_entrypoints(self) -> list[dict[str, Any]]:
        """List the entries that the key's organization may use, with where each runs."""
        entries: list[dict[str, Any]] = self._call("GET", "/entrypoints")["items"]
        return entries

    def register_cron(self, *, organization_id: UUID, cron: dict[str, Any]) -> dict[str, Any]:
        """Register a cron."""
        return self._call("POST", f"/crons/{organization_id}", body=cron)

    def trigger_cron(self, *, organization_id: UUID, cron_id: UUID) -> dict[str, Any]:
        """Run a cron now; gives the run."""
        return self._call("POST", f"/crons/{organization_id}/{cron_id}/trigger")

    def read_run(self, *, organization_id: UUID, cron_id: UUID, run_id: UUID) -> dict[str, Any]:
        """Read a run."""
        return self._call("GET", f"/crons/{organization_id}/{cron_id}/runs/{run_id}")

    def delete_cron(self, *, organization_id: UUID, cron_id: UUID) -> None:
        """Delete a cron."""
        self._call("DELETE", f"/crons/{organization_id}/{cron_id}")

    def is_ready(self) -> bool:
        """Tell whether the API can serve."""
        try:
            self._call("GET", "/readyz")
        except CommandError:
            return False
        return True

    def _call(
        self, method: str, path: str, *, body: dict[str, Any] | None = None, query: dict[str, str] | None = None
    ) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, json=body, params=query)
        except httpx2.HTTPError as error:
            raise CommandError(f"The API at {self._client.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise CommandError(_refusal(answer))
        result: dict[str, Any] = answer.json() if answer.content else {}
        return result


def _refusal(answer: httpx2.Response) -> str:
    try:
        problem = answer.json()
    except ValueError:
        return f"The API answered {answer.status_code}"
    errors = "; ".join(f"{error['pointer']}: {error['message']}" for error in problem.get("errors", []))
    return f"{problem.get('detail') or problem.get('title')}{f' ({errors})' if errors else ''}"
