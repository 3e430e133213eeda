"""Bad input, line by line: what it is answered, where the answer points, and that it leaves nothing behind.

Each case is named by the words of the page that lists bad input.
"""

import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MARKER = "marker-that-no-answer-repeats"
BODY = {
    "name": "my job",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": MARKER},
}
JSON = {"Content-Type": "application/json"}
LIMIT = 64 * 1024
EVERYTHING = """
    SELECT (SELECT count(*) FROM scheduler.organizations), (SELECT count(*) FROM scheduler.api_keys),
           (SELECT count(*) FROM scheduler.idempotency_keys), (SELECT count(*) FROM scheduler.cron_runs),
           (SELECT count(*) FROM scheduler.cron_job_versions),
           (SELECT array_agg(cron_jobs ORDER BY id) FROM scheduler.cron_jobs)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request by an editor and its refusal; `limits` are what the installation lets the organization use before it.

    In a path, `{cron}` is a cron that exists, `{run}` a run of it, `{other}` another cron, `{deleted}` one that was
    deleted, and `{stranger}`, `{their_cron}` and `{their_run}` are another organization, its cron and its run.
    """

    line: str
    status: int
    problem: str = "invalid-request"
    pointer: str | None = None
    method: str = "POST"
    path: str = ""
    key: str | None = "editor"
    options: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)


def malformed(line: str, content: bytes) -> Case:
    options = {"content": content, "headers": JSON}
    return Case(line=line, status=400, problem="malformed-request", options=options)


def refused(line: str, pointer: str, **changes: Any) -> Case:
    return Case(line=line, status=422, pointer=pointer, options={"json": BODY | changes})


def written(line: str, pointer: str, fragment: bytes) -> Case:
    """A body with a fragment that Python's own JSON would not write."""
    content = json.dumps(BODY | {"payload": {"message": "FRAGMENT"}}).encode().replace(b'"FRAGMENT"', fragment)
    return Case(line=line, status=422, pointer=pointer, options={"content": content, "headers": JSON})


def in_query(line: str, **query: str) -> Case:
    (name,) = query
    return Case(line=line, status=422, pointer=f"query.{name}", method="GET", options={"params": query})


