"""URLs: what is sound goes where it says, and what two programs could read in two ways goes nowhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_entries.http_target import HttpTarget, TargetError, parse_target

SOUND = {
    "http://example.org": ("http", "example.org", 80, "/", "example.org"),
    "HTTPS://Example.ORG.:443/a?b=c#d": ("https", "example.org", 443, "/a?b=c", "example.org"),
    "https://example.org:8443/%C3%A9?": ("https", "example.org", 8443, "/%C3%A9?", "example.org:8443"),
    "http://xn--bcher-kva.example/?q": ("http", "xn--bcher-kva.example", 80, "/?q", "xn--bcher-kva.example"),
    "http://192.0.2.1:80/": ("http", "192.0.2.1", 80, "/", "192.0.2.1"),
    "http://[2001:DB8:0::1]:8080/x": ("http", "2001:db8::1", 8080, "/x", "[2001:db8::1]:8080"),
    "http://a_service.internal/": ("http", "a_service.internal", 80, "/", "a_service.internal"),
    "http://4chan.org/": ("http", "4chan.org", 80, "/", "4chan.org"),
}
UNSOUND = [
    "",
    "example.org",
    "//example.org/",
    "http:example.org",
    "http:/example.org",
    "http:///example.org",
    "http://",
    "http://:80/",
    "file:///etc/passwd",
    "gopher://example.org/",
    "javascript:alert(1)",
    "http://user@example.org/",
    "http://user:password@example.org/",
    "http://@example.org/",
    "http://example.org:80@127.0.0.1/",
    "http://example.org\\@127.0.0.1/",
    "http://example.org:/",
    "http://example.org:0/",
    "http://example.org:65536/",
    "http://example.org:+80/",
    "http://example.org:8_0/",
    "http://example.org:\u0668\u0660/",
    "http://example..org/",
    "http://.example.org/",
    "http://example.org../",
    "http://-example.org/",
    "http://exa mple.org/",
    "http://exa%6dple.org/",
    "http://b\u00fccher.example/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "http://example\u3002org/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0177.0.0.1/",
    "http://127.0.0.01/",
    "http://0x7f.0.0.1/",
    "http://0x7f000001/",
    "http://0x/",
    "http://2130706433/",
    "http://017700000001/",
    "http://256.0.0.1/",
    "http://1.2.3.4.5/",
    "http://example.1/",
    "http://0/",
    "http://[::1/",
    "http://::1/",
    "http://[127.0.0.1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://[::1]x/",
    "http://[v1.x]/",
    "http://example.org/a b",
    "http://example.org/\r\nHost: other",
    "http://example.org/\t",
    "http://example.org/%",
    "http://example.org/%0",
    "http://example.org/%zz",
    "http://example.org/\x00",
    "http://example.org/<script>",
    f"http://example.org/{'a' * 4096}",
    f"http://{'a' * 64}.example/",
    f"http://{'a.' * 130}example/",
]


@pytest.mark.parametrize("url", SOUND)
def test_a_sound_url_is_read_as_every_program_reads_it(url: str) -> None:
    scheme, host, port, path, authority = SOUND[url]
    target = parse_target(url)
    assert target == HttpTarget(scheme=scheme, host=host, port=port, path=path)
    assert target.authority == authority
    assert parse_target(target.url) == target


@pytest.mark.parametrize("url", UNSOUND)
def test_a_url_that_is_unsound_or_ambiguous_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(TargetError) as refusal:
        parse_target(url)
    assert len(str(refusal.value).split()) > 4


@given(st.text(max_size=30), st.sampled_from(["http://", "https://", "http://example.org", "http://[", ""]))
def test_whatever_is_written_is_a_target_or_a_refusal(text: str, beginning: str) -> None:
    try:
        target = parse_target(beginning + text)
    except TargetError:
        return
    assert parse_target(target.url) == target


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b", "http://example.org:8080/b"),
        ("c?d", "http://example.org:8080/a/c?d"),
        ("//other.example/x", "http://other.example/x"),
        ("https://example.org/#part", "https://example.org/"),
        ("", "http://example.org:8080/a/b"),
    ],
)
def test_a_redirect_leads_where_its_location_says(location: str, url: str) -> None:
    assert parse_target("http://example.org:8080/a/b").follow(location).url == url


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://user@other.example/", "http://127.1/", "//0x7f.1/", "http://["]
)
def test_a_redirect_to_what_would_be_refused_leads_nowhere(location: str) -> None:
    with pytest.raises(TargetError, match="redirects to an address that is refused"):
        parse_target("http://example.org/").follow(location)


@pytest.mark.parametrize(
    "location", ["http://[sesame]/", "//[sesame", "http://sesame:x/", "http://a@sesame/", "sesame:x"]
)
def test_of_where_a_redirect_must_not_lead_nothing_is_repeated(location: str) -> None:
    with pytest.raises(TargetError) as refusal:
        parse_target("http://example.org/").follow(location)
    assert "sesame" not in str(refusal.value)
