"""What a request may be, what a redirect makes of it, and what is kept of an answer."""

import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cronplane_entries.core import ExecutionContext, RegistrationContext, Services
from cronplane_entries.entry_settings import InvalidSettingsError, read_entry_settings
from cronplane_entries.http_exchange import HttpReply, HttpRequest
from cronplane_entries.http_request import RedirectRefusedError, UserPayload, _Answer, _headers, _redirected, spec
from cronplane_entries.http_secrets import longest_spelling
from cronplane_entries.http_target import parse_target
from cronplane_entries.invocation import PayloadInvalidError, encode_result, register
from cronplane_entries.registry import CRON_REGISTRY, CronEntrypoint, load_entries

PUBLIC_URL = "http://1.1.1.1/"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a list as headers": ({"headers": ["a"]}, "headers"),
    "CRLF in a header": ({"headers": {"X-A": "a\r\nHost: other"}}, "headers"),
    "CR in a header": ({"headers": {"X-A": "a\rb"}}, "headers"),
    "a tab before a value": ({"headers": {"X-A": "\ta"}}, "headers"),
    "NUL in a header": ({"headers": {"X-A": "a\0"}}, "headers"),
    "a header that is not ASCII": ({"headers": {"X-A": "\u00fc"}}, "headers"),
    "CRLF in a header's name": ({"headers": {"X-A\r\nHost": "other"}}, "headers"),
    "a space in a header's name": ({"headers": {"Host ": "other"}}, "headers"),
    "a colon in a header's name": ({"headers": {"Host:": "other"}}, "headers"),
    "no header's name": ({"headers": {"": "other"}}, "headers"),
    "a Host override": ({"headers": {"hOST": "other"}}, "headers"),
    "a length of one's own": ({"headers": {"Content-Length": "3"}}, "headers"),
    "an encoding of one's own": ({"headers": {"Transfer-Encoding": "chunked"}}, "headers"),
    "a proxy's credential": ({"headers": {"Proxy-Authorization": "Basic YTpi"}}, "headers"),
    "one header twice": ({"headers": {"X-A": "1", "x-a": "2"}}, "headers"),
    "too many headers": ({"headers": {f"X-{n}": "1" for n in range(65)}}, "headers"),
    "a secret without a name": ({"headers": {"X-A": {"secret": ""}}}, "headers"),
    "a secret with a path as its name": ({"headers": {"X-A": {"secret": "../key"}}}, "headers"),
    "CRLF before a secret": ({"headers": {"X-A": {"secret": "a", "prefix": "a\r\nb: "}}}, "headers"),
    "something else beside a secret": ({"headers": {"X-A": {"secret": "a", "value": "b"}}}, "headers"),
    "a secret as a body": ({"method": "POST", "text_body": {"secret": "a"}}, "text_body"),
    "a method in lower case": ({"method": "get"}, "method"),
    "a method that opens a tunnel": ({"method": "CONNECT"}, "method"),
    "a method that is a request": ({"method": "GET / HTTP/1.1\r\n"}, "method"),
    "two bodies": ({"method": "POST", "json_body": 1, "text_body": "1"}, ""),
    "a body with GET": ({"json_body": {"a": 1}}, ""),
    "a status that is none": ({"expected_statuses": [99]}, "expected_statuses"),
    "a status as text": ({"expected_statuses": ["200"]}, "expected_statuses"),
    "no status": ({"expected_statuses": []}, "expected_statuses"),
    "too much of a body": ({"kept_body_bytes": 32 * 1024 + 1}, "kept_body_bytes"),
    "redirects without end": ({"max_redirects": 11}, "max_redirects"),
    "no time": ({"timeout_seconds": 0}, "timeout_seconds"),
    "a day": ({"timeout_seconds": 86_400}, "timeout_seconds"),
    "credentials in the URL": ({"url": "http://user:password@example.org/"}, "url"),
    "file:": ({"url": "file:///etc/passwd"}, "url"),
    "loopback": ({"url": "http://127.0.0.1/"}, "url"),
    "loopback by name": ({"url": "http://localhost:5432/"}, "url"),
    "loopback in IPv6": ({"url": "http://[::1]/"}, "url"),
    "loopback in hexadecimal": ({"url": "http://0x7f000001/"}, "url"),
    "link-local": ({"url": "http://169.254.1.1/"}, "url"),
    "metadata": ({"url": "http://169.254.169.254/latest/meta-data/"}, "url"),
    "metadata in IPv6": ({"url": "http://[fd00:ec2::254]/"}, "url"),
    "private": ({"url": "https://192.168.0.1/"}, "url"),
    "a secret that is not granted": ({"headers": {"X-A": {"secret": "billing"}}}, "headers"),
    "an unknown field": ({"verify": False}, "verify"),
}