TEXT = json.dumps(BODY)
EXPRESSIONS = {
    "six fields": "0 0 9 * * *",
    "question mark": "0 9 ? * *",
    "@reboot": "@reboot",
    "@every": "@every 5m",
    "ranges that run backwards, 5-1": "5-1 * * * *",
    "an expression that can never fire": "0 0 31 2 *",
    "60 * * * *": "60 * * * *",
    "*/0": "*/0 * * * *",
    "weekday 8": "0 9 * * 8",
    "a newline": "0 9 * *\n*",
    "Arabic digits": "\u0660 \u0669 * * *",
    "a 4 KB list": ",".join(["1"] * 2048) + " * * * *",
    "an empty expression": "",
}
CASES = [
    # 400
    malformed("truncated JSON", TEXT[:-5].encode()),
    malformed("invalid UTF-8", TEXT.encode().replace(b"my job", b"my \xff job")),
    malformed("UTF-16 body", TEXT.encode("utf-16")),
    malformed("UTF-16 body without a byte order mark", TEXT.encode("utf-16-le")),
    malformed("a byte order mark", TEXT.encode("utf-8-sig")),
    malformed("duplicate keys", TEXT.replace("{", '{"name": "first", ', 1).encode()),
    malformed("duplicate keys deep inside", TEXT.replace(f'"{MARKER}"', '{"a": 1, "a": 2}').encode()),
    malformed("NaN", TEXT.replace(f'"{MARKER}"', "NaN").encode()),
    malformed("Infinity", TEXT.replace(f'"{MARKER}"', "Infinity").encode()),
    malformed("-Infinity", TEXT.replace(f'"{MARKER}"', "-Infinity").encode()),
    malformed("1e999", TEXT.replace(f'"{MARKER}"', "1e999").encode()),
    malformed("nesting over 64", b"[" * 65 + b"]" * 65),
    malformed("nesting far over 64", b"[" * 30_000 + b"]" * 30_000),
    malformed("5,000-digit integer", TEXT.replace(f'"{MARKER}"', "9" * 5000).encode()),
    malformed("two values", TEXT.encode() * 2),
    Case(
        line="tampered cursor",
        status=400,
        problem="invalid-cursor",
        method="GET",
        options={"params": {"cursor": base64.urlsafe_b64encode(b"x" * 80).decode()}},
    ),
    Case(
        line="a cursor that is no base64",
        status=400,
        problem="invalid-cursor",
        method="GET",
        options={"params": {"cursor": "\N{SNOWMAN}"}},
    ),
    # 401
    Case(line="no key", status=401, problem="unauthenticated", key=None, options={"json": BODY}),
    Case(
        line="no key, and a body that cannot be read",
        status=401,
        problem="unauthenticated",
        key=None,
        options={"content": b"{", "headers": JSON},
    ),
    *(
        Case(
            line=f"unknown key: {name}",
            status=401,
            problem="unauthenticated",
            key=None,
            options={"json": BODY, "headers": {"Authorization": text}},
        )
        for name, text in {
            "well-formed": f"Bearer cronplane_{uuid4().hex}_{'a' * 43}",
            "any text": "Bearer open sesame",
            "empty": "Bearer ",
            "another scheme": "Basic YTpi",
            "not ASCII": b"Bearer \xe9",
        }.items()
    ),
    # 403
    Case(line="a viewer creates", status=403, problem="forbidden", key="viewer", options={"json": BODY}),
    Case(line="an operator creates", status=403, problem="forbidden", key="operator", options={"json": BODY}),
    Case(
        line="an entry not granted to the organization",
        status=403,
        problem="entry-not-granted",
        pointer="/entrypoint",
        options={"json": BODY},
        limits={"entrypoints": ["no_op"]},
    ),
    # 429
    Case(
        line="cron quota",
        status=429,
        problem="quota-exceeded",
        options={"json": BODY},
        limits={"cron_quota": 1},
    ),
    Case(
        line="trigger storm",
        status=429,
        problem="quota-exceeded",
        path="{cron}/trigger",
        limits={"triggers_per_minute": 1},
    ),
    # 404
    *(
        Case(
            line=f"another organization's cron: {method} {path}",
            status=404,
            problem="not-found",
            method=method,
            path=path,
            options={} if body is None else {"json": body},
        )
        for method, path, body in [
            ("GET", "{their_cron}", None),
            ("PATCH", "{their_cron}", {"name": "mine"}),
            ("DELETE", "{their_cron}", None),
            ("POST", "{their_cron}/pause", None),
            ("POST", "{their_cron}/resume", None),
            ("POST", "{their_cron}/trigger", None),
            ("GET", "{their_cron}/runs", None),
            ("GET", "{their_cron}/runs/{their_run}", None),
            ("POST", "/crons/{stranger}", BODY),
            ("POST", "/crons/{stranger}/preview", BODY),
            ("GET", "/crons/{stranger}", None),
            ("GET", "/crons/{stranger}/{cron}", None),
        ]
    ),
    *(
        Case(
            line=f"another's run under one's own cron: {run}", status=404, problem="not-found", method="GET", path=path
        )
        for run, path in [("a stranger's", "{cron}/runs/{their_run}"), ("another cron's", "{other}/runs/{run}")]
    ),
    *(
        Case(
            line=f"a deleted cron: {method} {path}",
            status=404,
            problem="not-found",
            method=method,
            path="{deleted}" + path,
            options={"json": {"name": "back"}} if method == "PATCH" else {},
        )
        for method, path in [
            ("GET", ""),
            ("PATCH", ""),
            ("DELETE", ""),
            ("POST", "/pause"),
            ("POST", "/resume"),
            ("POST", "/trigger"),
            ("GET", "/runs"),
        ]
    ),
    # 405
    *(
        Case(line=f"{method} on {path}", status=405, problem="method-not-allowed", method=method, path=path)
        for method, path in [
            ("DELETE", ""),
            ("PUT", "/organizations"),
            ("PUT", "{cron}/runs"),
            ("GET", "preview"),
            ("PATCH", "preview"),
            ("DELETE", "preview"),
        ]
    ),
    Case(line="PUT on a collection", status=405, problem="method-not-allowed", method="PUT", options={"json": BODY}),
    # 409
    Case(
        line="duplicate name in the organization",
        status=409,
        problem="conflict",
        options={"json": BODY | {"name": "kept"}},
    ),
    Case(
        line="Idempotency-Key reused with another body",
        status=409,
        problem="idempotency-key-reused",
        options={"json": BODY, "headers": {"Idempotency-Key": "used"}},
    ),
    Case(
        line="Idempotency-Key reused for another route",
        status=409,
        problem="idempotency-key-reused",
        path="preview",
        options={"json": BODY | {"name": "kept"}, "headers": {"Idempotency-Key": "used"}},
    ),
    # 412
    *(
        Case(
            line=f"stale If-Match: {method} {path}",
            status=412,
            problem="precondition-failed",
            method=method,
            path="{cron}" + path,
            options={"headers": {"If-Match": '"7"'}} | ({"json": {"name": "new"}} if method == "PATCH" else {}),
        )
        for method, path in [("PATCH", ""), ("DELETE", ""), ("POST", "/pause"), ("POST", "/resume")]
    ),
    # 413
    Case(
        line="body over the limit",
        status=413,
        problem="body-too-large",
        options={"json": BODY | {"payload": {"message": "x" * LIMIT}}},
    ),
    Case(
        line="body over the limit, compressed",
        status=413,
        problem="body-too-large",
        options={"content": b"\x1f\x8b" * LIMIT, "headers": JSON | {"Content-Encoding": "gzip"}},
    ),
    # 415
    Case(
        line="text/plain",
        status=415,
        problem="unsupported-media-type",
        options={"content": TEXT.encode(), "headers": {"Content-Type": "text/plain"}},
    ),
    Case(line="no content type", status=415, problem="unsupported-media-type", options={"content": TEXT.encode()}),
    Case(
        line="a form",
        status=415,
        problem="unsupported-media-type",
        options={"data": {"name": "my job"}},
    ),
    Case(
        line="gzip",
        status=415,
        problem="unsupported-media-type",
        options={"content": gzip.compress(TEXT.encode()), "headers": JSON | {"Content-Encoding": "gzip"}},
    ),
    # 422: characters
    refused("NUL in a name", "/name", name="my\0job"),
    refused("NUL in an expression", "/cron_expr", cron_expr="0 9 * * *\0"),
    refused("NUL in a zone", "/tz", tz="UTC\0"),
    refused("NUL in an entry", "/entrypoint", entrypoint="dummy_print\0"),
    refused("NUL in a payload", "/payload/message", payload={"message": "a\0b"}),
    refused("NUL in a key of the payload", "/payload/a\N{REPLACEMENT CHARACTER}b", payload={"a\0b": 1}),
    refused("NUL deep in a payload", "/payload/value/1/x", entrypoint="no_op", payload={"value": [0, {"x": "\0"}]}),
    in_query("NUL in a query", name="\0"),
    in_query("NUL in another query", entrypoint="\0"),
    written("lone surrogate", "/payload/message", rb'"\ud800"'),
    written("lone surrogate, the second half", "/payload/message", rb'"a \udfff b"'),
    written("lone surrogate in a key", "/payload/message/?", rb'{"\ud800": 1}'),
    in_query("NUL in a cursor", cursor="\0"),
    Case(line="NUL in a path", status=422, pointer="path.cron_id", method="GET", path="%00"),
    *(
        Case(
            line=f"{what} in the name of {whose}",
            status=422,
            pointer="/name",
            path=path,
            key=key,
            options={"json": {"name": name} | more},
        )
        for whose, path, key, more in [
            ("an organization", "/organizations", "installation", {}),
            ("a key", "/organizations/{organization}/keys", "admin", {"role": "viewer"}),
        ]
        for what, name in {
            "NUL": "a\0b",
            "nothing": "",
            "blanks": " \u3000 ",
            "too much": "x" * 201,
            "bidi characters": "\u202egpj",
            "control characters": "a\x1b[31mb",
            "a newline": "two\nlines",
            "a number": 1,
        }.items()
    ),
    Case(
        line="a key of an unknown role",
        status=422,
        pointer="/role",
        path="/organizations/{organization}/keys",
        key="admin",
        options={"json": {"name": "k", "role": "root"}},
    ),
    # 422: names
    refused("blank name", "/name", name=" \t "),
    refused("empty name", "/name", name=""),
    refused("over-long name", "/name", name="x" * 201),
    refused("far over-long name", "/name", name="x" * 20_000),
    refused("bidi characters in a name", "/name", name="\u202egpj.exe"),
    refused("bidi isolates in a name", "/name", name="a\u2066b\u2069"),
    refused("control characters in a name", "/name", name="a\x1b[31mb"),
    refused("a newline in a name", "/name", name="two\nlines"),
    refused("a line separator in a name", "/name", name="two\u2028lines"),
    # 422: types
    refused("wrong types: a number as name", "/name", name=1),
    refused("wrong types: a text as boolean", "/enabled", enabled="true"),
    refused("wrong types: a number as boolean", "/enabled", enabled=1),
    refused("wrong types: a text as number", "/timeout", timeout="60"),
    refused("wrong types: a boolean as number", "/timeout", timeout=True),
    refused("wrong types: a fraction as seconds", "/timeout", timeout=60.5),
    refused("wrong types: a whole fraction as seconds", "/timeout", timeout=60.0),
    refused("wrong types in a payload", "/payload/error_rate", payload={"message": "x", "error_rate": "0.5"}),
    refused(
        "wrong types: a boolean in a payload", "/payload/error_rate", payload={"message": "x", "error_rate": False}
    ),
    refused("payload list", "/payload", payload=[]),
    refused("payload null", "/payload", payload=None),
    refused("payload text", "/payload", payload="{}"),
    Case(line="a list as body", status=422, pointer="", options={"json": [BODY]}),
    Case(line="null as body", status=422, pointer="", options={"json": None, "content": b"null", "headers": JSON}),
    Case(line="no body", status=422, pointer=""),
    Case(
        line="a missing field",
        status=422,
        pointer="/tz",
        options={"json": {k: v for k, v in BODY.items() if k != "tz"}},
    ),
    refused("unknown fields", "/colour", colour="green"),
    refused("organization_id in the body", "/organization_id", organization_id=str(uuid4())),
    refused("status in the body", "/status", status="completed"),
    refused("id in the body", "/id", id=str(uuid4())),
    refused("unknown fields in a payload", "/payload/colour", payload={"message": "x", "colour": "green"}),
    refused("a name with a slash", "/a~1b~0c", **{"a/b~c": 1}),
    # 422: schedules
    *(refused(line, "/cron_expr", cron_expr=expression) for line, expression in EXPRESSIONS.items()),
    refused("Mars/Phobos", "/tz", tz="Mars/Phobos"),
    refused("../../etc/passwd", "/tz", tz="../../etc/passwd"),
    refused("+02:00 as zone", "/tz", tz="+02:00"),
    refused("an empty zone", "/tz", tz=""),
    refused("an absolute path as zone", "/tz", tz="/etc/localtime"),
    refused("a zone in other letters", "/tz", tz="europe/paris"),
    # 422: entries
    refused("unknown entry", "/entrypoint", entrypoint="nobody_knows"),
    refused("os.system", "/entrypoint", entrypoint="os.system"),
    refused("an empty entry", "/entrypoint", entrypoint=""),
    # 422: entries that call out
    *(
        refused(f"calling out to {line}", "/payload/url", entrypoint="http_request", payload={"url": f"{url}/{MARKER}"})
        for line, url in {
            "a link-local address": "http://169.254.1.1",
            "a link-local address in IPv6": "http://[fe80::1]",
            "a link-local address with a zone": "http://[fe80::1%25eth0]",
            "loopback": "http://127.0.0.1:5432",
            "the rest of loopback": "https://127.255.255.254",
            "loopback by name": "http://localhost:8080",
            "loopback by name, with a dot": "http://LOCALHOST.:8080",
            "loopback in short": "http://127.1",
            "loopback as one number": "http://2130706433",
            "loopback in hexadecimal": "http://0x7f000001",
            "loopback in octal": "http://0177.0.0.1",
            "loopback in full-width digits": "http://\uff11\uff12\uff17.0.0.1",
            "loopback with a dot": "http://127.0.0.1.",
            "loopback, percent-encoded": "http://127%2e0.0.1",
            "loopback in IPv6": "http://[0:0:0:0:0:0:0:1]",
            "loopback, mapped into IPv6": "http://[::ffff:127.0.0.1]",
            "loopback, mapped in hexadecimal": "http://[::ffff:7f00:1]",
            "loopback by NAT64": "http://[64:ff9b::7f00:1]",
            "loopback by 6to4": "http://[2002:7f00:1::]",
            "this host": "http://0.0.0.0",
            "this host as one number": "http://0",
            "any address": "http://[::]",
            "private, 10": "https://10.0.0.1",
            "private, 172": "https://172.16.0.1",
            "private, 192": "https://192.168.0.1",
            "private in IPv6": "https://[fd00::1]",
            "private, shared by carriers": "https://100.64.0.1",
            "metadata": "http://169.254.169.254/latest/meta-data",
            "metadata in hexadecimal": "http://0xa9fea9fe",
            "metadata, mapped into IPv6": "http://[::ffff:169.254.169.254]",
            "metadata in IPv6": "http://[fd00:ec2::254]",
            "metadata of another cloud": "http://100.100.100.200",
            "metadata at a public address": "http://168.63.129.16",
            "a file:": "file:///etc",
            "a file: with a host": "file://localhost/etc",
            "a gopher:": "gopher://127.0.0.1:6379",
            "credentials in the URL": "https://user:password@1.1.1.1",
            "a user in the URL": "https://user@1.1.1.1",
            "two hosts in the URL": "http://1.1.1.1\\@127.0.0.1",
            "CRLF in the URL": "http://1.1.1.1/\r\nHost: localhost",
        }.items()
    ),
    *(
        refused(
            f"calling out with {line}",
            "/payload/headers",
            entrypoint="http_request",
            payload={"url": "https://1.1.1.1", "headers": {name: value}},
        )
        for line, name, value in [
            ("CRLF in a header", "X-A", f"{MARKER}\r\nHost: localhost"),
            ("LF in a header", "X-A", f"{MARKER}\nHost: localhost"),
            ("CRLF in a header's name", "X-A: a\r\nHost", MARKER),
            ("a Host override", "Host", MARKER),
            ("a Host override in lower case", "host", MARKER),
            ("a Host override with a space", "Host ", MARKER),
        ]
    ),
    # 422: containers
    *(
        refused(f"an image {line}", "/payload/image", entrypoint="container", payload={"image": image})
        for line, image in {
            "that is not on the allow-list": f"registry.example/{MARKER}",
            "that is none": f"registry.example/{MARKER}:a:b",
            "with a scheme": f"https://registry.example/{MARKER}",
            "with credentials": f"user:password@registry.example/{MARKER}",
            "with CRLF": f"registry.example/{MARKER}\r\n",
        }.items()
    ),
    # 422: policies
    refused("timeout 0", "/timeout", timeout=0),
    refused("timeout -1", "/timeout", timeout=-1),
    refused("timeout huge", "/timeout", timeout=10**9),
    refused("timeout beyond any duration", "/timeout", timeout=10**30),
    refused("negative window", "/catchup_window", catchup_window=-1),
    refused("attempts 0", "/max_attempts", max_attempts=0),
    refused("attempts 1e9", "/max_attempts", max_attempts=10**9),
    refused("attempts beyond any number", "/max_attempts", max_attempts=10**100),
    refused("one attempt too many", "/max_attempts", max_attempts=101),
    refused("no time for a run", "/run_timeout", run_timeout=0),
    refused("a wait that shrinks", "/backoff/maximum", backoff={"initial": 10, "maximum": 9}),
    refused("start after end", "/ends_at", starts_at="2027-01-02T00:00:00Z", ends_at="2027-01-01T00:00:00Z"),
    refused("naive datetime", "/starts_at", starts_at="2027-01-01T00:00:00"),
    refused("a number as datetime", "/starts_at", starts_at=1_800_000_000),
    refused("a date that does not exist", "/starts_at", starts_at="2027-02-30T00:00:00Z"),
    refused("year 9999", "/starts_at", starts_at="9999-12-31T23:59:59Z"),
    refused("year 9999 west of Greenwich", "/ends_at", ends_at="9999-12-31T23:59:59-12:00"),
    refused("a bound not served yet", "/starts_at", starts_at="2027-01-01T00:00:00Z"),
    refused("unknown overlap", "/overlap", overlap="explode"),
    refused("overlap not served yet", "/overlap", overlap="queue_all"),
    refused("catchup not served yet", "/catchup", catchup="all"),
    refused("jitter not served yet", "/jitter", jitter=5),
    refused("negative jitter", "/jitter", jitter=-5),
    refused("max_runs not served yet", "/max_runs", max_runs=5),
    # 422: queries and paths
    in_query("limit -1", limit="-1"),
    in_query("limit 0", limit="0"),
    in_query("limit 1e9", limit="1000000000"),
    in_query("limit 1e9, as it is written", limit="1e9"),
    in_query("an unknown query", colour="green"),
    in_query("enabled that is no boolean", enabled="perhaps"),
    Case(line="a non-UUID id", status=422, pointer="path.cron_id", method="GET", path="not-a-uuid"),
    Case(
        line="a non-UUID organization",
        status=422,
        pointer="path.organization_id",
        method="GET",
        path="/crons/not-a-uuid",
    ),
    *(
        Case(line=f"a non-UUID id: {name}", status=422, pointer="path.cron_id", method="GET", path=written)
        for name, written in {
            "a digit short": str(UUID(int=0))[:-1],
            "full-width digits": str(UUID(int=0)).replace("0", "\uff10"),
            "Arabic digits": str(UUID(int=0)).replace("0", "\u0660"),
            "underscores": "0_0" + "0" * 29,
            "a plus sign": "+" + "0" * 31,
            "SQL": "' OR 1=1 --",
        }.items()
    ),
    Case(
        line="an organization in Arabic digits",
        status=422,
        pointer="path.organization_id",
        method="GET",
        path="/crons/" + str(UUID(int=0)).replace("0", "\u0660"),
    ),
    Case(
        line="a query of 9 KB",
        status=422,
        method="GET",
        options={"params": {"name": "x" * 9000}},
    ),
    Case(line="5,000 queries", status=422, method="GET", options={"params": [("limit", "1")] * 5000}),
    Case(line="a non-UUID run", status=422, pointer="path.run_id", method="GET", path="{cron}/runs/1"),
    *(
        Case(
            line=f"runs with a bad {name}",
            status=422,
            pointer=pointer,
            method="GET",
            path="{cron}/runs",
            options={"params": {name: value}},
        )
        for name, value, pointer in [
            ("status", "fine", "query.status.0"),
            ("trigger", "me", "query.trigger"),
            ("from", "2027-01-01T00:00:00", "query.from"),
            ("until", "1800000000", "query.until"),
        ]
    ),
    *(
        Case(
            line=f"an Idempotency-Key that is {name}",
            status=422,
            pointer="header.Idempotency-Key",
            options={"json": BODY, "headers": {"Idempotency-Key": key}},
        )
        for name, key in {"empty": "", "too long": "k" * 256, "two words": "a b", "not ASCII": b"\xe9"}.items()
    ),
    # 422: changes
    *(
        Case(
            line=f"a change: {line}", status=422, pointer=pointer, method="PATCH", path="{cron}", options={"json": body}
        )
        for line, pointer, body in [
            ("an empty name", "/name", {"name": ""}),
            ("an empty expression", "/cron_expr", {"cron_expr": ""}),
            ("an empty zone", "/tz", {"tz": ""}),
            ("an empty entry", "/entrypoint", {"entrypoint": "", "payload": {}}),
            ("payload null", "/payload", {"payload": None}),
            ("payload list", "/payload", {"payload": []}),
            ("a name that is null", "/name", {"name": None}),
            ("half of a payload", "/payload/message", {"payload": {"error_rate": 0.5}}),
            ("a new entrypoint without its payload", "/payload", {"entrypoint": "no_op"}),
            ("another zone that there is not", "/tz", {"tz": "Mars/Phobos"}),
            ("NUL", "/name", {"name": "\0"}),
            ("generation", "/generation", {"generation": 9}),
            ("timeout 0", "/timeout", {"timeout": 0}),
        ]
    ),
    Case(
        line="trigger with a payload that the entry refuses",
        status=422,
        pointer="/payload/message",
        path="{cron}/trigger",
        options={"json": {"payload": {"message": " "}}},
    ),
    Case(
        line="trigger with payload null",
        status=422,
        pointer="/payload",
        path="{cron}/trigger",
        options={"json": {"payload": None}},
    ),
    Case(line="preview of a bad zone", status=422, pointer="/tz", path="preview", options={"json": BODY | {"tz": "x"}}),
]


