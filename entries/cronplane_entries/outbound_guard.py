"""Which addresses a tenant's request may reach: the public internet, and what the administrator has listed.

A name is resolved once, every address it has is judged, and the connection goes to an address that was judged, so that
a name which means another address a moment later gains nothing. It knows nothing of HTTP.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from threading import BoundedSemaphore, Thread

import httpcore2

from cronplane_entries.core import EntryError
from cronplane_entries.http_target import TargetError, parse_target

_WITH_PORT = re.compile(r"[^/?#]*:[0-9]+", re.ASCII)
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]

# IANA IPv4 Special-Purpose Address Registry (RFC 6890): what is not globally reachable; and what follows it.
_REFUSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; one cloud's metadata is in it
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, with the metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays from IPv6, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "168.63.129.16/32",  # a public address at which one cloud serves its machines' agent and metadata
    )
)
# The IPv6 addresses in use (IANA IPv6 Global Unicast Address Assignments), and what is not globally reachable of them.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, tunnels to private addresses (Teredo) among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds any IPv4 address
        "3fff::/20",  # documentation
    )
)
# The system's resolver cannot be interrupted, and a name server that does not answer holds it for a minute or so.
_MOST_LOOK_UPS = 64
_LOOK_UPS = BoundedSemaphore(_MOST_LOOK_UPS)
# Networks without IPv4 of their own reach it by these (RFC 6052, section 2.1).
_NAT64 = IPv6Network("64:ff9b::/96")


class DestinationRefusedError(EntryError):
    """The request may not go there; ask the administrator to list the host and port if it should."""


class UnresolvedError(EntryError):
    """The name has no address, or the name servers do not answer."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """Ask the system's resolver; gives addresses as text.

    Raises:
        UnresolvedError: there is none, or too many look-ups have got no answer yet.

    """
    found: Future[list[str]] = Future()
    if not _LOOK_UPS.acquire(blocking=False):
        raise UnresolvedError("The name servers have not answered for too many names; try again in a minute")
    try:
        # No pool of threads: a process waits for those of a pool before it ends.
        Thread(target=_look_up, args=(host, port, found), name="resolver", daemon=True).start()
    except RuntimeError as error:
        _LOOK_UPS.release()
        raise UnresolvedError(f"No thread is left to resolve the name {host}") from error
    try:
        return await asyncio.wrap_future(found)
    except (OSError, UnicodeError) as error:
        raise UnresolvedError(f"The name {host} cannot be resolved") from error


def _look_up(host: str, port: int, found: Future[list[str]]) -> None:
    try:
        if found.set_running_or_notify_cancel():
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result([str(address[4][0]) for address in addresses])
    except (OSError, UnicodeError) as error:
        found.set_exception(error)
    finally:
        _LOOK_UPS.release()


def is_public(address: Address) -> bool:
    """Say whether an address is reachable from everywhere, so that a request to it gains nothing from our place."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _GLOBAL_UNICAST and not any(address in network for network in _REFUSED_IPV6)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundGuard:
    """`allowed` are exact pairs of host and port, as the administrator listed them, which may have any address."""

    allowed: frozenset[tuple[str, int]] = frozenset()
    resolve: Resolve = field(default=resolve_by_system)

    async def addresses(self, host: str, port: int) -> list[Address]:
        """Resolve a host and give its addresses, each once, in the resolver's order.

        Raises:
            DestinationRefusedError: one of its addresses is not public, and the administrator has not listed it.
            UnresolvedError: it has none.

        """
        addresses = await self._resolved(host, port)
        if (host, port) not in self.allowed and not all(is_public(address) for address in addresses):
            raise DestinationRefusedError(
                f"{host} is no public address, or leads to one that is not, and the administrator's list of allowed "
                f"hosts lacks it with port {port}"
            )
        return addresses

    async def _resolved(self, host: str, port: int) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            found = await self.resolve(host, port)
            return list(dict.fromkeys(ip_address(address) for address in found))


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects only where a guard lets it, to the very addresses that were judged."""

    def __init__(self, guard: OutboundGuard) -> None:
        self._guard = guard
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is the library's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Open a connection to the first address that takes one.

        Raises:
            DestinationRefusedError: the guard does not let it.
            UnresolvedError: the name has no address.

        """
        failure: Exception = UnresolvedError(f"The name {host} has no address")
        for address in await self._guard.addresses(host, port):
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


def parse_allowed_hosts(text: str) -> frozenset[tuple[str, int]]:
    """Read a list of `host:port`, parted by commas; an IPv6 address stands in brackets.

    Raises:
        ValueError: one of them is something else; the message repeats it.

    """
    return frozenset(_host_and_port(item.strip()) for item in text.split(",") if item.strip())


def _host_and_port(text: str) -> tuple[str, int]:
    try:
        target = parse_target(f"http://{text}/")
    except TargetError as error:
        raise ValueError(f"{text!r} is not host:port ({error})") from error
    if not _WITH_PORT.fullmatch(text):
        raise ValueError(f"{text!r} is not host:port, such as example.org:443 or [2001:db8::1]:80")
    return target.host, target.port
