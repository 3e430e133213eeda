"""The root of this package's errors."""

from cronplane_core.errors import CronplaneError


class RunnerError(CronplaneError):
    """Something that the runner refuses or could not do."""
