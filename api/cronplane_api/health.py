"""The routes that tell whether this process lives, whether it can serve, and how it and the leader are doing.

They ask for no key, as probes and scrapers have none, and tell nothing of any tenant.
"""

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from cronplane_api.errors import NOT_READY, ProblemError
from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.principals import Access, requires
from cronplane_api.problem_details import documented
from cronplane_api.schemas import Health
from cronplane_api.state import state_of
from cronplane_core.database import autocommit
from cronplane_core.metrics import METRICS_CONTENT_TYPE
from cronplane_core.readiness import find_readiness

router = APIRouter(tags=["health"], route_class=GuardedRoute)


@router.get("/healthz", operation_id="healthz")
@requires(Access.PUBLIC)
async def healthz() -> Health:
    """Tell that the process lives."""
    return Health()


@router.get("/readyz", responses=documented(503), operation_id="readyz")
@requires(Access.PUBLIC)
async def readyz(request: Request) -> Health:
    """Tell that the database answers, has a schema for this version, and knows every entry of this process."""
    state = state_of(request)
    async with autocommit(state.engine) as connection:
        readiness = await find_readiness(connection, entries=state.registrar.registry)
    if readiness.obstacle is not None:
        raise ProblemError(NOT_READY, readiness.obstacle)
    return Health()


@router.get("/metrics", response_class=PlainTextResponse, operation_id="metrics")
@requires(Access.PUBLIC)
async def metrics(request: Request) -> Response:
    """Give this process' metrics in Prometheus' text format, the leader's age among them, also without a database."""
    state = state_of(request)
    await state.metrics.leadership.look(state.engine)
    return Response(state.metrics.render(), media_type=METRICS_CONTENT_TYPE)
