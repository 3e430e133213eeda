"""What the application's parts share while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import Request

from cronplane_api.attempt_proof import AttemptProof, ProvenAttempt
from cronplane_api.batched_statements import CronInsertion, KeyRecognition
from cronplane_api.principals import Principal
from cronplane_core.change_notifier import ChangeNotifier
from cronplane_core.metrics import ProcessMetrics
from cronplane_core.signed_tokens import TokenSigner
from cronplane_entries.core import ExecutionMode
from cronplane_entries.registration import Registrar


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Made when the application starts. `cursor_secret` signs cursors; `installation_key_digest` knows its key.

    `execution_modes` says of each entry where it runs, by the settings.
    """

    engine: AsyncEngine
    metrics: ProcessMetrics
    notifier: ChangeNotifier
    registrar: Registrar
    execution_modes: Mapping[str, ExecutionMode]
    key_recognition: KeyRecognition
    cron_insertion: CronInsertion
    body_limit: int
    body_timeout: timedelta
    triggers_per_minute: int
    token_signer: TokenSigner | None
    attempt_proof: AttemptProof | None
    installation_key_digest: bytes
    cursor_secret: bytes


def state_of(request: Request) -> State:
    """Give the state of the application that serves a request."""
    state: State = request.app.state.cronplane
    return state


def principal_of(request: Request) -> Principal:
    """Give whom the route has let pass."""
    principal: Principal = request.state.principal
    return principal


def attempt_of(request: Request, *, run_id: UUID, number: int) -> ProvenAttempt:
    """Give the attempt, named by the path, that the route has let pass."""
    return ProvenAttempt(organization_id=request.state.attempt_owner, run_id=run_id, number=number)