@pytest.fixture
async def places(api: Any) -> dict[str, str]:
    """Ids of what is there, which bad input must not touch."""
    kept = await api.call("POST", "", json=BODY | {"name": "kept"}, headers={"Idempotency-Key": "used"})
    other, deleted = await api.register("other"), await api.register("deleted")
    run = await api.call("POST", f"{kept.json()['id']}/trigger")
    await api.call("DELETE", deleted["id"])
    theirs = await api.call("POST", f"/crons/{api.stranger_id}", key="stranger", json=BODY)
    their_run = await api.call("POST", f"{theirs.headers['location']}/trigger", key="stranger")
    return {
        "organization": str(api.organization_id),
        "cron": kept.json()["id"],
        "run": run.json()["id"],
        "other": other["id"],
        "deleted": deleted["id"],
        "stranger": str(api.stranger_id),
        "their_cron": theirs.json()["id"],
        "their_run": their_run.json()["id"],
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
async def test_bad_input_is_refused_and_leaves_nothing_behind(
    api: Any, database: Any, places: dict[str, str], capfd: pytest.CaptureFixture[str], case: Case
) -> None:
    if case.limits:
        path = f"/organizations/{api.organization_id}"
        assert (await api.call("PATCH", path, key="installation", json=case.limits)).status_code == 200
    before = database.execute(EVERYTHING)
    answer = await api.call(case.method, case.path.format(**places), key=case.key, **case.options)
    assert (answer.status_code, answer.headers["content-type"]) == (case.status, "application/problem+json"), (
        answer.text
    )
    problem = answer.json()
    assert problem["type"] == f"https://cronplane.dev/problems/{case.problem}"
    assert problem["status"] == case.status
    assert problem["title"]
    assert problem["detail"]
    if case.pointer is not None:
        assert case.pointer in [error["pointer"] for error in problem["errors"]]
    assert MARKER not in answer.text
    assert MARKER not in "".join(capfd.readouterr())
    assert database.execute(EVERYTHING) == before


def test_each_refusal_is_one_that_the_description_of_the_api_names(api: Any) -> None:
    described = {
        (method.upper(), path): set(operation["responses"])
        for path, operations in api.application.openapi()["paths"].items()
        for method, operation in operations.items()
    }
    for case in CASES:
        if case.status != 405:
            assert str(case.status) in described[case.method, operation_path(case.path)], case.line


def operation_path(path: str) -> str:
    """Give the path of the description that a case's path belongs to."""
    _, first, *parts = (path if path.startswith("/") else f"/crons/x/{path}").rstrip("/").split("/")
    names = ["{organization_id}", "{cron_id}" if first == "crons" else "keys", "runs", "{run_id}"]
    words = {"preview", "pause", "resume", "trigger"}
    return "/".join(["", first, *(part if part in words else name for part, name in zip(parts, names, strict=False))])


async def test_a_revoked_key_is_refused(api: Any) -> None:
    keys = (await api.call("GET", f"/organizations/{api.organization_id}/keys")).json()["items"]
    (viewer,) = [key for key in keys if key["role"] == "viewer"]
    assert (await api.call("GET", "", key="viewer")).status_code == 200
    revocation = await api.call("DELETE", f"/organizations/{api.organization_id}/keys/{viewer['id']}")
    assert revocation.status_code == 204
    refusal = await api.call("GET", "", key="viewer")
    assert refusal.status_code == 401
    assert refusal.headers["www-authenticate"].startswith("Bearer")


async def test_a_chunked_body_over_the_limit_is_refused(api: Any, database: Any) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(LIMIT):
            yield b" " * 1024
        raise AssertionError("the whole body was read")

    answer = await api.call("POST", "", content=chunks(), headers=JSON)
    assert answer.status_code == 413
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]


