"""The runner as a process of its own."""

import asyncio
import gc
import signal
from functools import partial
from http import HTTPStatus

from cronplane_cli.environment import read_settings
from cronplane_core.log import configure_logging
from cronplane_core.metrics import METRICS_CONTENT_TYPE, ProcessMetrics
from cronplane_core.settings import LogSettings, RunnerSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner
from cronplane_operator.status_server import Page, Pages, probe, status_server


def serve() -> None:
    """Run the runner until SIGTERM or SIGINT, then drain."""
    configure_logging(read_settings(LogSettings))
    settings = read_settings(RunnerSettings)
    load_entries()
    collect_garbage_rarely()
    asyncio.run(_serve(settings))


def collect_garbage_rarely() -> None:
    """Spare a runner the collector's frequent looks at its many long-lived records, which took a fifth of a burst."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


async def _serve(settings: RunnerSettings) -> None:
    recorder = RunRecorder()
    runner = Runner(settings=settings, registry=CRON_REGISTRY, recorder=recorder)
    await run_until_signalled(runner, settings=settings, recorder=recorder)


async def run_until_signalled(runner: Runner, *, settings: RunnerSettings, recorder: RunRecorder) -> None:
    """Run a runner with its own server of metrics and probes until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runner.stop)
    pages = status_pages(settings, runner=runner, process=recorder.process)
    with status_server(host=settings.metrics_host, port=settings.metrics_port, pages=pages) as address:
        recorder.status_served(address=address)
        await runner.run()


def status_pages(settings: RunnerSettings, *, runner: Runner, process: ProcessMetrics) -> Pages:
    """Give what a runner's own server answers.

    It is ready while PostgreSQL answers, migrated, within the time after which a silent leader is leader no more.
    """
    is_fresh = partial(process.leadership.is_fresh, within=settings.lease_duration.total_seconds())
    return {
        "/metrics": lambda: Page(HTTPStatus.OK, METRICS_CONTENT_TYPE, process.render()),
        "/livez": probe(lambda: runner.pulse.is_alive, otherwise="the event loop hangs; start this process again"),
        "/readyz": probe(is_fresh, otherwise="PostgreSQL does not answer, or is not migrated; the log says which"),
    }
