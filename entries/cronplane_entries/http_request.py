"""The entry that sends an HTTP request: where tenants may reach out to, and with which credentials, is guarded.

The same checks hold at registration, right before a run, and at each redirect. A secret's value exists here only while
a request is on its way.
"""

import asyncio
import codecs
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self
from uuid import UUID

import httpcore2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    EntryError,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)
from cronplane_entries.http_exchange import (
    HEADER_VALUE,
    ExchangeTimeoutError,
    HttpReply,
    HttpRequest,
    check_ca_file,
    exchange,
)
from cronplane_entries.http_secrets import (
    REFERENCE_PATTERN,
    HttpSecrets,
    SecretRefusedError,
    blot_out,
    longest_spelling,
    read_secrets,
)
from cronplane_entries.http_target import HttpTarget, parse_target
from cronplane_entries.outbound_guard import (
    DestinationRefusedError,
    GuardedNetwork,
    OutboundGuard,
    UnresolvedError,
    parse_allowed_hosts,
)

MOST_HEADERS = 64
MOST_KEPT_HEADERS = 16
MOST_BODY_BYTES = 32 * 1024
_LONGEST_KEPT_VALUE = 512
# Of the 64 KiB that a result may take as JSON, in which a character may take six bytes.
_MOST_ENCODED_BODY_BYTES = 40 * 1024
_LOGGED_BODY_CHARACTERS = 1024
_RESOLVING_SECONDS = 5.0
_SETTINGS = {"allowed_hosts", "secrets", "ca_file"}

# RFC 9110, section 5.6.2: what a header's name is made of.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}", re.ASCII)
# These say how the message is delivered, to whom, or how it is framed, which is not for a tenant to choose.
_RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)
# What else a redirect to another origin may carry; whatever else a tenant sets could be a credential.
_HARMLESS_HEADERS = frozenset(
    {"accept", "accept-language", "content-type", "content-language", "user-agent", "idempotency-key"}
)
_CONTENT_HEADERS = frozenset({"content-type", "content-language"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CHARSETS = frozenset(
    {"utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252", "utf-16", "utf-16le", "utf-16be"}
)
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([A-Za-z0-9_-]+)', re.ASCII | re.IGNORECASE)


class HttpRequestError(EntryError):
    """The request was made and did not succeed, or must not be made any more."""


class UnexpectedStatusError(HttpRequestError):
    """The server answered with a status that was not expected."""


class TooManyRedirectsError(HttpRequestError):
    """The server redirected more often than the payload allows."""


class RedirectRefusedError(HttpRequestError):
    """The server redirects to another origin with a secret in the address."""


def _check_url(url: str) -> str:
    parse_target(url)
    return url


class SecretReference(BaseModel):
    """Stands for a header's value that the administrator keeps: `prefix`, such as `Bearer `, goes before it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    secret: str = Field(
        pattern=f"^{REFERENCE_PATTERN}$", description="the name of a secret granted to the organization"
    )
    prefix: str = Field(default="", max_length=64, pattern=r"^([!-~][ -~]*)?$", description="what goes before it")


HeaderName = Annotated[str, Field(max_length=128)]
HeaderText = Annotated[str, Field(max_length=4096)]
Status = Annotated[int, Field(ge=100, le=599)]


class UserPayload(BaseUserPayload):
    """A request, and what makes it a success."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] = "GET"
    url: Annotated[str, AfterValidator(_check_url)] = Field(description="http or https, without credentials")
    headers: dict[HeaderName, HeaderText | SecretReference] = Field(
        default_factory=dict,
        max_length=MOST_HEADERS,
        description='values, or {"secret": "name"} for one that the administrator keeps',
    )
    json_body: JsonValue = Field(default=None, description="a body to send as JSON")
    text_body: str | None = Field(default=None, description="a body to send as it is, in UTF-8")
    expected_statuses: list[Status] | None = Field(
        default=None, min_length=1, max_length=100, description="statuses that are a success; 200 to 299 by default"
    )
    kept_headers: list[HeaderName] = Field(
        default_factory=list, max_length=MOST_KEPT_HEADERS, description="headers of the answer to keep in the result"
    )
    kept_body_bytes: int = Field(
        default=16 * 1024, ge=0, le=MOST_BODY_BYTES, description="how much of the answer's body to keep, in UTF-8"
    )
    max_redirects: int = Field(default=5, ge=0, le=10, description="how many redirects to follow")
    timeout_seconds: float = Field(default=30.0, gt=0.0, le=3600.0, description="for all of it, redirects included")

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, str | SecretReference]) -> dict[str, str | SecretReference]:
        seen: set[str] = set()
        for name, value in headers.items():
            _check_header(name, value, seen)
        return headers

    @model_validator(mode="after")
    def _check_body(self) -> Self:
        if self.json_body is not None and self.text_body is not None:
            raise ValueError("a request has one body: json_body or text_body")
        if self.method in {"GET", "HEAD"} and self.content is not None:
            raise ValueError(f"a {self.method} request has no body")
        return self

    @property
    def content(self) -> bytes | None:
        """Give the body as it is sent."""
        if self.text_body is not None:
            return self.text_body.encode()
        return None if self.json_body is None else json.dumps(self.json_body, ensure_ascii=False).encode()

    @property
    def content_type(self) -> str:
        """Give the type of the body, where the headers name none."""
        return "application/json" if self.text_body is None else "text/plain; charset=utf-8"

    @property
    def secrets(self) -> Iterator[tuple[str, SecretReference]]:
        """Yield the headers whose values are secrets."""
        for name, value in self.headers.items():
            if isinstance(value, SecretReference):
                yield name, value