def payload(**fields: Any) -> UserPayload:
    return UserPayload.model_validate_json(json.dumps({"url": PUBLIC_URL} | fields))


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_that_may_not_be_made_is_refused_where_it_is_wrong(
    registration_context: RegistrationContext, name: str
) -> None:
    load_entries()
    changes, field = REFUSED[name]
    with pytest.raises(PayloadInvalidError) as refusal:
        await register(
            CRON_REGISTRY[CronEntrypoint.HTTP_REQUEST],
            payload={"url": PUBLIC_URL} | changes,
            context=registration_context,
        )
    assert {".".join(map(str, error.path[:1])) for error in refusal.value.errors} == {field}
    assert not any(error.message.startswith("Value error") for error in refusal.value.errors)


async def test_what_is_registered_is_the_request_and_none_of_the_secrets(
    registration_context: RegistrationContext,
) -> None:
    load_entries()
    declaration = {"billing": {"hosts": ["1.1.1.1"], "organizations": "*"}}
    services = Services(settings={"secrets": json.dumps(declaration), "secret_billing": "hunter2hunter2"})
    sent: dict[str, Any] = {
        "url": "https://1.1.1.1/",
        "method": "POST",
        "headers": {"Authorization": {"secret": "billing", "prefix": "Bearer "}},
        "json_body": {"n": 2**53 + 1, "text": "\N{WAVING HAND SIGN}"},
    }
    registered = await register(
        CRON_REGISTRY[CronEntrypoint.HTTP_REQUEST],
        payload=sent,
        context=replace(registration_context, services=services),
    )
    kept = registered.execution_payload["request"]
    assert isinstance(kept, dict)
    assert {name: kept[name] for name in sent} == sent
    assert "hunter2" not in json.dumps([registered.user_payload, registered.execution_payload])


async def test_a_name_that_cannot_be_resolved_yet_is_registered(registration_context: RegistrationContext) -> None:
    load_entries()
    sent: dict[str, Any] = {"url": "https://not-yet.invalid/"}
    await register(CRON_REGISTRY[CronEntrypoint.HTTP_REQUEST], payload=sent, context=registration_context)


def test_a_request_carries_what_a_server_needs(execution_context: ExecutionContext) -> None:
    run_id = execution_context.run.id
    assert list(_headers(payload(), {}, run_id=run_id)) == [("Idempotency-Key", str(run_id))]
    posted = payload(method="POST", json_body=[1], headers={"idempotency-key": "mine", "X-A": {"secret": "a"}})
    assert list(_headers(posted, {"X-A": "b"}, run_id=run_id)) == [
        ("Content-Type", "application/json"),
        ("idempotency-key", "mine"),
        ("X-A", "b"),
    ]
    assert posted.content == b"[1]"
    assert payload(method="PUT", text_body="\u00fc").content == "\u00fc".encode()


HEADERS = (("Authorization", "Bearer x"), ("X-Key", "y"), ("Content-Type", "application/json"), ("Accept", "*/*"))


def request(method: str = "POST") -> HttpRequest:
    return HttpRequest(method=method, target=parse_target("https://a.example/x"), headers=HEADERS, content=b"{}")


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (303, "HEAD", "HEAD"),
        (301, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (307, "POST", "POST"),
        (308, "POST", "POST"),
    ],
)
def test_a_redirect_changes_the_method_as_http_says(status: int, method: str, becomes: str) -> None:
    followed = _redirected(request(method), status=status, location="/y", secrets={})
    assert followed.method == becomes
    is_kept = becomes == method
    assert followed.content == (b"{}" if is_kept else None)
    assert (("Content-Type", "application/json") in followed.headers) == is_kept


