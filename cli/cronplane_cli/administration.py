"""The administrator's commands, over the same REST interface that everybody uses."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2

from cronplane_cli.api_client import ApiClient, ApiRefusedError, ApiUnavailableError


class Administration:
    """A client with the installation key, or a key of an organization."""

    def __init__(self, *, url: str, key: str, transport: httpx2.BaseTransport | None = None) -> None:
        self._api = ApiClient(url=url, key=key, transport=transport)

    def create_organization(self, *, name: str) -> dict[str, Any]:
        """Make an organization."""
        return self._api.call("POST", "/organizations", body={"name": name})

    def list_organizations(self) -> Iterator[dict[str, Any]]:
        """Yield every organization."""
        cursor: str | None = None
        while True:
            page = self._api.call("GET", "/organizations", query={"cursor": cursor} if cursor else {})
            yield from page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return

    def read_organization(self, *, organization_id: UUID) -> dict[str, Any]:
        """Read an organization."""
        return self._api.call("GET", f"/organizations/{organization_id}")

    def limit_organization(self, *, organization_id: UUID, changes: dict[str, Any]) -> dict[str, Any]:
        """Change what an organization may use, and how much of it; None asks for the default."""
        return self._api.call("PATCH", f"/organizations/{organization_id}", body=changes)

    def create_key(self, *, organization_id: UUID, name: str, role: str) -> dict[str, Any]:
        """Make a key; its text is in `key`, this once."""
        return self._api.call("POST", f"/organizations/{organization_id}/keys", body={"name": name, "role": role})

    def list_keys(self, *, organization_id: UUID) -> list[dict[str, Any]]:
        """List an organization's keys."""
        keys: list[dict[str, Any]] = self._api.call("GET", f"/organizations/{organization_id}/keys")["items"]
        return keys

    def revoke_key(self, *, organization_id: UUID, key_id: UUID) -> None:
        """Revoke a key."""
        self._api.call("DELETE", f"/organizations/{organization_id}/keys/{key_id}")

    def list_entrypoints(self) -> list[dict[str, Any]]:
        """List the entries that the key's organization may use, with where each runs."""
        entries: list[dict[str, Any]] = self._api.call("GET", "/entrypoints")["items"]
        return entries

    def register_cron(self, *, organization_id: UUID, cron: dict[str, Any]) -> dict[str, Any]:
        """Register a cron."""
        return self._api.call("POST", f"/crons/{organization_id}", body=cron)

    def trigger_cron(self, *, organization_id: UUID, cron_id: UUID) -> dict[str, Any]:
        """Run a cron now; gives the run."""
        return self._api.call("POST", f"/crons/{organization_id}/{cron_id}/trigger")

    def read_run(self, *, organization_id: UUID, cron_id: UUID, run_id: UUID) -> dict[str, Any]:
        """Read a run."""
        return self._api.call("GET", f"/crons/{organization_id}/{cron_id}/runs/{run_id}")

    def delete_cron(self, *, organization_id: UUID, cron_id: UUID) -> None:
        """Delete a cron."""
        self._api.call("DELETE", f"/crons/{organization_id}/{cron_id}")

    def is_ready(self) -> bool:
        """Tell whether the API can serve."""
        try:
            self._api.call("GET", "/readyz")
        except (ApiUnavailableError, ApiRefusedError):
            return False
        return True
