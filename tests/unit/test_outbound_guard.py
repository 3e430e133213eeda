"""Which addresses are public, and that a name is judged by every address it has, once."""

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_entries.outbound_guard import (
    DestinationRefusedError,
    GuardedNetwork,
    OutboundGuard,
    UnresolvedError,
    is_public,
    parse_allowed_hosts,
)

PUBLIC = ["1.1.1.1", "93.184.215.14", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.0.1.1"]
PUBLIC += ["223.255.255.255", "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101", "::ffff:1.1.1.1"]
REFUSED = {
    "this host": "0.0.0.0",  # noqa: S104 - an address to judge, not to listen on
    "this network": "0.1.2.3",
    "loopback": "127.0.0.1",
    "the rest of loopback": "127.255.255.254",
    "private, 10": "10.1.2.3",
    "private, 172": "172.31.255.255",
    "private, 192": "192.168.0.1",
    "shared by carriers": "100.100.100.200",
    "metadata": "169.254.169.254",
    "metadata of another cloud": "192.0.0.192",
    "metadata at a public address": "168.63.129.16",
    "benchmarks": "198.19.0.1",
    "documentation": "203.0.113.9",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6, unspecified": "::",
    "IPv6 loopback": "::1",
    "IPv4 in IPv6, mapped": "::ffff:127.0.0.1",
    "IPv4 in IPv6, mapped metadata": "::ffff:a9fe:a9fe",
    "IPv4 in IPv6, compatible": "::127.0.0.1",
    "IPv4 in IPv6, translated": "::ffff:0:127.0.0.1",
    "NAT64 to loopback": "64:ff9b::7f00:1",
    "NAT64 to metadata": "64:ff9b::a9fe:a9fe",
    "NAT64, local": "64:ff9b:1::1",
    "6to4 of loopback": "2002:7f00:1::",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "IPv6 documentation": "2001:db8::1",
    "IPv6 documentation, newer": "3fff::1",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "IPv6 site-local": "fec0::1",
    "IPv6 private": "fd00:ec2::254",
    "IPv6 multicast": "ff02::1",
    "segment routing": "5f00::1",
}


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", REFUSED.values(), ids=list(REFUSED))
def test_an_address_with_a_special_meaning_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@given(st.one_of(st.ip_addresses(), st.integers(0, 2**32 - 1).map(IPv4Address)))
def test_nothing_is_public_that_python_knows_to_be_private(address: IPv4Address | IPv6Address) -> None:
    if is_public(address) and getattr(address, "ipv4_mapped", None) is None:
        assert address.is_global
        assert not address.is_multicast


class Resolver:
    """Gives one answer after another, as a name does whose owner wishes us ill."""

    def __init__(self, *answers: Iterable[str]) -> None:
        self.answers = [list(answer) for answer in answers]

    async def __call__(self, host: str, port: int) -> list[str]:
        return self.answers.pop(0)


@pytest.mark.parametrize("answer", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1", "2606:4700::1"], ["fe80::1%eth0"]])
async def test_a_name_is_refused_for_any_address_that_is_not_public(answer: list[str]) -> None:
    guard = OutboundGuard(resolve=Resolver(answer))
    with pytest.raises(DestinationRefusedError, match=r"rebind\.example"):
        await guard.addresses("rebind.example", 443)


async def test_a_listed_host_may_have_any_address_on_the_listed_port_alone() -> None:
    guard = OutboundGuard(
        allowed=parse_allowed_hosts("db.internal:5432, 127.0.0.1:80"), resolve=Resolver(["10.0.0.1"], ["10.0.0.1"])
    )
    assert await guard.addresses("db.internal", 5432) == [IPv4Address("10.0.0.1")]
    assert await guard.addresses("127.0.0.1", 80) == [IPv4Address("127.0.0.1")]
    for host, port in [("db.internal", 80), ("127.0.0.1", 81), ("127.0.0.2", 80)]:
        with pytest.raises(DestinationRefusedError):
            await guard.addresses(host, port)


async def test_a_listed_name_allows_none_of_the_addresses_it_has() -> None:
    guard = OutboundGuard(allowed=parse_allowed_hosts("localhost:80"), resolve=Resolver(["127.0.0.1"]))
    with pytest.raises(DestinationRefusedError):
        await guard.addresses("127.0.0.1", 80)


async def test_the_systems_resolver_knows_where_localhost_is() -> None:
    with pytest.raises(DestinationRefusedError):
        await OutboundGuard().addresses("localhost", 80)


async def test_a_name_without_an_address_is_said_to_have_none() -> None:
    with pytest.raises(UnresolvedError, match=r"no-such-host\.invalid"):
        await OutboundGuard().addresses("no-such-host.invalid", 80)
    with pytest.raises(UnresolvedError, match="has no address"):
        await GuardedNetwork(OutboundGuard(resolve=Resolver([]))).connect_tcp("empty.example", 80)


async def test_names_that_nobody_answers_for_hold_up_neither_other_names_nor_the_end_of_the_process() -> None:
    """In a process of its own, whose end is what is looked at."""
    program = """if True:
        import asyncio, socket, threading
        from cronplane_entries import outbound_guard

        answer, never, resolved = socket.getaddrinfo, threading.Event(), []
        socket.getaddrinfo = lambda host, *_, **__: never.wait() if host == "slow" else answer(host, *_, **__)

        async def main():
            guard = outbound_guard.OutboundGuard()
            slow = [asyncio.create_task(guard.addresses("slow", 80)) for _ in range(200)]
            refused, waiting = await asyncio.wait(slow, return_when=asyncio.FIRST_EXCEPTION)
            assert waiting and all(isinstance(task.exception(), outbound_guard.UnresolvedError) for task in refused)
            for task in waiting:
                task.cancel()

        async def few():
            guard = outbound_guard.OutboundGuard()
            slow = [asyncio.create_task(guard.addresses("slow", 80)) for _ in range(20)]
            for _ in range(100):
                try:
                    await guard.addresses("localhost", 80)
                except outbound_guard.DestinationRefusedError:
                    resolved.append("localhost")
            print(len(resolved), "resolved")

        asyncio.run(few())
        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(30):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, output, errors) == (0, b"100 resolved\n", b"")


class Network(httpcore2.AsyncNetworkBackend):
    """Notes where it is told to connect to, and connects nowhere."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def connect_tcp(self, host: str, port: int, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        self.asked.append(host)
        raise httpcore2.ConnectError


async def test_a_name_that_means_another_address_a_moment_later_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(["1.1.1.1", "2606:4700::1", "1.1.1.1"], ["127.0.0.1"])
    network = GuardedNetwork(OutboundGuard(resolve=resolver))
    inner = Network()
    monkeypatch.setattr(network, "_network", inner)
    with pytest.raises(httpcore2.ConnectError):
        await network.connect_tcp("rebind.example", 80)
    assert inner.asked == ["1.1.1.1", "2606:4700::1"]
    assert len(resolver.answers) == 1


@pytest.mark.parametrize(
    "text",
    ["example.org", "[::1]", "127.1:80", "a:0", "a:b:80", "a/x:80", "a:80/", "u@a:80", "*:80", "a#b:80", "a?b:80"],
)
def test_an_allowed_host_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        parse_allowed_hosts(text)


def test_allowed_hosts_are_compared_as_urls_are_read() -> None:
    text = " Example.ORG.:443 ,,[0:0::1]:80"
    assert parse_allowed_hosts(text) == {("example.org", 443), ("::1", 80)}
    assert parse_allowed_hosts("") == frozenset()
