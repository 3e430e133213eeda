"""The runner as a process of its own."""

import asyncio
import signal

from cronplane_cli.environment import read_settings
from cronplane_core.log import configure_logging
from cronplane_core.settings import LogSettings, RunnerSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_operator.runner import Runner


def serve() -> None:
    """Run the runner until SIGTERM or SIGINT, then drain."""
    configure_logging(read_settings(LogSettings))
    settings = read_settings(RunnerSettings)
    load_entries()
    asyncio.run(_run_until_signalled(settings))


async def _run_until_signalled(settings: RunnerSettings) -> None:
    runner = Runner(settings=settings, registry=CRON_REGISTRY)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.stop)
    await runner.run()
