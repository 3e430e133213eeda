"""Named secrets for the headers of HTTP requests: declared by the administrator, granted, bound, resolved at the end.

A payload holds a secret's name only. Its value is read when a request is about to leave, and goes to no other host than
those it is bound to; it is never stored, and whatever a server repeats of it is blotted out.
"""

import html
import json
import re
from array import array
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cronplane_entries.core import EntryError
from cronplane_entries.http_exchange import HEADER_VALUE
from cronplane_entries.http_target import HttpTarget, TargetError, normalize_host
from cronplane_entries.outbound_guard import parse_allowed_hosts

REFERENCE_PATTERN = r"[a-z][a-z0-9_]{0,62}"
BLOT = b"[secret]"
_HTTPS = 443
_LONGEST_VALUE = 8192
_SHORTEST_PART = 8
_SEPARATORS = re.compile(r"[\s,;\"']+", re.ASCII)
_ASSIGNMENT = re.compile(r"[=:]", re.ASCII)
# One character as URLs, JSON, programs and HTML escape it; and the other half of one in UTF-16.
_ESCAPED = re.compile(
    rb"(?:%|\\u00|\\x)([0-9a-f]{2})|(&(?:#[0-9]{1,6}|#x[0-9a-f]{1,6}|[a-z]{2,6});)|\\([!-~])|\0", re.IGNORECASE
)
_LONGEST_ESCAPED = 10


class SecretRefusedError(EntryError):
    """The secret may not be used like this; the message says what the administrator would have to change."""


class SecretUnreadableError(EntryError):
    """The secret's value is missing or cannot be sent; the administrator has to mend it."""


def _bound_host(text: str) -> str:
    """Check a binding: `host:port`, or a host alone for its https port."""
    try:
        normalize_host(text)
    except TargetError:
        parse_allowed_hosts(text)
    return text