class ExecutionPayload(BaseExecutionPayload):
    """The same: what it refers to is looked up when it runs."""

    request: UserPayload


def _check_header(name: str, value: str | SecretReference, seen: set[str]) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError("a header's name has letters, digits and hyphens, and no line break")
    if name.lower() in _RESERVED_HEADERS:
        raise ValueError(f"the header {name} cannot be set")
    if name.lower() in seen:
        raise ValueError(f"the header {name} is there twice")
    seen.add(name.lower())
    if isinstance(value, str) and value and not HEADER_VALUE.fullmatch(value):
        raise ValueError(f"the header {name} has a value with a line break, a control or a non-ASCII character")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbound:
    """What the administrator lets tenants do: where to, with which secrets, and whose certificates to trust."""

    guard: OutboundGuard
    secrets: HttpSecrets
    ca_file: Path | None

    def check_secrets(self, request: UserPayload, *, organization_id: UUID) -> HttpTarget:
        """Let a request's secrets go where it goes, or not, and give where that is.

        Raises:
            SecretRefusedError: one of them may not go there.

        """
        target = parse_target(request.url)
        for _, reference in request.secrets:
            self.secrets.check(reference.secret, organization_id=organization_id, target=target)
        return target


def read_settings(settings: Mapping[str, str]) -> Outbound:
    """Read the administrator's settings.

    Raises:
        ValueError: one of them is wrong or unknown; the message says which, and repeats no secret.

    """
    unknown = [key for key in settings if key not in _SETTINGS and not key.startswith("secret_")]
    if unknown:
        raise ValueError(f"there is no setting {', '.join(sorted(unknown)).upper()}")
    try:
        allowed = parse_allowed_hosts(settings.get("allowed_hosts", ""))
    except ValueError as error:
        raise ValueError(f"ALLOWED_HOSTS: {error}") from error
    return Outbound(
        guard=OutboundGuard(allowed=allowed),
        secrets=read_secrets(settings, cleartext=allowed),
        ca_file=Path(settings["ca_file"]) if settings.get("ca_file") else None,
    )


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse settings that are wrong, when a process starts."""
    if ca_file := read_settings(settings).ca_file:
        check_ca_file(ca_file)


async def validate_registration(payload: UserPayload, *, context: RegistrationContext) -> ExecutionPayload:
    """Refuse a request that may not be made. A name that cannot be resolved now may be by the time it runs."""
    outbound = read_settings(context.services.settings)
    try:
        target = outbound.check_secrets(payload, organization_id=context.organization.id)
        async with asyncio.timeout(_RESOLVING_SECONDS):
            await outbound.guard.addresses(target.host, target.port)
    except DestinationRefusedError as error:
        raise RegistrationRefusedError(str(error), field=("url",)) from error
    except SecretRefusedError as error:
        raise RegistrationRefusedError(str(error), field=("headers",)) from error
    except (UnresolvedError, TimeoutError):
        pass
    return ExecutionPayload(request=payload)


async def validate_execution(payload: ExecutionPayload, *, context: ExecutionContext) -> None:
    """Find out whether the request may still be made; where the connection goes is judged again when it is made."""
    outbound = read_settings(context.services.settings)
    outbound.check_secrets(payload.request, organization_id=context.cron.organization_id)


async def execute(payload: ExecutionPayload, *, context: ExecutionContext) -> dict[str, object]:
    """Send the request, follow redirects, and give status, chosen headers and the beginning of the body."""
    request, outbound = payload.request, read_settings(context.services.settings)
    secrets = {name: outbound.secrets.value(reference.secret) for name, reference in request.secrets}
    headers = tuple(_headers(request, secrets, run_id=context.run.id))
    first = HttpRequest(
        method=request.method, target=parse_target(request.url), headers=headers, content=request.content
    )
    try:
        async with asyncio.timeout(request.timeout_seconds):
            reply = await _follow(first, request, outbound, secrets=secrets)
    except TimeoutError as error:
        message = f"The server did not answer within {request.timeout_seconds:g} s"
        raise ExchangeTimeoutError(message) from error
    answer = _Answer.read(reply, request, secrets=tuple(secrets.values()))
    if not _is_expected(reply.status, request.expected_statuses):
        context.log.info("the body of the answer begins: %s", answer.body[:_LOGGED_BODY_CHARACTERS])
        expected = request.expected_statuses or "a status from 200 to 299"
        raise UnexpectedStatusError(f"The server answered {reply.status}, expected was {expected}")
    return answer.result()


def _headers(request: UserPayload, secrets: Mapping[str, str], *, run_id: UUID) -> Iterator[tuple[str, str]]:
    given = {name.lower() for name in request.headers}
    if request.content is not None and "content-type" not in given:
        yield "Content-Type", request.content_type
    if "idempotency-key" not in given:
        # A run may be attempted again, and a server can tell by this that it has seen it.
        yield "Idempotency-Key", str(run_id)
    for name, value in request.headers.items():
        yield name, f"{value.prefix}{secrets[name]}" if isinstance(value, SecretReference) else value


async def _follow(
    sent: HttpRequest, payload: UserPayload, outbound: Outbound, *, secrets: Mapping[str, str]
) -> HttpReply:
    """Send a request and what redirects make of it; `secrets` are values by the headers that they are in."""
    network: httpcore2.AsyncNetworkBackend = GuardedNetwork(outbound.guard)
    for _ in range(payload.max_redirects + 1):
        reply = await exchange(
            sent,
            within=payload.timeout_seconds,
            # So much more that no secret is cut in two where the body ends.
            most_bytes=payload.kept_body_bytes + longest_spelling(secrets.values()),
            network=network,
            ca_file=outbound.ca_file,
        )
        location = reply.header("location")
        if reply.status not in _REDIRECTS or location is None or payload.max_redirects == 0:
            return reply
        sent = _redirected(sent, status=reply.status, location=location, secrets=secrets)
    raise TooManyRedirectsError(f"The server redirected more than {payload.max_redirects} times")


def _redirected(sent: HttpRequest, *, status: int, location: str, secrets: Mapping[str, str]) -> HttpRequest:
    """Give the request that a redirect asks for (RFC 9110, section 15.4)."""
    target = sent.target.follow(location)
    if target.origin != sent.target.origin:
        sent = _without_credentials(sent, target=target, secrets=secrets)
    becomes_get = (status == 303 and sent.method != "HEAD") or (status in {301, 302} and sent.method == "POST")  # noqa: PLR2004 - the statuses' own numbers
    if not becomes_get:
        return replace(sent, target=target)
    headers = tuple((name, value) for name, value in sent.headers if name.lower() not in _CONTENT_HEADERS)
    return HttpRequest(method="GET", target=target, headers=headers)


def _without_credentials(sent: HttpRequest, *, target: HttpTarget, secrets: Mapping[str, str]) -> HttpRequest:
    """Leave out what another origin must not see, and refuse to tell it in the address what a header told before."""
    address = target.url.encode()
    if blot_out(address, secrets.values()) != address:
        raise RedirectRefusedError(
            "The server redirects to another origin with a secret in the address; that is refused"
        )
    kept = [header for header in sent.headers if header[0].lower() in _HARMLESS_HEADERS and header[0] not in secrets]
    return replace(sent, headers=tuple(kept))


def _is_expected(status: int, expected: list[int] | None) -> bool:
    return 200 <= status <= 299 if expected is None else status in expected  # noqa: PLR2004 - what success is in HTTP


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What is kept of an answer: text that can be stored, and nothing secret."""

    status: int
    headers: Mapping[str, str]
    body: str
    is_truncated: bool

    @classmethod
    def read(cls, reply: HttpReply, request: UserPayload, *, secrets: tuple[str, ...]) -> Self:
        body = blot_out(_decode(reply).encode(), secrets)
        if not reply.is_whole:
            # What was not read may be the rest of a secret whose beginning was.
            body = body[: max(len(body) - longest_spelling(secrets), 0)]
        kept = body[: request.kept_body_bytes]
        # What PostgreSQL cannot keep becomes a replacement character.
        text, fits = _fit(kept.decode(errors="ignore").replace("\0", "\ufffd"))
        return cls(
            status=reply.status,
            headers={
                name: value for name in request.kept_headers if (value := _kept(reply, name, secrets)) is not None
            },
            body=text,
            is_truncated=not (reply.is_whole and fits and len(kept) == len(body)) or _is_packed(reply),
        )

    def result(self) -> dict[str, object]:
        return {
            "status": self.status,
            "headers": dict(self.headers),
            "body": self.body,
            "body_truncated": self.is_truncated,
        }


