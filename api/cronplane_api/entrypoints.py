"""The route of entries: which there are, and what each asks for."""

from fastapi import APIRouter, Request

from cronplane_api.guarded_route import GuardedRoute
from cronplane_api.principals import Access, requires
from cronplane_api.schemas import EntrypointList, EntrypointRead
from cronplane_api.state import principal_of, state_of

router = APIRouter(tags=["entrypoints"], route_class=GuardedRoute)


@router.get("/entrypoints", operation_id="list_entrypoints")
@requires(Access.ANY_KEY)
async def list_entrypoints(request: Request) -> EntrypointList:
    """List every entry that is granted, with the JSON Schema of the payload that it asks for."""
    state, key = state_of(request), principal_of(request).key
    registry, modes = state.registrar.registry, state.execution_modes
    granted = sorted(name for name in registry if key is None or principal_of(request).organization.may_use(name))
    return EntrypointList(
        items=[EntrypointRead.of(str(name), registry[name], execution=modes[str(name)]) for name in granted]
    )
