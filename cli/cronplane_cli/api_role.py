"""The API as a process of its own."""

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
    application = create_application(settings, registry=CRON_REGISTRY)
    uvicorn.run(application, host=settings.host, port=settings.port, **server_options(settings))
