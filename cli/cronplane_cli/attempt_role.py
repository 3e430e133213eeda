"""One attempt of one run, as the process of a pod: its exit code is the Job's."""

import asyncio
import os
import signal
import sys

import aiohttp

from cronplane_cli.environment import read_settings
from cronplane_core.log import configure_logging
from cronplane_core.settings import AttemptSettings, LogSettings
from cronplane_entries.entry_settings import read_entry_settings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_operator.pod_attempt import AttemptApi, AttemptPlace, PodAttempt
from cronplane_operator.pod_outcome import ExitCode


def serve() -> int:
    """Run the attempt that the environment names, and give the process's exit code."""
    configure_logging(read_settings(LogSettings))
    settings = read_settings(AttemptSettings)
    load_entries()
    return asyncio.run(_serve(settings))


async def _serve(settings: AttemptSettings) -> ExitCode:
    place = AttemptPlace(
        api_url=settings.run_api_url,
        run_id=settings.run_id,
        number=settings.attempt,
        token_file=settings.attempt_token_file,
        location=settings.attempt_location,
    )
    # No proxy from the environment: the token goes to the API and nowhere else.
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15.0), trust_env=False) as session:
        # The pods of one profile are told the same; a secret that another entry needs is not among it.
        told = read_entry_settings(os.environ, CRON_REGISTRY, only=settings.attempt_entrypoint)
        attempt = PodAttempt(api=AttemptApi(place, session), settings=told, tell=_tell)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, attempt.terminate)
        return await attempt.run()


def _tell(line: str) -> None:
    sys.stderr.write(f"cronplane: {line}\n")
