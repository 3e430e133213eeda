"""The root of this package's errors: each carries the problem that a client is answered with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cronplane_core.errors import CronplaneError

PROBLEM_TYPES = "https://cronplane.dev/problems/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemDetail:
    """One thing that is wrong with a request: where (RFC 6901, empty for the whole body), what, and a stable word."""

    pointer: str
    message: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a client is told (RFC 9457): `slug` ends its type, and is as stable as the type."""

    status: int
    slug: str
    title: str
    headers: Mapping[str, str] = field(default_factory=dict)


class ProblemError(CronplaneError):
    """Ends a request with a problem; `detail` is a sentence that a person can act on."""

    def __init__(self, problem: Problem, detail: str, *, errors: Iterable[ProblemDetail] = ()) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.errors = tuple(errors)


MALFORMED = Problem(status=400, slug="malformed-request", title="The request cannot be read")
INVALID_CURSOR = Problem(status=400, slug="invalid-cursor", title="The cursor is not one of ours")
UNAUTHENTICATED = Problem(
    status=401,
    slug="unauthenticated",
    title="A good key is needed",
    headers={"WWW-Authenticate": 'Bearer realm="cronplane"'},
)
FORBIDDEN = Problem(status=403, slug="forbidden", title="The key's role does not allow this")
ENTRY_NOT_GRANTED = Problem(status=403, slug="entry-not-granted", title="The organization may not use this entry")
NOT_FOUND = Problem(status=404, slug="not-found", title="There is no such thing")
METHOD_NOT_ALLOWED = Problem(status=405, slug="method-not-allowed", title="This method is not served here")
CONFLICT = Problem(status=409, slug="conflict", title="The request is at odds with what is there")
IDEMPOTENCY_KEY_REUSED = Problem(
    status=409, slug="idempotency-key-reused", title="The Idempotency-Key belongs to another request"
)
DEFINED_BY_RESOURCE = Problem(
    status=409, slug="defined-by-resource", title="The cron is defined by a resource in the cluster"
)
ATTEMPT_OVER = Problem(status=409, slug="attempt-over", title="The attempt is over, or it is another's")
NOT_HANDED_ON = Problem(
    status=409, slug="not-handed-on", title="The run does not wait to be told of its end", headers={"Retry-After": "1"}
)
PRECONDITION_FAILED = Problem(status=412, slug="precondition-failed", title="It has been changed meanwhile")
TOO_SLOW = Problem(status=408, slug="body-too-slow", title="The body took too long", headers={"Connection": "close"})
TOO_LARGE = Problem(status=413, slug="body-too-large", title="The body is too large")
UNSUPPORTED_MEDIA_TYPE = Problem(status=415, slug="unsupported-media-type", title="The body must be plain JSON")
INVALID = Problem(status=422, slug="invalid-request", title="The request is refused as it is")
QUOTA_EXCEEDED = Problem(status=429, slug="quota-exceeded", title="The organization has no more of this")
INTERNAL = Problem(status=500, slug="internal-error", title="Something went wrong on our side")
NOT_READY = Problem(status=503, slug="not-ready", title="Not ready to serve", headers={"Retry-After": "5"})
UNAVAILABLE = Problem(
    status=503, slug="database-unavailable", title="The database does not answer", headers={"Retry-After": "5"}
)

ALL_PROBLEMS = tuple(value for value in globals().copy().values() if isinstance(value, Problem))


def not_found() -> ProblemError:
    """Say that something is absent, in the same words whether it is absent or another organization's."""
    return ProblemError(NOT_FOUND, "There is nothing here, or your key does not reach it")
