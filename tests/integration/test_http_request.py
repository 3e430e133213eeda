"""HTTP requests on the wire: what a run says of every way in which a server may answer, and what leaves the worker."""

import asyncio
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trustme

from cronplane_entries.http_exchange import (
    AnswerUnreadableError,
    ExchangeError,
    ExchangeTimeoutError,
    HttpRequest,
    UnreachableError,
    exchange,
)
from cronplane_entries.http_target import parse_target

HANG_GUARD = 30.0
Handler = Callable[["Received", asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A request as it came over the wire; header names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True, kw_only=True)
class Server:
    """A server that answers each path as it is told to, and remembers every request."""

    port: int = 0
    scheme: str = "http"
    handlers: dict[str, Handler] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def answer(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """Answer a path the ordinary way."""
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        raw = f"HTTP/1.1 {status} Some Words\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self.send(path, raw)

    def send(self, path: str, raw: bytes) -> None:
        """Answer a path with bytes."""

        async def send(_: Received, writer: asyncio.StreamWriter) -> None:
            writer.write(raw)

        self.handlers[path] = send

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            request = await _read(reader)
            self.received.append(request)
            await self.handlers[request.line.split()[1]](request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(line=head[0], headers=headers, body=body)


async def _serving(server: Server, context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    yield server
    listener.close()
    for task in server.tasks:
        task.cancel()
    await asyncio.gather(*server.tasks, return_exceptions=True)
    await listener.wait_closed()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async for serving in _serving(Server()):
        yield serving


@pytest.fixture
async def other_server() -> AsyncIterator[Server]:
    async for serving in _serving(Server()):
        yield serving


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.fixture
async def tls_server(authority: trustme.CA) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async for serving in _serving(Server(scheme="https"), context):
        yield serving


def get(url: str) -> HttpRequest:
    return HttpRequest(method="GET", target=parse_target(url))


# One exchange


async def test_an_exchange_asks_for_nothing_that_would_have_to_be_unpacked(server: Server) -> None:
    server.answer("/a?b", body=b"hello", X_One="1")
    reply = await exchange(get(server.url("/a?b")), within=HANG_GUARD, most_bytes=100)
    assert (reply.status, reply.body, reply.is_whole, reply.header("x-one")) == (200, b"hello", True, "1")
    [request] = server.received
    assert request.line == "GET /a?b HTTP/1.1"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["user-agent"].startswith("cronplane/")


async def test_proxies_of_the_environment_are_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answer("/", body=b"direct")
    assert (await exchange(get(server.url()), within=HANG_GUARD, most_bytes=100)).body == b"direct"


@pytest.mark.parametrize("chunked", [False, True])
async def test_of_an_endless_body_no_more_is_read_than_asked_for(server: Server, *, chunked: bool) -> None:
    async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 1000000000000"
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        part = b"x" * 10_000
        while True:
            writer.write(b"2710\r\n" + part + b"\r\n" if chunked else part)
            await writer.drain()

    server.handlers["/"] = endless
    reply = await exchange(get(server.url()), within=HANG_GUARD, most_bytes=25_000)
    assert (len(reply.body), reply.is_whole) == (25_000, False)


async def test_answers_that_only_announce_the_answer_are_passed_over_while_there_is_time(server: Server) -> None:
    async def announce(_: Received, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" * 100)
            await writer.drain()

    server.handlers["/endless"] = announce
    server.send("/few", b"HTTP/1.1 100 Continue\r\n\r\n" * 10 + b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (await exchange(get(server.url("/few")), within=HANG_GUARD, most_bytes=100)).status == 204
    with pytest.raises(ExchangeTimeoutError):
        await exchange(get(server.url("/endless")), within=0.1, most_bytes=100)


async def test_an_answer_that_does_not_come_is_a_time_out(server: Server) -> None:
    async def never(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")
        await asyncio.Event().wait()

    server.handlers["/"] = never
    with pytest.raises(ExchangeTimeoutError, match=r"did not answer within 0\.1 s"):
        await exchange(get(server.url()), within=0.1, most_bytes=100)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 200_000 + b"\r\n\r\n",
        b"HTTP/1.1 9999 What\r\n\r\n",
        b"HTTP/1.1 099 Too Low\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nwhatever",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: a\r\n" * 30_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X-A: a\r\n" * 30_000,
        b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: a\r\n\r\n",
    ],
    ids=[
        "nothing",
        "another protocol",
        "half",
        "no chunk",
        "two lengths",
        "endless header",
        "no status",
        "a status below all",
        "an upgrade that nobody asked for",
        "endless headers",
        "a length beyond any",
        "a chunk beyond any",
        "an endless extension of a chunk",
        "a coding that nobody asked for",
        "endless trailers",
        "NUL in a header",
        "a header's name with a space",
    ],
)
async def test_an_answer_that_is_no_http_is_said_to_be_none(server: Server, raw: bytes) -> None:
    server.send("/", raw)
    with pytest.raises(AnswerUnreadableError, match="its answer is not HTTP"):
        await exchange(get(server.url()), within=HANG_GUARD, most_bytes=100)


async def test_a_port_on_which_nobody_listens_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(UnreachableError, match="takes no connection"):
        await exchange(get(f"http://127.0.0.1:{port}/"), within=HANG_GUARD, most_bytes=100)


async def test_a_certificate_is_trusted_only_if_an_authority_is(tls_server: Server, ca_file: Path) -> None:
    tls_server.answer("/", body=b"hello")
    reply = await exchange(get(tls_server.url()), within=HANG_GUARD, most_bytes=100, ca_file=ca_file)
    assert reply.body == b"hello"
    with pytest.raises(UnreachableError, match="certificate is not trusted"):
        await exchange(get(tls_server.url()), within=HANG_GUARD, most_bytes=100)
    other_name = get(f"https://localhost:{tls_server.port}/")
    with pytest.raises(UnreachableError, match="certificate is not trusted"):
        await exchange(other_name, within=HANG_GUARD, most_bytes=100, ca_file=ca_file)


async def test_a_server_without_tls_is_said_to_have_none() -> None:
    def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError, match="does not speak TLS"):
            await exchange(get(f"https://127.0.0.1:{port}/"), within=HANG_GUARD, most_bytes=100)


async def test_a_server_that_breaks_tls_off_later_is_said_to(authority: trustme.CA, ca_file: Path) -> None:
    """As one does that wants a certificate of the client's; this one goes on in the clear."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ended = asyncio.Event()

    async def forget(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            incoming.write(await reader.read(65536))
            with suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            writer.write(outgoing.read())
        writer.write(outgoing.read() + b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        ended.set()

    async with await asyncio.start_server(forget, "127.0.0.1", 0) as listener:
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        with pytest.raises(AnswerUnreadableError, match="may want a client's certificate"):
            await exchange(get(url), within=HANG_GUARD, most_bytes=100, ca_file=ca_file)
        await asyncio.wait_for(ended.wait(), HANG_GUARD)


async def test_certificates_that_cannot_be_read_are_the_administrators(tls_server: Server, tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match="tell the administrator"):
        await exchange(get(tls_server.url()), within=HANG_GUARD, most_bytes=100, ca_file=tmp_path / "gone.pem")


async def test_a_request_without_the_body_that_its_method_has_says_so(server: Server) -> None:
    for method, length in {"POST": "0", "PUT": "0", "PATCH": "0", "GET": None, "DELETE": None}.items():
        server.answer(f"/{method}")
        await exchange(
            HttpRequest(method=method, target=parse_target(server.url(f"/{method}"))),
            within=HANG_GUARD,
            most_bytes=100,
        )
        assert server.received[-1].headers.get("content-length") == length


async def test_no_header_gets_into_a_log_however_much_is_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    secret = secrets.token_urlsafe()
    server.answer("/", X_Said=secret)
    with caplog.at_level(1), caplog.at_level(1, "httpcore2"), caplog.at_level(1, "httpcore2.http11"):
        sent = HttpRequest(method="GET", target=parse_target(server.url()), headers=(("X-Token", secret),))
        await exchange(sent, within=HANG_GUARD, most_bytes=100)
    assert secret not in caplog.text


# Runs, from the API through a worker to the row


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The API and a runner, on settings that a test has chosen."""

    api: Any
    database: Any
    running: Any

    async def register(self, **payload: Any) -> Any:
        body = {"name": secrets.token_hex(4), "cron_expr": "0 9 * * *", "tz": "UTC", "entrypoint": "http_request"}
        return await self.api.call("POST", "", key="editor", json={**body, "payload": payload})

    async def run(self, **payload: Any) -> dict[str, Any]:
        """Register a cron, trigger it, and give the finished run."""
        registered = await self.register(**payload)
        assert registered.status_code == 201, registered.text
        return await self.trigger(registered.json()["id"])

    async def trigger(self, cron_id: str) -> dict[str, Any]:
        triggered = await self.api.call("POST", f"{cron_id}/trigger", key="operator")
        assert triggered.status_code == 202, triggered.text
        run_id = triggered.json()["id"]
        await self.running.journal.until(lambda: any(str(run.id) == run_id for run in self.running.journal.runs))
        run: dict[str, Any] = (await self.api.call("GET", f"{cron_id}/runs/{run_id}", key="viewer")).json()
        return run

    def everything(self) -> str:
        """Give every row of every table, as text."""
        tables = [
            row[0] for row in self.database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'scheduler'")
        ]
        return "".join(str(self.database.execute(f"SELECT t::text FROM scheduler.{table} AS t")) for table in tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What the administrator has set: the value of the secret `billing`, and the file of the secret `rotated`."""

    billing: str
    rotated: Path


@pytest.fixture
def ports(server: Server, tls_server: Server) -> tuple[int, int]:
    return server.port, tls_server.port


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, ports: tuple[int, int], ca_file: Path, organization: Any
) -> Environment:
    """Allow two of the servers, and grant secrets for them; a third server is on no list."""
    here, over_tls = (f"127.0.0.1:{port}" for port in ports)
    environment = Environment(billing=f"Bearer {secrets.token_urlsafe()}", rotated=ca_file.parent / "rotated")
    environment.rotated.write_text(secrets.token_urlsafe())
    organizations = [str(organization.id)]
    declarations = {
        "billing": {"hosts": [over_tls], "organizations": organizations},
        "rotated": {"hosts": [here], "organizations": organizations, "file": str(environment.rotated)},
        "anothers": {"hosts": [over_tls], "organizations": [str(uuid4())]},
    }
    for key, value in {
        "ALLOWED_HOSTS": f"{here}, {over_tls}",
        "SECRETS": json.dumps(declarations),
        "SECRET_BILLING": environment.billing,
        "CA_FILE": str(ca_file),
    }.items():
        monkeypatch.setenv(f"CRONPLANE_ENTRY_HTTP_REQUEST_{key}", value)
    return environment


@pytest.fixture
async def installation(environment: Environment, api: Any, database: Any, start_runner: Any) -> Installation:
    return Installation(api=api, database=database, running=await start_runner())


async def test_a_run_keeps_status_chosen_headers_and_the_beginning_of_the_body(
    installation: Installation, server: Server
) -> None:
    server.answer("/jobs?x=1", 201, body=b"created: " + b"x" * 100, Content_Type="text/plain", X_Job="7", X_More="8")
    run = await installation.run(
        method="POST",
        url=server.url("/jobs?x=1"),
        headers={"X-Note": "hello"},
        json_body={"n": 2**53 + 1, "text": "\N{WAVING HAND SIGN}"},
        kept_headers=["X-Job"],
        kept_body_bytes=12,
    )
    assert (run["status"], run["error"]) == ("completed", None)
    assert run["result"] == {
        "status": 201,
        "headers": {"X-Job": "7"},
        "body": "created: xxx",
        "body_truncated": True,
    }
    [request] = server.received
    assert request.line == "POST /jobs?x=1 HTTP/1.1"
    assert json.loads(request.body) == {"n": 2**53 + 1, "text": "\N{WAVING HAND SIGN}"}
    assert (request.headers["x-note"], request.headers["content-type"]) == ("hello", "application/json")
    assert request.headers["idempotency-key"] == run["id"]


async def test_a_status_that_was_not_expected_is_an_error_that_says_so(
    installation: Installation, server: Server
) -> None:
    server.answer("/", 503, body=b"try later")
    run = await installation.run(url=server.url())
    assert (run["status"], run["reason"]) == ("error", "ExecutorFailed")
    assert run["error"]["message"] == "The server answered 503, expected was a status from 200 to 299"
    assert "try later" in run["output"]
    expected = await installation.run(url=server.url(), expected_statuses=[503, 404])
    assert expected["status"] == "completed"


async def test_a_server_that_is_too_slow_is_an_error_that_says_so(installation: Installation, server: Server) -> None:
    async def drip(_: Received, writer: asyncio.StreamWriter) -> None:
        # Redirects to itself, each within the time allowed.
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 9\r\n\r\nhalf")
        await asyncio.Event().wait()

    server.handlers["/"] = drip
    run = await installation.run(url=server.url(), timeout_seconds=0.2)
    assert (run["status"], run["error"]["message"]) == ("error", "The server did not answer within 0.2 s")


async def test_redirects_are_followed_as_far_as_is_allowed(installation: Installation, server: Server) -> None:
    server.answer("/a", 302, Location="/b")
    server.answer("/b", 307, Location=server.url("/c"))
    server.answer("/c", body=b"arrived")
    run = await installation.run(url=server.url("/a"), max_redirects=2)
    assert run["result"]["body"] == "arrived"
    stopped = await installation.run(url=server.url("/a"), max_redirects=1)
    assert stopped["error"]["message"] == "The server redirected more than 1 times"
    untouched = await installation.run(url=server.url("/a"), max_redirects=0, expected_statuses=[302])
    assert untouched["result"]["status"] == 302


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{other}/",
        "http://localhost:{allowed}/",
        "http://[::1]:{allowed}/",
        "http://[::ffff:127.0.0.1]:{allowed}/",
        "http://2130706433:{allowed}/",
        "http://0x7f.1:{allowed}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user:password@127.0.0.1:{allowed}/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{allowed}/",
    ],
)
async def test_a_redirect_to_what_is_refused_is_not_followed(
    installation: Installation, server: Server, other_server: Server, location: str
) -> None:
    server.answer("/", 302, Location=location.format(other=other_server.port, allowed=server.port))
    run = await installation.run(url=server.url())
    assert run["status"] == "error"
    assert "no public address" in run["error"]["message"] or "address that is refused" in run["error"]["message"]
    assert (len(server.received), len(other_server.received)) == (1, 0)


async def test_a_secret_is_sent_and_neither_stored_nor_shown(
    installation: Installation, environment: Environment, tls_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async def repeat(request: Received, writer: asyncio.StreamWriter) -> None:
        said = request.headers["authorization"]
        body = f"plain {said} json {json.dumps(said)} token {said.partition(' ')[2]}".encode()
        head = f"HTTP/1.1 {request.line.split()[1][1:]} X\r\nX-Said: {said}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    tls_server.handlers["/200"] = tls_server.handlers["/500"] = repeat
    asked = {"headers": {"Authorization": {"secret": "billing"}}, "kept_headers": ["X-Said"]}
    run = await installation.run(url=tls_server.url("/200"), **asked)
    assert tls_server.received[0].headers["authorization"] == environment.billing
    assert run["result"]["body"] == 'plain [secret] json "[secret]" token [secret]'
    assert run["result"]["headers"] == {"X-Said": "[secret]"}
    failed = await installation.run(url=tls_server.url("/500"), **asked)
    assert failed["status"] == "error"
    token = environment.billing.partition(" ")[2]
    assert token not in json.dumps([run, failed])
    assert token not in installation.everything()
    assert token not in caplog.text


async def test_a_secret_in_a_file_is_read_anew_for_each_run(
    installation: Installation, environment: Environment, server: Server
) -> None:
    server.answer("/")
    asked = {"url": server.url(), "headers": {"X-Token": {"secret": "rotated", "prefix": "v1 "}}}
    cron = (await installation.register(**asked)).json()
    first = environment.rotated.read_text()
    await installation.trigger(cron["id"])
    environment.rotated.write_text("rotated by now\n")
    await installation.trigger(cron["id"])
    environment.rotated.unlink()
    run = await installation.trigger(cron["id"])
    assert [each.headers["x-token"] for each in server.received] == [f"v1 {first}", "v1 rotated by now"]
    assert run["error"]["message"] == "The file of the secret 'rotated' cannot be read; tell the administrator"


@pytest.mark.parametrize("name", ["anothers", "nobodys"])
async def test_a_secret_that_is_not_granted_cannot_be_registered(
    installation: Installation, tls_server: Server, name: str
) -> None:
    refused = await installation.register(url=tls_server.url(), headers={"X-A": {"secret": name}})
    assert refused.status_code == 422
    assert refused.json()["errors"] == [
        {
            "pointer": "/payload/headers",
            "message": f"no secret named {name!r} is granted to your organization",
            "type": "refused",
        }
    ]


async def test_a_secret_is_kept_from_every_host_but_its_own(
    installation: Installation, environment: Environment, server: Server, tls_server: Server
) -> None:
    refused = await installation.register(url=server.url(), headers={"X-A": {"secret": "billing"}})
    assert refused.json()["errors"][0]["message"].startswith("the secret 'billing' is bound to")
    tls_server.answer("/", 307, Location=server.url("/stolen"))
    server.answer("/stolen")
    headers = {"X-Key": {"secret": "billing"}, "Authorization": "Basic YTpi", "Accept": "text/plain"}
    run = await installation.run(url=tls_server.url(), method="POST", text_body="kept", headers=headers)
    assert run["status"] == "completed"
    [stolen] = server.received
    assert stolen.body == b"kept"
    assert stolen.headers["accept"] == "text/plain"
    assert not {"x-key", "authorization"} & set(stolen.headers)


async def test_no_redirect_takes_a_secret_elsewhere(
    installation: Installation, environment: Environment, server: Server, tls_server: Server
) -> None:
    """Not in a header that would go along without it, and not in the address, where the server writes it."""
    token = environment.billing.partition(" ")[2]
    tls_server.answer("/plain", 307, Location=server.url("/stolen"))
    tls_server.answer("/address", 302, Location=server.url(f"/stolen?{token}"))
    tls_server.answer("/name", 302, Location=f"https://{token}.invalid/")
    server.answer("/stolen")
    headers = {"User-Agent": {"secret": "billing"}, "Accept": {"secret": "billing", "prefix": "text/plain; q="}}
    assert (await installation.run(url=tls_server.url("/plain"), headers=headers))["status"] == "completed"
    [reached] = server.received
    assert token not in str(reached)
    for path in ("/address", "/name"):
        run = await installation.run(url=tls_server.url(path), headers=headers)
        assert run["error"]["message"].endswith("with a secret in the address; that is refused")
        assert token not in json.dumps(run)
    assert len(server.received) == 1


async def test_what_was_allowed_at_registration_is_judged_again_when_it_runs(
    installation: Installation, add_cron: Any, server: Server, other_server: Server
) -> None:
    """As if the administrator had taken back since what a cron was registered with."""
    other_server.answer("/")
    for request, message in [
        ({"url": other_server.url()}, "lacks it with port"),
        ({"url": server.url(), "headers": {"X-A": {"secret": "anothers"}}}, "is granted to your organization"),
        ({"url": server.url(), "headers": {"X-A": {"secret": "billing"}}}, "is bound to"),
    ]:
        cron = await add_cron(secrets.token_hex(4), entrypoint="http_request", payload={"request": request})
        run = await installation.trigger(str(cron.id))
        assert run["status"] == "error"
        assert message in run["error"]["message"]
    assert other_server.received == server.received == []


async def test_a_refused_registration_leaves_no_row_and_no_trace_of_its_payload(
    installation: Installation, other_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    before = installation.everything()
    marker = secrets.token_hex(8)
    refused = await installation.register(url=other_server.url(f"/{marker}"), headers={"X-A": marker})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/payload/url")
    assert installation.everything() == before
    assert marker not in refused.text + caplog.text
    assert other_server.received == []
