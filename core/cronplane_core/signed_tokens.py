"""Tokens by which somebody without a key proves one thing about one run: an attempt, or who may tell its end.

They are JSON Web Tokens (RFC 7519) with HMAC-SHA-256, signed by keys that have ids (RFC 7515, section 4.1.4), so that
keys can be changed while tokens are out: the first key signs, and all of them are recognized. Time is the caller's,
which is the database's, and never this machine's.
"""

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import jwt

from cronplane_core.errors import CronplaneError
from cronplane_core.settings import TokenSettings

_ALGORITHM = "HS256"
_ISSUER = "cronplane"
_LEAST_KEY_CHARACTERS = 32
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_CLAIMS = ["iss", "aud", "sub", "org", "att", "exp"]


class TokenKeysError(CronplaneError):
    """The keys cannot be read; write them as id:secret, with commas between them, the one that signs first."""


class TokenInvalidError(CronplaneError):
    """The token proves nothing here; the message says why, without repeating it."""


class Purpose(enum.StrEnum):
    """What a token is good for, and for nothing else."""

    ATTEMPT = "attempt"
    CALLBACK = "callback"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What a token says: whose run and which attempt of it, and until when it is good (aware, UTC, whole seconds)."""

    purpose: Purpose
    organization_id: UUID
    run_id: UUID
    attempt: int
    expires_at: datetime


class TokenSigner:
    """Signs with the first of `keys`, which are secrets by their ids, and recognizes what any of them has signed."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._keys = dict(keys)
        self._signing_key_id = next(iter(self._keys))

    def sign(self, claims: TokenClaims) -> str:
        """Write a token; the same claims always make the same one."""
        return jwt.encode(
            {
                "iss": _ISSUER,
                "aud": claims.purpose.value,
                "sub": str(claims.run_id),
                "org": str(claims.organization_id),
                "att": claims.attempt,
                "exp": int(claims.expires_at.timestamp()),
            },
            self._keys[self._signing_key_id],
            algorithm=_ALGORITHM,
            headers={"kid": self._signing_key_id},
        )

    def recognizes(self, token: str) -> bool:
        """Say whether a token is ours, whatever it is good for, and however old."""
        try:
            self._verified(token, list(Purpose))
        except TokenInvalidError:
            return False
        return True

    def read(self, token: str, *, purpose: Purpose, now: datetime) -> TokenClaims:
        """Read a token that is good for `purpose` at `now` (aware).

        Raises:
            TokenInvalidError: it is not ours, is for something else, or is too old.

        """
        claims = self._verified(token, [purpose])
        expires_at = datetime.fromtimestamp(claims["exp"], tz=UTC)
        if now >= expires_at:
            raise TokenInvalidError("The token has expired")
        return TokenClaims(
            purpose=purpose,
            organization_id=UUID(claims["org"]),
            run_id=UUID(claims["sub"]),
            attempt=claims["att"],
            expires_at=expires_at,
        )

    def _verified(self, token: str, purposes: Sequence[Purpose]) -> dict[str, Any]:
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                audience=[purpose.value for purpose in purposes],
                issuer=_ISSUER,
                options={"require": _CLAIMS, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            )
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError) as error:
            raise TokenInvalidError("The token is none of ours, or not for this") from error
        return claims


def token_hash(token: str) -> bytes:
    """Give what is kept of a token that is good once."""
    return hashlib.sha256(token.encode()).digest()


def token_signer(settings: TokenSettings) -> TokenSigner | None:
    """Give what signs and recognizes tokens, or None where no keys are set.

    Raises:
        TokenKeysError: they cannot be read.

    """
    return None if settings.token_keys is None else parse_token_keys(settings.token_keys.get_secret_value())


def parse_token_keys(written: str) -> TokenSigner:
    """Read keys as `id:secret,id:secret`.

    Raises:
        TokenKeysError: an id or a secret is none; the message repeats no secret.

    """
    keys: dict[str, str] = {}
    for number, each in enumerate(written.split(","), start=1):
        key_id, _, secret = each.strip().partition(":")
        if not _KEY_ID.fullmatch(key_id) or key_id in keys:
            raise TokenKeysError(f"Key {number} has no id of its own of letters, digits, dots, dashes: write id:secret")
        if len(secret) < _LEAST_KEY_CHARACTERS:
            raise TokenKeysError(f"The secret of key {number} is shorter than {_LEAST_KEY_CHARACTERS} characters")
        keys[key_id] = secret
    return TokenSigner(keys)