async def test_a_body_that_fills_the_limit_is_read(api: Any) -> None:
    body = json.dumps(BODY)
    assert (await api.call("POST", "", content=body + " " * (LIMIT - len(body)), headers=JSON)).status_code == 201
    body = json.dumps(BODY | {"name": "another"})
    assert (await api.call("POST", "", content=body + " " * (LIMIT + 1 - len(body)), headers=JSON)).status_code == 413


async def test_every_error_is_named_at_once(api: Any) -> None:
    body = BODY | {
        "name": " ",
        "cron_expr": "60 * * * *",
        "tz": "Mars/Phobos",
        "timeout": 0,
        "payload": {"message": " "},
    }
    problem = (await api.call("POST", "", json=body)).json()
    pointers = {error["pointer"] for error in problem["errors"]}
    assert pointers == {"/name", "/cron_expr", "/tz", "/timeout", "/payload/message"}
    assert all(error["message"] and error["type"] for error in problem["errors"])


async def test_an_interval_below_the_minimum_is_refused_even_if_it_comes_once_a_year(
    start_api: Any, api: Any, api_settings: Any, database: Any
) -> None:
    _, client = await start_api(api_settings(minimum_interval=3600))
    headers = {"Authorization": f"Bearer {api.keys['editor']}"}
    for expression, status in {"0 * * * *": 201, "59 23 31 12 *": 201, "0,59 0 1 1 *": 422}.items():
        body = BODY | {"name": expression, "cron_expr": expression}
        answer = await client.post(f"/crons/{api.organization_id}", json=body, headers=headers)
        assert answer.status_code == status, answer.text
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(2,)]