@pytest.mark.parametrize(
    ("location", "keeps"),
    [
        ("/y", True),
        ("https://a.example:443/y", True),
        ("https://A.example./y", True),
        ("http://a.example/y", False),
        ("https://a.example:8443/y", False),
        ("https://b.a.example/y", False),
        ("//b.example/y", False),
    ],
)
def test_credentials_are_dropped_when_the_origin_changes(location: str, *, keeps: bool) -> None:
    followed = _redirected(request(), status=307, location=location, secrets={})
    assert followed.headers == (HEADERS if keeps else HEADERS[2:])


@pytest.mark.parametrize("name", ["Accept", "Content-Type", "User-Agent", "Idempotency-Key"])
def test_a_secret_stays_with_its_origin_whatever_header_it_is_in(name: str) -> None:
    secret = {name: "sesame-open"}
    sent = HttpRequest(method="GET", target=parse_target("https://a.example/x"), headers=((name, "v1 sesame-open"),))
    assert _redirected(sent, status=307, location="/y", secrets=secret).headers == sent.headers
    assert _redirected(sent, status=307, location="https://b.example/", secrets=secret).headers == ()


@pytest.mark.parametrize(
    "location",
    [
        "https://b.example/?t=sesame-open",
        "https://sesame-open.example/",
        "http://a.example/%73esame%2Dopen",
        "//b/SESAME-OPEN",
    ],
)
def test_a_redirect_takes_no_secret_to_another_origin(location: str) -> None:
    with pytest.raises(RedirectRefusedError) as refusal:
        _redirected(request(), status=302, location=location, secrets={"Authorization": "sesame-open"})
    assert "esame" not in str(refusal.value)
    own = location.replace("https://b.example", "").replace("http://a.example", "")
    if own.startswith("/") and not own.startswith("//"):
        _redirected(request(), status=302, location=own, secrets={"Authorization": "sesame-open"})


def answer(body: bytes, *, is_whole: bool = True, content_type: str = "text/plain", **fields: Any) -> dict[str, Any]:
    reply = HttpReply(status=200, headers=(("content-type", content_type),), body=body, is_whole=is_whole)
    return _Answer.read(reply, payload(**fields), secrets=("sesame-open", "short")).result()


@given(
    body=st.binary(max_size=2000) | st.text(max_size=500).map(str.encode),
    kept=st.integers(0, 2000),
    is_whole=st.booleans(),
    charset=st.sampled_from(["utf-8", "utf-16", "utf-16le", "us-ascii", "windows-1252", "idna", "\xff"]),
)
def test_whatever_a_server_sends_can_be_kept(body: bytes, kept: int, *, is_whole: bool, charset: str) -> None:
    result = answer(body, is_whole=is_whole, kept_body_bytes=kept, content_type=f"text/plain; charset={charset}")
    assert encode_result(result) is not None
    assert result["body_truncated"] or is_whole


@pytest.mark.parametrize(
    "character", [b"a", b"\x01", b"\0", b'"', b"\\", "\N{WAVING HAND SIGN}".encode(), b"\xff", b"\xc3\x28"]
)
def test_the_longest_body_fits_into_a_result(character: bytes) -> None:
    body = (character * (32 * 1024))[: 32 * 1024]
    headers = {"X-Wide": "\u00ff" * 600}
    reply = HttpReply(
        status=200,
        headers=tuple((f"x-{n}", headers["X-Wide"]) for n in range(16)),
        body=body,
        is_whole=True,
    )
    asked = payload(kept_body_bytes=32 * 1024, kept_headers=[f"X-{n}" for n in range(16)])
    encode_result(_Answer.read(reply, asked, secrets=()).result())


