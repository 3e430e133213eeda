"""Everything in one process, for a laptop or a small service: PostgreSQL, migrations, API and runner.

It composes the same parts as an installation and adds nothing of its own but where they keep things.
"""

import asyncio
import logging
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import typer
import uvicorn
from pydantic import SecretStr
from sqlalchemy import URL

from cronplane_api.application import create_application
from cronplane_api.server import server_options
from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_cli.guide import Guide, write_secret
from cronplane_cli.runner_role import collect_garbage_rarely
from cronplane_core.database import parse_url
from cronplane_core.embedded_postgresql import EmbeddedPostgresql, is_reachable_by_everybody
from cronplane_core.log import configure_logging
from cronplane_core.metrics import ProcessMetrics
from cronplane_core.settings import ApiSettings, LogFormat, LogSettings, RunnerSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_migrations.migrate import migrate
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner

SERVICE_ROLE = "cronplane_service"
# As root, PostgreSQL runs as another user, who cannot look into a home directory such as /root.
_ROOT_DATA_DIRECTORY = Path("/var/lib/cronplane")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `cronplane dev` was asked for. `database_url` is the owner's; without it a PostgreSQL is embedded."""

    data_directory: Path
    database_url: str | None
    host: str
    port: int


def serve(options: Options) -> None:
    """Run everything until SIGINT or SIGTERM, and leave nothing running.

    Raises:
        CronplaneError: something could not be started; what had been started is stopped.

    """
    configure_logging(_log_settings())
    # A line per finished run is what a person watches here; one per request would bury it.
    for name in ("cronplane.api.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    load_entries()
    collect_garbage_rarely()
    asyncio.run(_serve(options))


def _log_settings() -> LogSettings:
    chosen = read_settings(LogSettings)
    if "log_format" in chosen.model_fields_set:
        return chosen
    return chosen.model_copy(update={"log_format": LogFormat.CONSOLE})


async def _serve(options: Options) -> None:
    data_directory = _data_directory(options)
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listener(options))
        owner = _database(options, data_directory, stack)
        service = owner.set(username=SERVICE_ROLE) if options.database_url is None else owner
        migrate(owner, entries=[str(name) for name in CRON_REGISTRY], service_role=SERVICE_ROLE)
        installation_key = _secret(data_directory, "installation_key")
        token_keys = SecretStr(f"own:{_secret(data_directory, 'token_key')}")
        database_url = SecretStr(service.render_as_string(hide_password=False))
        settings = ApiSettings(
            database_url=database_url, installation_key=SecretStr(installation_key), token_keys=token_keys
        )
        runner_settings = RunnerSettings(database_url=database_url, token_keys=token_keys)
        metrics = ProcessMetrics()
        application = create_application(
            settings, registry=CRON_REGISTRY, background=[lambda: _running(runner_settings, metrics)], metrics=metrics
        )
        config = uvicorn.Config(application, lifespan="on", **server_options(settings))
        host, port = listener.getsockname()[:2]
        guide = Guide(
            url=f"http://{host}:{port}",
            installation_key=installation_key,
            key_file=data_directory / "api_key",
        )
        await _serve_until_signalled(uvicorn.Server(config), listener, guide)
        typer.echo("Stopping …")


async def _serve_until_signalled(server: uvicorn.Server, listener: socket.socket, guide: Guide) -> None:
    """Serve; uvicorn takes the signals while it does, and gives them on to these handlers when it has ended."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None)
    welcome = asyncio.create_task(_welcome(guide, server))
    await server.serve(sockets=[listener])
    await welcome


async def _welcome(guide: Guide, server: uvicorn.Server) -> None:
    """Show the newcomer around; if that fails, so does the start, but a signal meanwhile is no failure."""
    try:
        await asyncio.to_thread(guide.welcome)
    except (CommandError, httpx2.HTTPError) as error:
        if not server.should_exit:
            server.should_exit = True
            raise CommandError(f"A first key could not be made: {error}") from error


def _listener(options: Options) -> socket.socket:
    try:
        return socket.create_server((options.host, options.port))
    except OSError as error:
        raise CommandError(
            f"Cannot listen on {options.host}:{options.port} ({error.strerror}); choose another with --port"
        ) from error


def _data_directory(options: Options) -> Path:
    """Make the folder, readable by nobody else but its own name; as root, where PostgreSQL's user can get to."""
    directory = options.data_directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if options.database_url is None and os.geteuid() == 0 and not is_reachable_by_everybody(directory):
        directory = _ROOT_DATA_DIRECTORY
        directory.mkdir(parents=True, exist_ok=True)
        typer.echo(f"As root, PostgreSQL's user cannot reach {options.data_directory}; the data is in {directory}.")
    return directory


def _secret(data_directory: Path, name: str) -> str:
    """Give a secret that is made once and kept."""
    path = data_directory / name
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="ascii")


def _database(options: Options, data_directory: Path, stack: AsyncExitStack) -> URL:
    if options.database_url is not None:
        return parse_url(options.database_url)
    postgresql = stack.enter_context(EmbeddedPostgresql(data_directory / "postgresql"))
    return parse_url(postgresql.url())


@asynccontextmanager
async def _running(settings: RunnerSettings, metrics: ProcessMetrics) -> AsyncIterator[None]:
    runner = Runner(settings=settings, registry=CRON_REGISTRY, recorder=RunRecorder(metrics))
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        runner.stop()
        await task
