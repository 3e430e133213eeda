"""What is left of an installation in its cluster is removed, once its operator has been stopped."""

import asyncio

from cronplane_cli.environment import read_settings
from cronplane_core.kubernetes_client import KubernetesClient
from cronplane_core.log import configure_logging
from cronplane_core.settings import KubernetesSettings, LogSettings, PodSettings
from cronplane_operator.uninstallation import Removal, Uninstallation


def run() -> Removal:
    """Remove the mirrors, the Runner and the Jobs of the installation that the environment names.

    Raises:
        CronplaneError: something could not be removed.

    """
    configure_logging(read_settings(LogSettings))
    return asyncio.run(_run(read_settings(KubernetesSettings), read_settings(PodSettings)))


async def _run(settings: KubernetesSettings, pods: PodSettings) -> Removal:
    async with KubernetesClient.connected(kubeconfig=settings.kubeconfig) as client:
        run_namespace = pods.run_namespace or settings.release_namespace
        return await Uninstallation(settings=settings, run_namespace=run_namespace, client=client).run()