@pytest.mark.parametrize(
    "changes",
    [
        {"cron_expr": "0 9 * * 0"},
        {"cron_expr": "0 9 * * 7"},
        {"cron_expr": "0 9 * * MON-FRI"},
        {"cron_expr": "@daily"},
        {"cron_expr": "0 0 29 2 *"},
        {"name": "deploy \N{ROCKET}"},
        {"name": "family \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"},
        {"name": "younger than this Python \U0001fae8"},
        {"name": "x" * 200},
        {"payload": {"message": "\N{ROCKET}"}},
        {"timeout": 1},
        {"timeout": 7 * 86400},
        {"catchup_window": 30 * 86400},
        {"overlap": "skip", "catchup": "latest", "max_attempts": 1, "jitter": 0},
    ],
    ids=str,
)
async def test_what_must_be_accepted_is_accepted_and_read_back_as_it_was_sent(
    api: Any, changes: dict[str, Any]
) -> None:
    cron = await api.register(**changes)
    read = (await api.call("GET", cron["id"])).json()
    assert {name: read[name] for name in changes if name != "payload"} == {
        name: value for name, value in changes.items() if name != "payload"
    }
    assert read["payload"] == changes.get("payload", {"message": "hello"}) | {"error_rate": 0.0}


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 10**399, 0.1, 1.5e-7, True, None])
async def test_numbers_in_payloads_come_back_unchanged(api: Any, number: object) -> None:
    payload = {"path": "", "text": "", "value": [number, {"number": number}]}
    cron = await api.register(entrypoint="no_op", payload=payload)
    read = await api.call("GET", cron["id"])
    for answer in (cron, read.json(), json.loads(read.text)):
        assert repr(answer["payload"]["value"]) == repr(payload["value"])


NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (lambda n: b"{" + b",".join(b'"%x":0' % i for i in range(n)) + b"}", 100),
        (lambda n: b'{"payload":[' + b",".join([b'"\\u0000"'] * n) + b"]}", 100),
        (lambda n: b'{"' + b"n" * 5 * n + b'":[' + b",".join([b'"\\u0000"'] * n) + b"]}", 100),
        # The five fields that are missing, and the one that is not known.
        (lambda n: b'{"' + b"n" * 12 * n + b'":0}', 6),
    ],
    ids=["names", "NULs", "NULs below a long name", "one long name"],
)
async def test_a_body_that_is_wrong_in_thousands_of_places_gets_a_short_answer(
    api: Any, body: Callable[[int], bytes], told: int
) -> None:
    answer = await api.call("POST", "", content=body(4000), headers=JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert len(answer.json()["errors"]) == told
    assert len(answer.content) < LIMIT


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from([*BODY, "timeout", "overlap", "starts_at", "backoff"]), NESTED, min_size=1)
)
async def test_no_body_whatsoever_is_answered_with_a_500(api: Any, changes: dict[str, Any]) -> None:
    content = json.dumps(BODY | changes).encode()
    for path in ("", "preview"):
        answer = await api.call("POST", path, content=content, headers=JSON)
        assert answer.status_code in {200, 201, 400, 409, 422}, answer.text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    query=st.dictionaries(st.sampled_from(["name", "entrypoint", "cursor", "limit", "enabled"]), st.text(max_size=30))
)
async def test_no_query_whatsoever_is_answered_with_a_500(api: Any, query: dict[str, str]) -> None:
    encodable = {name: value.encode("utf-8", "replace").decode() for name, value in query.items()}
    assert (await api.call("GET", "", params=encodable)).status_code in {200, 400, 422}
