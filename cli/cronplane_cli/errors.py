"""The root of this package's errors: what a command says before it ends with status 1."""

from cronplane_core.errors import CronplaneError


class CommandError(CronplaneError):
    """The command could not do what it was asked; the message says what to do about it."""
