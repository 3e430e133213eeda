"""Which organization each namespace belongs to: settings name it by id or by name, the table says which there are.

An annotation on the namespace would be read as well, and could be set by the wrong person.
"""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from cronplane_core.organization_repository import Organization, find_organizations
from cronplane_core.settings import KubernetesSettings


class NamespaceOrganizations:
    """The organizations by their namespaces, `found` in the table when it was last read."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._references = settings.namespaces
        self._release = settings.release_namespace
        self.found: Mapping[str, Organization] = {}

    async def read(self, connection: AsyncConnection) -> None:
        """Read what the organizations are now."""
        found = await find_organizations(connection, references=set(self._references.values()))
        known: dict[UUID | str, Organization] = {each.name: each for each in found} | {each.id: each for each in found}
        self.found = {
            namespace: known[reference] for namespace, reference in self._references.items() if reference in known
        }

    @property
    def namespaces(self) -> list[str]:
        """The namespaces in which there may be Cron resources of this installation."""
        return sorted({*self._references, self._release})

    def home(self, organization_id: UUID) -> str:
        """Give the first namespace of an organization, or else the release's."""
        return next((name for name, each in sorted(self.found.items()) if each.id == organization_id), self._release)
