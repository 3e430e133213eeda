"""Where an HTTP request goes: a URL, read so strictly that every program after us reads it the same way.

Servers have been reached that nobody meant to allow because a checker and a client took one text for two addresses.
So what is ambiguous, such as an IPv4 address in any spelling but the usual one, is refused and never repaired.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urljoin, urlsplit

from cronplane_entries.core import EntryError

LONGEST_URL = 4096
_VISIBLE_ASCII = re.compile(r"[!-~]+", re.ASCII)
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.ASCII
)
# A name whose last label could be a number is an IPv4 address to many programs (URL Standard, "ends in a number").
_NUMERIC_END = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)", re.ASCII)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(:(?P<port>[0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HIGHEST_PORT = 65535
# What a path or query may hold (RFC 3986, appendix A), and a percent sign only before two hexadecimal digits.
_PATH = re.compile(r"(/([A-Za-z0-9._~!$&'()*+,;=:@/?\[\]|{}^`\"-]|%[0-9A-Fa-f]{2})*)", re.ASCII)


class TargetError(EntryError, ValueError):
    """The URL is not one that a request can be sent to; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpTarget:
    """Host in lower case, an IPv6 address without brackets; `path` begins with a slash and includes the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Give what a `Host` header says (RFC 9110, section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Give what credentials are bound to (RFC 6454)."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """Write it as a URL."""
        return f"{self.scheme}://{self.authority}{self.path}"

    def follow(self, location: str) -> "HttpTarget":
        """Give where a redirect leads (RFC 9110, section 10.2.2).

        Raises:
            TargetError: nowhere that a request can be sent to.

        """
        try:
            return parse_target(urljoin(self.url, location))
        except TargetError as error:
            raise TargetError(f"the server redirects to an address that is refused: {error}") from error
        except ValueError as error:
            # Python's own words would repeat the server's.
            raise TargetError("the server redirects to an address that is refused: it is no URL") from error


def parse_target(url: str) -> HttpTarget:
    """Read an http or https URL; its fragment is left out, since it is never sent.

    Raises:
        TargetError: it is not such a URL, has credentials, or can be read in two ways.

    """
    if len(url) > LONGEST_URL:
        raise TargetError(f"the URL has more than {LONGEST_URL} characters")
    if not _VISIBLE_ASCII.fullmatch(url) or "\\" in url:
        raise TargetError(
            "a URL has visible ASCII characters only, and no backslash; percent-encode the others, and write a host "
            "in its xn-- form"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise TargetError("this is no URL: its host cannot be read") from error
    if parts.scheme not in _DEFAULT_PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise TargetError("the URL must begin with http:// or https://")
    if "@" in parts.netloc:
        raise TargetError("a URL with credentials is refused; put them in a header, as a named secret")
    host, port = _host_and_port(parts.netloc)
    return HttpTarget(
        scheme=parts.scheme,
        host=normalize_host(host),
        port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
        path=_path(parts.path or "/", parts.query, has_query="?" in url.partition("#")[0]),
    )


def normalize_host(host: str) -> str:
    """Give a host as it is compared: a name in lower case without a dot at its end, or an address; no brackets.

    Raises:
        TargetError: it is neither a name nor an address in its usual spelling.

    """
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1])
    name = host.lower().removesuffix(".")
    if _NUMERIC_END.fullmatch(name):
        return _ipv4(name)
    if not _HOST_NAME.fullmatch(name):
        raise TargetError("the URL's host is neither a name nor an address")
    return name


def _host_and_port(netloc: str) -> tuple[str, int | None]:
    """Part the two ourselves: Python's own reading passes over what stands behind a bracket."""
    found = _HOST_AND_PORT.fullmatch(netloc)
    if found is None:
        raise TargetError("this is no URL: its host or port cannot be read")
    if found["port"] is None:
        return found["host"], None
    if not 1 <= int(found["port"]) <= _HIGHEST_PORT:
        raise TargetError(f"a port is from 1 to {_HIGHEST_PORT}")
    return found["host"], int(found["port"])


def _ipv4(text: str) -> str:
    try:
        address = str(IPv4Address(text))
    except ValueError as error:
        raise TargetError("an IPv4 address is written as four decimal numbers, such as 192.0.2.1") from error
    return address


def _ipv6(text: str) -> str:
    if "%" in text:
        raise TargetError("an IPv6 address with a zone is refused")
    try:
        return str(IPv6Address(text))
    except ValueError as error:
        raise TargetError("the address in brackets is no IPv6 address") from error


def _path(path: str, query: str, *, has_query: bool) -> str:
    text = f"{path}?{query}" if has_query else path
    if not _PATH.fullmatch(text):
        raise TargetError("the URL's path or query has characters that must be percent-encoded")
    return text
