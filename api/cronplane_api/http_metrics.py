"""What the API tells Prometheus of its requests: how many, how they were answered, and how long it took.

A label is never what a client made up: an unknown path is `(none)`, and an unknown method `(other)`.
"""

from http import HTTPMethod

from prometheus_client import CollectorRegistry, Histogram

_METHODS = frozenset(HTTPMethod)
_OTHER_METHOD = "(other)"
# Seconds; a request that is not answered within a second waits for PostgreSQL, or for its client.
_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class HttpMetrics:
    """The API's meters, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Histogram(
            "cronplane_http_request_duration_seconds",
            "From the head of a request to the end of its answer",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=registry,
        )

    def answered(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Take in a request; `route` is its template, and a `status` of 0 says that there was no answer."""
        known_method = method if method in _METHODS else _OTHER_METHOD
        self._requests.labels(known_method, route, str(status)).observe(seconds)
