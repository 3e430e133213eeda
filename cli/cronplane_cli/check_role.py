"""The check of the whole record, for a person or for a monitor: a line per violation, and none if all is well."""

import asyncio
import json
from collections.abc import AsyncIterator

import typer

from cronplane_cli.environment import read_settings
from cronplane_core.account import Violation
from cronplane_core.account_repository import Grace, find_violations
from cronplane_core.database import create_engine, parse_url
from cronplane_core.settings import DatabaseSettings


def run(*, as_json: bool) -> int:
    """Print every violation as it is found; returns how many there are.

    Raises:
        DatabaseUnavailableError: PostgreSQL was not there.

    """
    return asyncio.run(_run(read_settings(DatabaseSettings), as_json=as_json))


async def _run(settings: DatabaseSettings, *, as_json: bool) -> int:
    url = parse_url(settings.database_url.get_secret_value())
    engine = create_engine(url, pool_size=1, application_name="cronplane-check")
    try:
        return await _print(find_violations(engine, grace=Grace()), as_json=as_json)
    finally:
        await engine.dispose()


async def _print(violations: AsyncIterator[Violation], *, as_json: bool) -> int:
    count = 0
    async for violation in violations:
        count += 1
        typer.echo(_json(violation) if as_json else _line(violation))
    return count


def _line(violation: Violation) -> str:
    run_id = "" if violation.run_id is None else f" run {violation.run_id}"
    at = violation.at.isoformat()
    return f"{violation.kind.value:<11} cron {violation.cron_id}{run_id} at {at}: {violation.message}"


def _json(violation: Violation) -> str:
    return json.dumps(
        {
            "kind": violation.kind.value,
            "cron_id": str(violation.cron_id),
            "run_id": None if violation.run_id is None else str(violation.run_id),
            "at": violation.at.isoformat(),
            "message": violation.message,
        }
    )
