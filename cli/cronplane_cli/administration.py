"""The administrator's commands, over the same REST interface that everybody uses."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2

from cronplane_cli.api_client import ApiClient


class Administration:
    """A client with the installation key, or an organization's admin key."""

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
