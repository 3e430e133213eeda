"""Named places between two effects, at which a crash leaves one done and the other not.

Tests install a handler and kill, stop or break the process there. Without a handler, which is how the product runs,
reaching one does nothing: no setting and no environment variable is read here, and nothing can be armed from outside.
"""

import enum
from collections.abc import Callable


class Failpoint(enum.StrEnum):
    """Every such place, named after the effect that comes next or, in the past tense, the one that is just done."""

    API_COMMITTED = "api-committed"
    NOTIFY = "notify"
    CLAIM_COMMIT = "claim-commit"
    CLAIM_COMMITTED = "claim-committed"
    START_COMMIT = "start-commit"
    START_COMMITTED = "start-committed"
    BODY = "body"
    RESULT = "result"
    FINISH_COMMIT = "finish-commit"
    FINISH_COMMITTED = "finish-committed"
    LEASE_RENEWAL = "lease-renewal"
    LEASE_RELEASE = "lease-release"
    HAND_BACK_COMMIT = "hand-back-commit"
    JOB_CREATE = "job-create"
    JOB_CREATED = "job-created"
    ATTEMPT_START = "attempt-start"
    ATTEMPT_STARTED = "attempt-started"
    ATTEMPT_FINISH = "attempt-finish"
    ATTEMPT_FINISHED = "attempt-finished"
    JOB_START_COMMIT = "job-start-commit"
    JOB_START_COMMITTED = "job-start-committed"
    JOB_RESUMED = "job-resumed"


Handler = Callable[[str], None]
_handler: Handler | None = None


def install(handler: Handler) -> None:
    """Have `handler` called with the name of each place that is reached; it may raise, or not return at all."""
    global _handler  # noqa: PLW0603 - one per process, as the places are
    _handler = handler


def reach(name: str) -> None:
    """Tell that a place is reached."""
    if _handler is not None:
        _handler(name)
