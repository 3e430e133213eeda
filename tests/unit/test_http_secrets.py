"""Named secrets: who may send them where, and that nothing repeats them."""

import base64
import html
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_entries.core import Services
from cronplane_entries.http_exchange import HttpReply, HttpRequest
from cronplane_entries.http_secrets import (
    BLOT,
    HttpSecrets,
    SecretRefusedError,
    SecretUnreadableError,
    blot_out,
    longest_spelling,
    read_secrets,
)
from cronplane_entries.http_target import parse_target
from cronplane_entries.outbound_guard import parse_allowed_hosts

ACME, OTHER = UUID(int=1), UUID(int=2)


def declared(cleartext: str = "", settings: dict[str, str] | None = None, **declaration: Any) -> HttpSecrets:
    whole = {"hosts": ["api.example.org"], "organizations": [str(ACME)]} | declaration
    declared_secrets = {"secrets": json.dumps({"billing": whole})}
    return read_secrets(declared_secrets | (settings or {}), cleartext=parse_allowed_hosts(cleartext))


@pytest.mark.parametrize(
    ("hosts", "cleartext", "url"),
    [
        (["api.example.org"], "", "https://api.example.org/x"),
        (["API.example.org."], "", "https://api.example.org:443/x"),
        (["other.example", "api.example.org:8443"], "", "https://api.example.org:8443/"),
        (["[2001:db8::1]:8443"], "", "https://[2001:db8::1]:8443/"),
        (["127.0.0.1:8080"], "127.0.0.1:8080", "http://127.0.0.1:8080/"),
    ],
)
def test_a_granted_secret_goes_to_the_hosts_it_is_bound_to(hosts: list[str], cleartext: str, url: str) -> None:
    declared(cleartext, hosts=hosts).check("billing", organization_id=ACME, target=parse_target(url))


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/",
        "https://evil.api.example.org/",
        "https://api.example.org.evil.example/",
        "https://api.example.org:8443/",
        "http://api.example.org:443/",
        "http://api.example.org/",
    ],
)
def test_a_secret_goes_nowhere_else_and_not_in_the_clear(url: str) -> None:
    with pytest.raises(SecretRefusedError, match=r"bound to api\.example\.org|over https only"):
        declared().check("billing", organization_id=ACME, target=parse_target(url))


def test_a_secret_that_is_not_granted_is_told_apart_by_nothing_from_one_that_is_not_there() -> None:
    target = parse_target("https://api.example.org/")
    messages = []
    for known, organization_id in [(declared(), OTHER), (read_secrets({}, cleartext=frozenset()), ACME)]:
        with pytest.raises(SecretRefusedError) as refusal:
            known.check("billing", organization_id=organization_id, target=target)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]


def test_a_secret_may_be_granted_to_everybody() -> None:
    declared(organizations="*").check("billing", organization_id=OTHER, target=parse_target("https://api.example.org/"))


def test_a_value_comes_from_the_settings_or_from_a_file_that_is_read_anew(tmp_path: Path) -> None:
    first, second = secrets.token_urlsafe(), secrets.token_urlsafe()
    assert declared(settings={"secret_billing": first}).value("billing") == first
    file = tmp_path / "billing"
    file.write_text(f"{first}\r\n")
    kept = declared(file=str(file))
    assert kept.value("billing") == first
    file.write_text(second)
    assert kept.value("billing") == second


@pytest.mark.parametrize("value", [None, "", "\n", "a\r\nb: c", "a\n\n", "b\u00fc", "\0", " padded", "x" * 9000])
def test_a_value_that_no_header_can_have_is_an_error_that_does_not_repeat_it(value: str | None) -> None:
    settings = {} if value is None else {"secret_billing": value}
    with pytest.raises(SecretUnreadableError, match=r"^The secret 'billing' is empty or no header's value"):
        declared(settings=settings).value("billing")


def test_a_file_that_cannot_be_read_is_an_error_that_names_the_secret(tmp_path: Path) -> None:
    undecodable = tmp_path / "undecodable"
    undecodable.write_bytes(b"\xff")
    for file in (tmp_path / "absent", tmp_path, undecodable):
        with pytest.raises(SecretUnreadableError, match="file of the secret 'billing' cannot be read"):
            declared(file=str(file)).value("billing")