def _kept(reply: HttpReply, name: str, secrets: tuple[str, ...]) -> str | None:
    value = reply.header(name.lower())
    if value is None:
        return None
    return blot_out(value.encode(), secrets).decode(errors="replace")[:_LONGEST_KEPT_VALUE]


def _decode(reply: HttpReply) -> str:
    """Read a body as text, leniently; nothing of one that is packed, in which a secret could not be found."""
    if _is_packed(reply):
        return ""
    named = _CHARSET.search(reply.header("content-type") or "")
    charset = named[1].lower() if named and named[1].lower() in _CHARSETS else "utf-8"
    if charset == "utf-16" and not reply.body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # Python raises an error then, leniently or not; the Encoding Standard says which it is.
        charset = "utf-16le"
    return codecs.getincrementaldecoder(charset)(errors="replace").decode(reply.body, final=reply.is_whole)


def _is_packed(reply: HttpReply) -> bool:
    """Say whether a server has packed the body although it was asked not to."""
    return reply.header("content-encoding") not in {None, "", "identity"}


def _fit(text: str) -> tuple[str, bool]:
    """Cut text to what a result has room for, and say whether it is whole."""
    whole = len(text)
    while (excess := len(json.dumps(text, ensure_ascii=False).encode()) - _MOST_ENCODED_BODY_BYTES) > 0:
        # A character takes six bytes at most, so this never cuts off more than is needed by much.
        text = text[: -(excess // 6 + 1)]
    return text, len(text) == whole


spec = CronEntrySpec(
    user_payload_model=UserPayload,
    execution_payload_model=ExecutionPayload,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
    check_settings=check_settings,
)