class _Declaration(BaseModel):
    """What the administrator says of a secret."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    hosts: Annotated[list[Annotated[str, AfterValidator(_bound_host)]], Field(min_length=1)]
    organizations: list[UUID] | Literal["*"]
    file: Path | None = None

    def binds(self, target: HttpTarget) -> bool:
        """Say whether the secret may be sent there."""
        return any(_origin(host) == (target.host, target.port) for host in self.hosts)

    def grants(self, organization_id: UUID) -> bool:
        """Say whether an organization may use the secret."""
        return self.organizations == "*" or organization_id in self.organizations


_DECLARATIONS = TypeAdapter(dict[Annotated[str, Field(pattern=f"^{REFERENCE_PATTERN}$")], _Declaration])


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSecrets:
    """The declared secrets, and the settings that hold the values of those that are in no file.

    `cleartext` are pairs of host and port that the administrator lists as allowed destinations, where http will do.
    """

    declarations: Mapping[str, _Declaration]
    settings: Mapping[str, str] = field(repr=False)
    cleartext: frozenset[tuple[str, int]]

    def check(self, name: str, *, organization_id: UUID, target: HttpTarget) -> None:
        """Let a secret be used for a request, or not.

        Raises:
            SecretRefusedError: it is not granted, not bound to this host, or would go in the clear.

        """
        declaration = self.declarations.get(name)
        if declaration is None or not declaration.grants(organization_id):
            raise SecretRefusedError(f"no secret named {name!r} is granted to your organization")
        if not declaration.binds(target):
            raise SecretRefusedError(f"the secret {name!r} is bound to {', '.join(declaration.hosts)}")
        if target.scheme != "https" and (target.host, target.port) not in self.cleartext:
            raise SecretRefusedError(f"the secret {name!r} is sent over https only")

    def value(self, name: str) -> str:
        """Read a secret that was checked; a file is read anew each time, so that it can be rotated.

        Raises:
            SecretUnreadableError: there is no value, or it is no header's value.

        """
        declaration = self.declarations[name]
        file = declaration.file
        value = self.settings.get(f"secret_{name}", "") if file is None else _read(name, file)
        value = value.removesuffix("\n").removesuffix("\r")
        if not HEADER_VALUE.fullmatch(value) or len(value) > _LONGEST_VALUE:
            raise SecretUnreadableError(f"The secret {name!r} is empty or no header's value; tell the administrator")
        return value


def read_secrets(settings: Mapping[str, str], *, cleartext: frozenset[tuple[str, int]]) -> HttpSecrets:
    """Read the setting `secrets`: a JSON object of declarations by name.

    Raises:
        ValueError: it is something else; the message says where, and repeats no value.

    """
    return HttpSecrets(
        declarations=_declarations(settings.get("secrets", "{}")), settings=settings, cleartext=cleartext
    )


def blot_out(text: bytes, secrets: Iterable[str]) -> bytes:
    """Remove secrets from what a server said: as they were sent, in either case, and with characters escaped."""
    confidential = {part for secret in secrets for part in _confidential(secret)}
    if not confidential:
        return text
    # What stands right before a secret may look like the beginning of an escape, so what is usual is looked for first.
    text = _any_of(spelling for part in confidential for spelling in _usual_spellings(part)).sub(BLOT, text)
    return _blot_out_escaped(text, _any_of(confidential))


def longest_spelling(secrets: Iterable[str]) -> int:
    """Give how many bytes the longest spelling takes that `blot_out` looks for."""
    return max((len(secret) * _LONGEST_ESCAPED for secret in secrets), default=0)


def _any_of(texts: Iterable[str]) -> re.Pattern[bytes]:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(b"|".join(re.escape(text.encode()) for text in longest_first), re.IGNORECASE)


def _confidential(secret: str) -> Iterator[str]:
    """Yield what gives a credential away: itself, and what a server may repeat of it without its surroundings."""
    yield secret
    decoded = [_from_base64(part) for part in secret.split()]
    for part in _SEPARATORS.split(" ".join([secret, *decoded])):
        for text in (part, _ASSIGNMENT.split(part, maxsplit=1)[-1]):
            if len(text) >= _SHORTEST_PART:
                yield text


def _from_base64(text: str) -> str:
    """Read name and password as they are sent (RFC 7617, section 2); anything else is nothing."""
    try:
        decoded = b64decode(text, validate=True).decode("ascii")
    except ValueError:
        return ""
    return decoded if ":" in decoded else ""


def _usual_spellings(text: str) -> set[str]:
    return {text, json.dumps(text)[1:-1], text.replace("/", "\\/"), quote(text, safe="")}


def _blot_out_escaped(text: bytes, confidential: re.Pattern[bytes]) -> bytes:
    plain, places = _unescaped(text)
    kept, end = bytearray(), 0
    for found in confidential.finditer(plain):
        kept += text[end : places[found.start()]] + BLOT
        end = places[found.end()]
    return bytes(kept) + text[end:]


def _unescaped(text: bytes) -> tuple[bytes, Sequence[int]]:
    """Give a text without its escapes; and for each byte of that, and for its end, where it stands in the text."""
    plain, places, end = bytearray(), array("L"), 0
    for found in _ESCAPED.finditer(text):
        character = _character(found)
        plain += text[end : found.start()] + character
        places.extend(range(end, found.start()))
        places.extend([found.start()] * len(character))
        end = found.end()
    plain += text[end:]
    places.extend(range(end, len(text) + 1))
    return bytes(plain), places


def _character(escaped: re.Match[bytes]) -> bytes:
    hexadecimal, entity, after_backslash = escaped.groups()
    if hexadecimal:
        return bytes.fromhex(hexadecimal.decode())
    if entity:
        return html.unescape(entity.decode()).encode(errors="replace")
    return after_backslash or b""


@lru_cache(maxsize=8)
def _declarations(text: str) -> Mapping[str, _Declaration]:
    try:
        return _DECLARATIONS.validate_json(text)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        places = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in found)
        raise ValueError(f"SECRETS is not a JSON object of declared secrets ({places})") from error


def _origin(bound: str) -> tuple[str, int]:
    try:
        return normalize_host(bound), _HTTPS
    except TargetError:
        [origin] = parse_allowed_hosts(bound)
        return origin


def _read(name: str, file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="strict") as opened:
            return opened.read(_LONGEST_VALUE + 3)
    except (OSError, UnicodeError) as error:
        raise SecretUnreadableError(
            f"The file of the secret {name!r} cannot be read; tell the administrator"
        ) from error