@pytest.mark.parametrize(
    "text",
    [
        "billing",
        "[]",
        '{"billing": {}}',
        '{"Billing": {"hosts": ["a.example"], "organizations": "*"}}',
        '{"billing": {"hosts": [], "organizations": "*"}}',
        '{"billing": {"hosts": ["*"], "organizations": "*"}}',
        '{"billing": {"hosts": ["https://a.example"], "organizations": "*"}}',
        '{"billing": {"hosts": ["a.example"], "organizations": ["acme"]}}',
        '{"billing": {"hosts": ["a.example"], "organizations": "*", "value": "hunter2hunter2"}}',
    ],
)
def test_a_wrong_declaration_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="SECRETS is not a JSON object of declared secrets") as refusal:
        read_secrets({"secrets": text}, cleartext=frozenset())
    assert "hunter2" not in str(refusal.value)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40), st.binary(), st.binary())
def test_what_was_sent_is_blotted_out_however_it_is_written(secret: str, before: bytes, after: bytes) -> None:
    spellings = (secret, json.dumps(secret)[1:-1], quote(secret, safe=""))
    for spelling in spellings:
        assert len(spelling.encode()) <= longest_spelling([secret])
        blotted = blot_out(before + spelling.encode() + after, [secret])
        assert spelling.encode() not in blotted.replace(BLOT, b"")
        assert BLOT in blotted


SPELLINGS: list[Callable[[str], str]] = [
    str,
    str.swapcase,
    html.escape,
    lambda character: f"%{ord(character):02x}",
    lambda character: f"%{ord(character):02X}",
    lambda character: f"\\u{ord(character):04x}",
    lambda character: f"\\x{ord(character):02X}",
    lambda character: f"&#{ord(character)};",
    lambda character: f"&#{ord(character):03};",
    lambda character: f"&#x{ord(character):04X};",
    lambda character: character if character.isalnum() else f"\\{character}",
    lambda character: f"\0{character}",
]


@given(st.lists(st.tuples(st.sampled_from("aZ+/=._-<>\"'"), st.sampled_from(SPELLINGS)), min_size=1, max_size=60))
def test_a_secret_is_blotted_out_although_each_character_is_written_another_way(
    written: list[tuple[str, Callable[[str], str]]],
) -> None:
    secret = "".join(character for character, _ in written)
    spelling = "".join(spell(character) for character, spell in written).encode()
    assert len(spelling) <= longest_spelling([secret])
    blotted = blot_out(b"so: " + spelling + b"!", [secret])
    # What is left is what belongs to no character, or to the escape of the first one alone.
    assert blotted.replace(b"\0", b"").replace(b"\\", b"") == b"so: [secret]!"


def test_what_is_no_secret_stays_as_it_was_written() -> None:
    text = b"100%25 &amp; \\u0041 \\n \0 %zz &nothing; caf\xc3\xa9 \xff"
    assert blot_out(text, [secrets.token_urlsafe()]) == text
    assert blot_out(text, []) == text


@pytest.mark.parametrize(
    "value", ["Bearer {}", "user:{}", "Token token={}", 'ApiKey id="a", key="{}"', "a=b; session={}", "Key {}, x"]
)
def test_a_credential_is_blotted_out_without_what_is_around_it(value: str) -> None:
    token = secrets.token_urlsafe()
    assert blot_out(f"you sent {token}".encode(), [value.format(token)]) == b"you sent [secret]"


@pytest.mark.parametrize("scheme", ["", "Basic "])
def test_a_password_is_blotted_out_although_it_was_sent_in_base64(scheme: str) -> None:
    password = secrets.token_urlsafe()
    sent = scheme + base64.b64encode(f"me:{password}".encode()).decode()
    assert blot_out(f"me, {password}, {sent}".encode(), [sent]) == b"me, [secret], [secret]"


def test_values_are_in_nothing_that_is_printed() -> None:
    value = secrets.token_urlsafe()
    known = declared(settings={"secret_billing": value})
    assert value not in repr(known)
    assert value not in repr(Services(settings={"secret_billing": value}))
    sent = HttpRequest(
        method="GET", target=parse_target("https://a.example/"), headers=(("X-A", value),), content=value.encode()
    )
    assert value not in repr(sent)
    assert value not in repr(HttpReply(status=200, headers=(("x-a", value),), body=value.encode(), is_whole=True))
