"""The migration, run by the role that owns the schema, and the organizations that the administrator declares."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import psycopg
from sqlalchemy import URL

from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_core.database import connection_string, create_engine, parse_url, transaction
from cronplane_core.log import configure_logging
from cronplane_core.organization_repository import declare_organization
from cronplane_core.settings import DeclaredOrganization, LogSettings, MigrationSettings
from cronplane_entries.registration import name_errors
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_migrations.migrate import Migration, migrate

# Seconds between two looks at whether the database is there.
_PAUSE = 1.0
_CONNECT_TIMEOUT = 5


def run(*, wait: timedelta) -> Iterator[str]:
    """Bring the database up to this version and let the service's role in, then let there be what was declared.

    It tells each thing that it did, in a sentence. `wait` is how long it may take until the database answers.

    Raises:
        CronplaneError: it could not; what it has told of is done.

    """
    configure_logging(read_settings(LogSettings))
    settings = read_settings(MigrationSettings)
    load_entries()
    limits = _limits(settings.organizations)
    url = parse_url(settings.owner_database_url.get_secret_value())
    _wait_for_database(url, patience=wait)
    migration = migrate(url, entries=[str(name) for name in CRON_REGISTRY], service_role=settings.service_role)
    yield _sentence(migration)
    yield from asyncio.run(_declare(url, limits))


def _sentence(migration: Migration) -> str:
    added = ", ".join(migration.added_entries) or "none"
    if migration.notice is not None:
        return f"{migration.notice}; entries added: {added}."
    before = migration.revision_before or "an empty database"
    return f"The schema went from {before} to {migration.revision}; entries added: {added}."


def _limits(declared: Mapping[str, DeclaredOrganization]) -> dict[str, dict[str, Any]]:
    """Give what each organization is to have, before anything is changed.

    Raises:
        CommandError: a name is none that an organization may have, or an entry is none.

    """
    limits = {}
    for name, organization in sorted(declared.items()):
        for error in name_errors(name):
            raise CommandError(f"Set CRONPLANE_ORGANIZATIONS right: {name!r}: {error.message}")
        for entry in organization.entrypoints or ():
            if entry not in CRON_REGISTRY:
                raise CommandError(
                    f"Set CRONPLANE_ORGANIZATIONS right: {name!r} is granted {entry!r}, and there is no such entry here"
                )
        limits[name] = organization.model_dump(exclude_unset=True)
        if organization.entrypoints is not None:
            limits[name]["entrypoints"] = frozenset(organization.entrypoints)
    return limits


def _wait_for_database(url: URL, *, patience: timedelta) -> None:
    """Wait until the owner gets in; a role or a password that is refused may be made meanwhile, as a server is."""
    give_up = time.monotonic() + patience.total_seconds()
    while True:
        try:
            psycopg.connect(connection_string(url), connect_timeout=_CONNECT_TIMEOUT).close()
        except psycopg.OperationalError as error:
            if time.monotonic() >= give_up:
                raise CommandError(f"The database does not let the owner in: {str(error).strip()}") from error
            time.sleep(_PAUSE)
        else:
            return


async def _declare(url: URL, limits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    engine = create_engine(url, pool_size=1, application_name="cronplane-migrate")
    try:
        async with transaction(engine) as connection:
            done = [await declare_organization(connection, name=name, limits=each) for name, each in limits.items()]
    finally:
        await engine.dispose()
    return [f"Organization {found.name} ({found.id}): {declaration}." for found, declaration in done]
