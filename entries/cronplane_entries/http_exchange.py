"""One HTTP exchange on behalf of an entry: a request out, a bounded answer back.

It follows no redirect, reads no proxy from the environment, decodes nothing and reuses no connection, so that what an
entry asks for is all that happens. What a server or a library says is not repeated in errors: it may hold a credential.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import httpcore2

from cronplane_core import __version__
from cronplane_entries.core import EntryError
from cronplane_entries.http_target import HttpTarget

CONNECT_SECONDS = 10.0
# What a header's value may be here, which is less than RFC 9110, section 5.5, allows: visible ASCII, blanks inside.
HEADER_VALUE = re.compile(r"[!-~]([ -~\t]*[!-~])?", re.ASCII)
_OWN_HEADERS = (
    ("User-Agent", f"cronplane/{__version__}"),
    ("Accept", "*/*"),
    # What is compressed could grow without bound when it is unpacked.
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)
# Methods whose requests have a body, so that one without says so (RFC 9110, section 8.6).
_WITH_CONTENT = frozenset({"POST", "PUT", "PATCH"})
# These write every header at level debug, credentials among them, and any entry can turn that level on.
for _name in ("httpcore2.connection", "httpcore2.http11"):
    logging.getLogger(_name).addFilter(lambda _: False)
ErrorT = TypeVar("ErrorT", bound=Exception)


class ExchangeError(EntryError):
    """There was no whole exchange; nobody knows whether the server acted on the request."""


class ExchangeTimeoutError(ExchangeError):
    """The server did not answer in time; it may have acted all the same."""


class UnreachableError(ExchangeError):
    """No connection came about, so the server has not seen the request."""


class AnswerUnreadableError(ExchangeError):
    """What came back is not HTTP, or it broke off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What is sent. `headers` go out as they are; those that a server needs besides are added unless they are there."""

    method: str
    target: HttpTarget
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpReply:
    """What came back: header names in lower case; `body` as it was sent, and whether that is the whole of it."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    is_whole: bool

    def header(self, name: str) -> str | None:
        """Give a header by its name in lower case; several of one name are joined (RFC 9110, section 5.3)."""
        values = [value for known, value in self.headers if known == name]
        return ", ".join(values) if values else None


async def exchange(
    request: HttpRequest,
    *,
    within: float,
    most_bytes: int,
    network: httpcore2.AsyncNetworkBackend | None = None,
    ca_file: Path | None = None,
) -> HttpReply:
    """Send a request and read at most `most_bytes` of the answer's body, all of it in `within` seconds.

    `network` opens the connections; `ca_file` holds certificates (PEM) that are trusted besides the system's.

    Raises:
        ExchangeTimeoutError: it took too long.
        UnreachableError: no connection came about, or its certificate is not trusted.
        AnswerUnreadableError: the answer is not HTTP, or it broke off.
        ExchangeError: `ca_file` cannot be read, or the request cannot be written.

    """
    try:
        async with asyncio.timeout(within):
            return await _exchange(request, most_bytes=most_bytes, network=network, ca_file=ca_file)
    except TimeoutError as error:
        raise ExchangeTimeoutError(f"The server did not answer within {within:g} s") from error
    except httpcore2.ConnectTimeout as error:
        message = f"The server took no connection within {CONNECT_SECONDS:g} s"
        raise UnreachableError(message) from error
    except httpcore2.ConnectError as error:
        raise UnreachableError(_why_unreachable(error)) from error
    except (httpcore2.NetworkError, httpcore2.RemoteProtocolError) as error:
        raise AnswerUnreadableError("The server broke the connection off, or its answer is not HTTP") from error
    except ssl.SSLError as error:
        message = "The server ended TLS with an error after the handshake; it may want a client's certificate"
        raise AnswerUnreadableError(message) from error
    except httpcore2.LocalProtocolError as error:
        raise ExchangeError("The request cannot be written as HTTP; look at its headers") from error


def check_ca_file(ca_file: Path) -> None:
    """Find out whether a file has certificates (PEM) that can be trusted.

    Raises:
        ValueError: it has none, or cannot be read.

    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except OSError as error:
        raise ValueError("CA_FILE names no file of certificates (PEM) that can be read") from error


async def _exchange(
    request: HttpRequest, *, most_bytes: int, network: httpcore2.AsyncNetworkBackend | None, ca_file: Path | None
) -> HttpReply:
    # On platforms without certificates a context is only made for those who need one.
    context = _trusting(ca_file) if request.target.scheme == "https" else None
    async with (
        httpcore2.AsyncConnectionPool(ssl_context=context, network_backend=network, http2=False) as pool,
        pool.stream(
            request.method,
            _url(request.target),
            headers=list(_headers(request)),
            content=_content(request),
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        ) as response,
    ):
        body, is_whole = await _read(response, most_bytes)
        headers = tuple((name.decode("ascii").lower(), value.decode("latin-1")) for name, value in response.headers)
        return HttpReply(status=response.status, headers=headers, body=body, is_whole=is_whole)


async def _read(response: httpcore2.Response, most_bytes: int) -> tuple[bytes, bool]:
    body = bytearray()
    async for part in response.aiter_stream():
        body += part
        if len(body) > most_bytes:
            return bytes(body[:most_bytes]), False
    return bytes(body), True


def _content(request: HttpRequest) -> bytes | None:
    return b"" if request.content is None and request.method in _WITH_CONTENT else request.content


def _url(target: HttpTarget) -> httpcore2.URL:
    return httpcore2.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )


def _headers(request: HttpRequest) -> Iterator[tuple[bytes, bytes]]:
    given = {name.lower() for name, _ in request.headers}
    yield b"Host", request.target.authority.encode()
    for name, value in _OWN_HEADERS:
        if name.lower() not in given:
            yield name.encode(), value.encode()
    for name, value in request.headers:
        yield name.encode(), value.encode()


def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return _ssl_context(ca_file)
    except OSError as error:
        raise ExchangeError("The certificates to trust cannot be read; tell the administrator") from error


@lru_cache(maxsize=8)
def _ssl_context(ca_file: Path | None) -> ssl.SSLContext:
    context = httpcore2.default_ssl_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def _why_unreachable(error: Exception) -> str:
    if certificate := _cause(error, ssl.SSLCertVerificationError):
        return f"The server's certificate is not trusted: {certificate.verify_message}"
    if _cause(error, ssl.SSLError):
        return "The server does not speak TLS as it should; is the scheme right?"
    return "The server takes no connection; is it running, and are its address and port right?"


def _cause(error: BaseException | None, kind: type[ErrorT]) -> ErrorT | None:
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
