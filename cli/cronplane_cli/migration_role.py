"""The migration, run by the role that owns the schema."""

from cronplane_cli.environment import read_settings
from cronplane_core.database import parse_url
from cronplane_core.log import configure_logging
from cronplane_core.settings import LogSettings, MigrationSettings
from cronplane_entries.registry import CRON_REGISTRY, load_entries
from cronplane_migrations.migrate import Migration, migrate


def run() -> Migration:
    """Bring the database up to this version and let the service's role in."""
    configure_logging(read_settings(LogSettings))
    settings = read_settings(MigrationSettings)
    load_entries()
    url = parse_url(settings.owner_database_url.get_secret_value())
    return migrate(url, entries=[str(name) for name in CRON_REGISTRY], service_role=settings.service_role)
