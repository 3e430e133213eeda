"""What every process tells Prometheus, whatever its role; a role adds its own metrics to the same registry.

One registry per process rather than the library's global one, so that two applications in one process, as in tests, do
not count for each other. No label names a cron, a run or an organization: it would grow without bound, and tell one
tenant of another.
"""

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Info, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from cronplane_core import __version__
from cronplane_core.leadership import Leadership

METRICS_CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMetrics:
    """The registry of one process, with what it knows of the leader and of itself in it already."""

    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=True))
    leadership: Leadership = field(default_factory=Leadership)

    def __post_init__(self) -> None:
        # A series more for each series, with nothing in it that Prometheus would not know.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left its annotations out here
        ProcessCollector(registry=self.registry)
        Info("cronplane_build", "Version of Cronplane", registry=self.registry).info({"version": __version__})
        self.registry.register(self.leadership)

    def render(self) -> bytes:
        """Write every metric in Prometheus' text format; any thread may ask."""
        return generate_latest(self.registry)
