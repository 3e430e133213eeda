"""The runner as a process of its own."""

import asyncio
import gc
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
    collect_garbage_rarely()
    asyncio.run(_run_until_signalled(settings))


def collect_garbage_rarely() -> None:
    """Spare a runner the collector's frequent looks at its many long-lived records, which took a fifth of a burst."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


async def _run_until_signalled(settings: RunnerSettings) -> None:
    runner = Runner(settings=settings, registry=CRON_REGISTRY)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.stop)
    await runner.run()
