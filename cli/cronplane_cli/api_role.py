"""The API as a process of its own."""

import signal
from importlib import import_module

import uvicorn

from cronplane_api.application import create_application
from cronplane_api.server import server_options
from cronplane_cli.environment import read_settings
from cronplane_core.log import configure_logging
from cronplane_core.settings import ApiSettings, LogSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries


def serve() -> None:
    """Serve the API until SIGTERM or SIGINT."""
    configure_logging(read_settings(LogSettings))
    settings = read_settings(ApiSettings)
    load_entries()
    opener = None
    if settings.pod_attempts:
        # Only here: without a cluster, nothing of Kubernetes has to be installed.
        opener = import_module("cronplane_api.token_review_proof").opener(kubeconfig=settings.kubeconfig)
    application = create_application(settings, registry=CRON_REGISTRY, proof_opener=opener)
    # Uvicorn takes the signals while it serves, and gives them on to these handlers when it has drained.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.run(application, host=settings.host, port=settings.port, **server_options(settings))
