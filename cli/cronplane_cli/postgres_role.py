"""A PostgreSQL for trying an installation out, as the process of a container: the embedded one, with a port.

It is one server without a replica, a backup or TLS; whoever keeps what others rely on brings a PostgreSQL of their own.
As the first process of a container it also waits for whatever is left to it, since nobody else does.
"""

import os
import signal
import sys
from pathlib import Path

import psycopg
import structlog

from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_core.log import configure_logging
from cronplane_core.postgresql_accounts import DATABASE, HOST_BASED_AUTHENTICATION, OWNER_ROLE, keep_accounts
from cronplane_core.settings import LogSettings, PostgresSettings

# Seconds; after a crash, all that was written since the last checkpoint is read again.
_START_TIMEOUT = 600.0
_CHECK_TIMEOUT = 3


def serve() -> None:
    """Serve PostgreSQL until SIGTERM or SIGINT, then end its sessions and stop.

    Raises:
        CronplaneError: it did not start, or it ended by itself.

    """
    configure_logging(read_settings(LogSettings))
    settings = read_settings(PostgresSettings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    _keep_accounts(settings)
    with _server(settings, network=_network(settings)) as server:
        structlog.stdlib.get_logger("cronplane.postgres").info("PostgreSQL serves", port=settings.postgres_port)
        _wait_for_end(server.pid)
    raise CommandError("PostgreSQL ended by itself; its log says why")


def check() -> None:
    """Ask the server of this container whether it serves.

    Raises:
        CommandError: it does not.

    """
    settings = read_settings(PostgresSettings)
    try:
        psycopg.connect(
            host="localhost",
            port=settings.postgres_port,
            user=OWNER_ROLE,
            password=settings.postgres_owner_password.get_secret_value(),
            dbname=DATABASE,
            connect_timeout=_CHECK_TIMEOUT,
        ).close()
    except psycopg.OperationalError as error:
        raise CommandError(f"PostgreSQL does not serve: {str(error).strip()}") from error


def _keep_accounts(settings: PostgresSettings) -> None:
    """Bring roles and passwords up to date before anybody can come in, who would be told that they are wrong."""
    with _server(settings, network={}) as server:
        keep_accounts(
            server.url(),
            owner_password=settings.postgres_owner_password.get_secret_value(),
            service_password=settings.postgres_service_password.get_secret_value(),
        )


def _server(settings: PostgresSettings, *, network: dict[str, str]) -> EmbeddedPostgresql:
    return EmbeddedPostgresql(
        settings.postgres_directory / "postgresql",
        network,
        log_descriptor=sys.stdout.fileno(),
        start_timeout=_START_TIMEOUT,
    )


def _network(settings: PostgresSettings) -> dict[str, str]:
    return {
        "listen_addresses": "*",
        "port": str(settings.postgres_port),
        "hba_file": str(_written_authentication(settings.postgres_directory.resolve())),
        "password_encryption": "scram-sha-256",
    }


def _written_authentication(directory: Path) -> Path:
    path = directory / "pg_hba.conf"
    path.write_text(HOST_BASED_AUTHENTICATION, encoding="ascii")
    path.chmod(0o644)
    return path


def _end(*_: object) -> None:
    """Leave whatever is going on, whose server is stopped on the way out; a second signal would cut that short."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _wait_for_end(server: int) -> None:
    """Wait for the server, and on the way for everything else that has become a child of ours."""
    ended = 0
    while ended != server:
        ended, _ = os.waitpid(-1, 0)
