"""The root of this package's errors."""

from cronplane_core.errors import CronplaneError


class RunnerError(CronplaneError):
    """Something that the runner refuses or could not do."""


class SchemaUnfitError(RunnerError):
    """The schema has become one that this version must not serve with; the message says what to do about it."""
