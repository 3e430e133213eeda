"""`cronplane postgres` as a process: who gets in, what it keeps, and how it ends."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cronplane_core.database import parse_url
from cronplane_core.tables import SCHEMA
from cronplane_migrations.migrate import migrate

COMMAND = Path(sys.executable).with_name("cronplane")
HANG_GUARD = 60.0


class Server:
    """`cronplane postgres` on a folder of the test's own."""

    def __init__(self, directory: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.directory = directory
        self.passwords = {"cronplane": secrets.token_urlsafe(32), "cronplane_service": secrets.token_urlsafe(32)}
        self._start = start

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.defpath,
            "CRONPLANE_POSTGRES_DIRECTORY": str(self.directory),
            "CRONPLANE_POSTGRES_PORT": str(self.port),
            "CRONPLANE_POSTGRES_OWNER_PASSWORD": self.passwords["cronplane"],
            "CRONPLANE_POSTGRES_SERVICE_PASSWORD": self.passwords["cronplane_service"],
        }

    def start(self) -> subprocess.Popen[str]:
        """Start it and wait until it serves."""
        process = self._start(self.environment)
        assert process.stderr is not None
        told = ""
        while "PostgreSQL serves" not in told:
            told = process.stderr.readline()
            assert told, f"it ended: {process.wait(HANG_GUARD)}"
        return process

    def check(self) -> subprocess.CompletedProcess[str]:
        command = [str(COMMAND), "postgres", "--check"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def address(self, user: str, *, password: str | None = None, database: str = "cronplane") -> str:
        return f"postgresql://{user}:{password or self.passwords.get(user, 'none')}@127.0.0.1:{self.port}/{database}"

    def ask(self, query: str, *, user: str = "cronplane") -> Any:
        with psycopg.connect(self.address(user), autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else None


@pytest.fixture
def server() -> Iterator[Server]:
    directory = Path(tempfile.mkdtemp(prefix="cronplane-test-"))
    directory.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)

        def start(environment: dict[str, str]) -> subprocess.Popen[str]:
            log = stack.enter_context((directory / "log").open("a"))
            process = subprocess.Popen(
                [COMMAND, "postgres"], stdout=log, stderr=subprocess.PIPE, text=True, env=environment
            )
            stack.enter_context(process)
            stack.callback(process.terminate)
            return process

        yield Server(directory, start)


def end(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> int:
    process.send_signal(number)
    return process.wait(HANG_GUARD)


def test_what_was_written_is_there_after_a_restart_with_other_passwords(server: Server) -> None:
    process = server.start()
    assert server.check().returncode == 0
    server.ask("CREATE TABLE kept AS SELECT 42 AS number")
    with psycopg.connect(server.address("cronplane")) as open_session:
        assert end(process) == 0, "an open session must not hold the end up"
        assert open_session.pgconn.status == psycopg.pq.ConnStatus.OK
        open_session.close()
    refused = server.check()
    assert (refused.returncode, "does not serve" in refused.stderr) == (1, True)

    before, server.passwords = server.passwords, {name: secrets.token_urlsafe(32) for name in server.passwords}
    process = server.start()
    assert server.ask("SELECT number FROM kept") == [(42,)]
    for user, password in before.items():
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.address(user, password=password))
    end(process)
    log = (server.directory / "log").read_text()
    assert "database system is ready" in log
    for password in (*before.values(), *server.passwords.values()):
        assert password not in log
    assert "SCRAM-SHA-256$" not in log


def test_over_the_network_nobody_comes_in_but_the_two_roles_by_password(server: Server) -> None:
    process = server.start()
    hashes = server.ask(
        "SELECT rolname, rolcreaterole, rolsuper OR rolcreatedb OR rolreplication OR rolbypassrls FROM pg_roles "
        "WHERE rolname LIKE 'cronplane%' ORDER BY 1"
    )
    assert hashes == [("cronplane", True, False), ("cronplane_service", False, False)]
    for user, database in (("postgres", "postgres"), ("postgres", "cronplane"), ("cronplane", "postgres")):
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
            psycopg.connect(server.address(user, database=database))
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"postgresql://cronplane@127.0.0.1:{server.port}/cronplane")
    end(process)


def test_the_owner_migrates_and_the_service_serves_there(server: Server) -> None:
    process = server.start()
    migrate(parse_url(server.address("cronplane")), entries=["an_entry"], service_role="cronplane_service")
    migrate(parse_url(server.address("cronplane")), entries=[], service_role="a_role_of_another_name")
    assert server.ask(f"SELECT count(*) FROM {SCHEMA}.cron_runs", user="cronplane_service") == [(0,)]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        server.ask(f"DROP TABLE {SCHEMA}.cron_runs", user="cronplane_service")
    end(process)


def test_a_server_that_was_killed_with_its_container_starts_again(server: Server) -> None:
    process = server.start()
    server.ask("CREATE TABLE kept AS SELECT 42 AS number")
    pid_file = server.directory / "postgresql" / "postmaster.pid"
    postgres = int(pid_file.read_text().splitlines()[0])
    left_behind = pid_file.read_bytes()
    handle = os.pidfd_open(postgres)
    os.kill(postgres, signal.SIGKILL)
    assert process.wait(HANG_GUARD) == 1, "it must not go on without its server"
    assert process.stderr is not None
    assert "ended by itself" in process.stderr.read()
    os.close(handle)

    # As in a new container, somebody else has the process id by now, and Kubernetes has opened the folder to a group.
    lines = left_behind.splitlines()
    pid_file.write_bytes(b"\n".join([str(os.getpid()).encode(), *lines[1:]]) + b"\n")
    pid_file.chmod(0o660)
    pid_file.parent.chmod(0o2770)
    process = server.start()
    assert server.ask("SELECT number FROM kept") == [(42,)]
    end(process)


def test_without_a_password_it_says_which_setting_is_missing(server: Server) -> None:
    environment = {**server.environment, "CRONPLANE_POSTGRES_OWNER_PASSWORD": "short"}
    done = subprocess.run([COMMAND, "postgres"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "CRONPLANE_POSTGRES_OWNER_PASSWORD" in done.stderr
    assert "short'" not in done.stderr