def test_a_body_is_read_in_the_charset_that_it_names() -> None:
    assert (
        answer("gr\u00fc\u00df".encode("latin-1"), content_type='text/plain; charset="ISO-8859-1"')["body"]
        == "gr\u00fc\u00df"
    )
    assert answer("gr\u00fc\u00df".encode(), content_type="text/plain; charset=idna")["body"] == "gr\u00fc\u00df"
    # The Encoding Standard says what UTF-16 without a byte order mark is.
    for body in ("gr\u00fc\u00df".encode("utf-16"), "gr\u00fc\u00df".encode("utf-16-le")):
        assert answer(body, content_type="text/plain; charset=UTF-16")["body"] == "gr\u00fc\u00df"
    assert answer("gr\u00fc\u00df".encode(), kept_body_bytes=3) == {
        "status": 200,
        "headers": {},
        "body": "gr",
        "body_truncated": True,
    }


def test_a_secret_that_a_server_repeats_is_blotted_out_before_anything_is_cut() -> None:
    assert answer(b"you sent sesame-open, did you")["body"] == "you sent [secret], did you"
    assert answer(b"sesame-open" * 3, kept_body_bytes=12)["body"] == "[secret][sec"
    # Of what was not read the beginning may be there.
    cut = answer(b"sesame-open sesame-op", is_whole=False, kept_body_bytes=100)
    assert "sesame" not in cut["body"]


@pytest.mark.parametrize("charset", ["utf-16", "utf-16le", "utf-16be", "iso-8859-1"])
def test_a_secret_is_blotted_out_in_any_charset(charset: str) -> None:
    said = "you sent sesame-open".encode(charset)
    assert answer(said, content_type=f"text/plain; charset={charset}")["body"] == "you sent [secret]"
    assert "m" not in answer(said, content_type="text/plain")["body"].replace("secret", "")


def test_the_beginning_of_a_secret_at_the_end_of_what_was_read_is_not_kept() -> None:
    secret, kept = "sesame-open-" + "x" * 28, 300
    cut = "".join(f"&#x{ord(character):06x};" for character in secret).encode()
    # Blotting out what is before it brings the beginning to where the body is kept.
    read = (secret.encode() * 10 + cut)[: kept + longest_spelling([secret])]
    reply = HttpReply(status=200, headers=(), body=read, is_whole=False)
    assert "&" not in _Answer.read(reply, payload(kept_body_bytes=kept), secrets=(secret,)).body


def test_a_body_that_is_packed_although_it_must_not_be_is_not_kept() -> None:
    packed = gzip.compress(b"you sent sesame-open", compresslevel=0)
    headers = (("content-encoding", "gzip"), ("content-type", "text/plain; charset=iso-8859-1"))
    reply = HttpReply(status=200, headers=headers, body=packed, is_whole=True)
    kept = _Answer.read(reply, payload(), secrets=("sesame-open",))
    assert (kept.body, kept.is_truncated) == ("", True)


def test_the_answers_headers_are_kept_as_they_were_asked_for() -> None:
    reply = HttpReply(
        status=204,
        headers=(("x-a", "1"), ("x-a", "2"), ("x-b", "is short"), ("x-c", "3")),
        body=b"",
        is_whole=True,
    )
    result = _Answer.read(reply, payload(kept_headers=["X-A", "x-b", "X-None"]), secrets=("short",)).result()
    assert result["headers"] == {"X-A": "1, 2", "x-b": "is [secret]"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ALLOWED_HOSTS", "localhost", "ALLOWED_HOSTS: 'localhost' is not host:port"),
        ("SECRETS", "{", "SECRETS is not a JSON object"),
        ("CA_FILE", "/no/such/file", "CA_FILE names no file"),
        ("CA_FILE", __file__, "CA_FILE names no file of certificates"),
        ("ALLOWED_HOST", "a:80", "there is no setting ALLOWED_HOST"),
    ],
)
def test_wrong_settings_are_an_error_when_a_process_starts(key: str, value: str, message: str) -> None:
    load_entries()
    with pytest.raises(InvalidSettingsError, match=message):
        read_entry_settings({f"CRONPLANE_ENTRY_HTTP_REQUEST_{key}": value}, CRON_REGISTRY)


def test_the_stored_payload_is_checked_like_the_sent_one() -> None:
    with pytest.raises(ValidationError):
        spec.execution_payload_model.model_validate({"request": {"url": "file:///etc/passwd"}})
