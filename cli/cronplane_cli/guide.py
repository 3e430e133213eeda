"""Shows a newcomer around a system that has just started: a key, and a first command.

It does only what the newcomer could do over REST.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx2
import typer

from cronplane_cli.administration import Administration

_ORGANIZATION = "dev"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guide:
    """Where the API is, and how to get a key for it that is kept in `key_file` from one start to the next."""

    url: str
    installation_key: str
    key_file: Path

    def welcome(self) -> None:
        """Print how to begin."""
        organization_id, key = self._key()
        typer.echo(
            f"\nCronplane is at {self.url} (OpenAPI: {self.url}/openapi.json)\n\n"
            f"  export CRONPLANE_URL={self.url}\n"
            f"  export CRONPLANE_API_KEY={key}\n"
            f"  export ORGANIZATION={organization_id}\n\n"
            f'  curl -H "Authorization: Bearer $CRONPLANE_API_KEY" $CRONPLANE_URL/crons/$ORGANIZATION\n\n'
            "Each finished run is a line below. Ctrl-C stops everything.\n"
        )

    def _key(self) -> tuple[UUID, str]:
        administration = Administration(url=self.url, key=self.installation_key)
        for organization in administration.list_organizations():
            if organization["name"] == _ORGANIZATION:
                break
        else:
            organization = administration.create_organization(name=_ORGANIZATION)
        organization_id = UUID(organization["id"])
        if not self._kept_key_is_good(organization_id):
            created = administration.create_key(organization_id=organization_id, name="dev", role="admin")
            write_secret(self.key_file, created["key"])
        return organization_id, self.key_file.read_text(encoding="ascii")

    def _kept_key_is_good(self, organization_id: UUID) -> bool:
        if not self.key_file.exists():
            return False
        headers = {"Authorization": f"Bearer {self.key_file.read_text(encoding='ascii')}"}
        answer = httpx2.get(f"{self.url}/crons/{organization_id}", params={"limit": 1}, headers=headers)
        return answer.is_success


def write_secret(path: Path, secret: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret)
    unfinished.rename(path)
