"""Who stands behind a request, and what they may do.

A key belongs to one organization and has one role. Whatever is another organization's is answered as if it were not
there. The installation key may make organizations and keys, and reaches nothing inside an organization.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from starlette.requests import Request

from cronplane_api.errors import FORBIDDEN, UNAUTHENTICATED, ProblemError, not_found
from cronplane_core.api_key_repository import AuthenticatedKey
from cronplane_core.tables import Role
from cronplane_entries.core import Organization, User

_LADDER = tuple(Role)
_BEARER = "bearer "
EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])


class Access(StrEnum):
    """Whom a route serves, besides the roles of the path's organization."""

    PUBLIC = "public"
    ANY_KEY = "any_key"
    TOKEN = "token"  # noqa: S105 - no secret: whoever has a token of the run
    INSTALLATION = "installation"
    INSTALLATION_OR_ADMIN = "installation_or_admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Somebody with a good key: `key` is None for the installation. `now` is the database's time (aware, UTC)."""

    key: AuthenticatedKey | None
    now: datetime

    @property
    def scope(self) -> str:
        """Name whose Idempotency-Keys and cursors these are."""
        return "installation" if self.key is None else str(self.key.organization_id)

    @property
    def user(self) -> User:
        """Give the one who acts, as it is recorded."""
        if self.key is None:
            return User(id="installation", name="installation")
        return User(id=f"key:{self.key.id}", name=self.key.name)

    @property
    def organization(self) -> Organization:
        """Give the key's organization; asked only where a key of one is required."""
        if self.key is None:
            raise not_found()
        return Organization(
            id=self.key.organization_id,
            name=self.key.organization_name,
            entrypoints=self.key.granted_entrypoints,
        )


def requires(access: Role | Access) -> Callable[[EndpointT], EndpointT]:
    """Say whom an endpoint serves; the route refuses everybody else before the body is read."""

    def mark(endpoint: EndpointT) -> EndpointT:
        endpoint.__dict__["access"] = access
        return endpoint

    return mark


def access_of(endpoint: Callable[..., Any]) -> Role | Access:
    """Give whom an endpoint serves; one that does not say is a defect, and its route cannot be made."""
    access: Role | Access = endpoint.__dict__["access"]
    return access


def bearer_key(request: Request) -> str:
    """Read the key that a request shows (RFC 6750, section 2.1).

    Raises:
        ProblemError: 401, there is none.

    """
    header = request.headers.get("authorization", "")
    if not header.lower().startswith(_BEARER):
        raise ProblemError(UNAUTHENTICATED, "Send a key: Authorization: Bearer …")
    return header[len(_BEARER) :].strip()


def is_installation_key(text: str, digest: bytes) -> bool:
    """Compare a shown key with the digest of the installation's, in constant time."""
    return hmac.compare_digest(key_digest(text), digest)


def key_digest(text: str) -> bytes:
    """Give what a key is compared by."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def authorize(principal: Principal, access: Role | Access, *, organization_id: UUID | None) -> None:
    """Let a principal pass, or not.

    Raises:
        ProblemError: 404 where the organization is not the key's, 403 where its role is too low.

    """
    key = principal.key
    if access is Access.ANY_KEY:
        return
    if key is None:
        if not isinstance(access, Access):
            raise not_found()
        return
    if access is Access.INSTALLATION:
        raise ProblemError(FORBIDDEN, "Only the installation key may do this")
    if key.organization_id != organization_id:
        raise not_found()
    needed = Role.ADMIN if access is Access.INSTALLATION_OR_ADMIN else Role(access)
    if _LADDER.index(key.role) < _LADDER.index(needed):
        raise ProblemError(FORBIDDEN, f"This needs a key with the role {needed.value}; yours is {key.role.value}")
