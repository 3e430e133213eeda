"""The one root of Cronplane's errors: catching it catches all that this project raises on purpose, and nothing else.

Each package has one root of its own below this; a subclass says what the caller does next.
"""


class CronplaneError(Exception):
    """Something that Cronplane refuses or could not do; the message says what to do about it."""
