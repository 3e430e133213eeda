"""The runner in a cluster, as a process of its own: beside it go the mirror, the Runner resource, and kopf."""

import asyncio

from cronplane_cli.environment import read_settings
from cronplane_cli.runner_role import collect_garbage_rarely, run_until_signalled
from cronplane_core.kubernetes_client import KubernetesClient
from cronplane_core.log import configure_logging
from cronplane_core.settings import KubernetesSettings, LogSettings, RunnerSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_operator.cron_mirror import CronMirror
from cronplane_operator.kopf_watch import KopfWatch
from cronplane_operator.run_recorder import RunRecorder
from cronplane_operator.runner import Runner
from cronplane_operator.runner_resource import RunnerResource


def serve() -> None:
    """Run the operator until SIGTERM or SIGINT, then drain."""
    configure_logging(read_settings(LogSettings))
    settings, cluster = read_settings(RunnerSettings), read_settings(KubernetesSettings)
    load_entries()
    collect_garbage_rarely()
    asyncio.run(_serve(settings, cluster))


async def _serve(settings: RunnerSettings, cluster: KubernetesSettings) -> None:
    async with KubernetesClient.connected(kubeconfig=cluster.kubeconfig) as client:
        mirror = CronMirror(settings=cluster, client=client)
        resource = RunnerResource(
            settings=cluster, client=client, mirror=lambda: mirror.state, watch=lambda: watch.state
        )
        recorder = RunRecorder(listeners=[mirror, resource])

        watch = KopfWatch(
            namespaces=mirror.namespaces,
            kubeconfig=cluster.kubeconfig,
            on_event=mirror.resource_seen,
            on_ended=lambda reason: recorder.watch_ended(reason=reason),
        )
        runner = Runner(settings=settings, registry=CRON_REGISTRY, recorder=recorder, extensions=[mirror, resource])
        watch.start()
        try:
            await run_until_signalled(runner, settings=settings, recorder=recorder)
        finally:
            await watch.stop()
