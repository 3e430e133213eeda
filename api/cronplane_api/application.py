"""Puts the API together: routes, guards, problems, and what they share while the application runs."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.security import HTTPBearer
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import Lifespan

from cronplane_api import attempts, crons, entrypoints, health, organizations, problem_details, runs
from cronplane_api.access_log import AccessLog
from cronplane_api.attempt_proof import AnyProof, AttemptProof, ProofOpener, SignedTokenProof
from cronplane_api.batched_statements import cron_insertion, key_recognition
from cronplane_api.header_guard import HeaderGuard
from cronplane_api.http_metrics import HttpMetrics
from cronplane_api.pagination import cursor_secret
from cronplane_api.principals import key_digest
from cronplane_api.problem_details import ProblemBody
from cronplane_api.readiness_log import log_readiness
from cronplane_api.state import State
from cronplane_core import __version__
from cronplane_core.change_notifier import ChangeNotifier
from cronplane_core.database import create_engine, parse_url
from cronplane_core.metrics import ProcessMetrics
from cronplane_core.settings import ApiSettings
from cronplane_core.signed_tokens import TokenSigner, token_signer
from cronplane_entries.cron_request import leave_null_out
from cronplane_entries.entry_settings import read_entry_settings, read_execution_modes
from cronplane_entries.registration import Registrar
from cronplane_entries.registry import CronRegistry

_PUBLIC_PATHS = ("/healthz", "/metrics", "/readyz")
Background = Callable[[], AbstractAsyncContextManager[None]]


class Application(FastAPI):
    """FastAPI, with a document that tells of the key and of the problems."""

    def openapi(self) -> dict[str, Any]:
        """Describe the API, with the key that all but the health routes ask for."""
        if self.openapi_schema is None:
            _complete(super().openapi())
        return self.openapi_schema or {}


def _complete(document: dict[str, Any]) -> None:
    bearer = HTTPBearer(bearerFormat="cronplane_…").model
    problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": bearer.model_dump(by_alias=True, exclude_none=True, mode="json")}
    components["schemas"].update(problem.pop("$defs"), ProblemBody=problem)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                leave_null_out(parameter["schema"])
            operation["security"] = [] if path in _PUBLIC_PATHS else [{"key": []}]


def create_application(
    settings: ApiSettings,
    *,
    registry: CronRegistry,
    background: Sequence[Background] = (),
    metrics: ProcessMetrics | None = None,
    proof_opener: ProofOpener | None = None,
) -> FastAPI:
    """Make the application; `background` is entered when it starts and left when it stops, first in and last out.

    `metrics` are those of the process, if anything else in it has some. What `proof_opener` opens is a way by which
    attempts may prove themselves, besides tokens that the installation has signed.
    """
    process_metrics = metrics or ProcessMetrics()

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            application.state.cronplane = await stack.enter_async_context(
                _running_state(settings, registry, process_metrics, proof_opener)
            )
            for enter in background:
                await stack.enter_async_context(enter())
            yield

    application = _described(lifespan)
    application.add_middleware(HeaderGuard)
    application.add_middleware(AccessLog, metrics=HttpMetrics(process_metrics.registry))
    problem_details.install(application)
    for module in (crons, runs, attempts, entrypoints, organizations, health):
        application.include_router(module.router)
    return application


def _described(lifespan: Lifespan[FastAPI]) -> Application:
    return Application(
        title="Cronplane",
        version=__version__,
        summary="A control plane for typed cron jobs.",
        lifespan=lifespan,
        # The pages that FastAPI offers load their scripts from elsewhere; the document itself is at /openapi.json.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )


@asynccontextmanager
async def _running_state(
    settings: ApiSettings, registry: CronRegistry, metrics: ProcessMetrics, proof_opener: ProofOpener | None
) -> AsyncIterator[State]:
    url = parse_url(settings.database_url.get_secret_value())
    engine = create_engine(url, pool_size=settings.api_pool_size, application_name="cronplane-api")
    notifier = ChangeNotifier(engine)
    installation_key = settings.installation_key.get_secret_value()
    registrar = Registrar(
        registry=registry,
        settings=read_entry_settings(os.environ, registry),
        minimum_interval=settings.minimum_interval,
        cron_quota=settings.cron_quota,
    )
    signer = token_signer(settings)
    going = [asyncio.create_task(notifier.run()), asyncio.create_task(log_readiness(engine, entries=registry))]
    proofs = AsyncExitStack()
    try:
        yield State(
            engine=engine,
            metrics=metrics,
            notifier=notifier,
            registrar=registrar,
            execution_modes=read_execution_modes(os.environ, registry),
            key_recognition=key_recognition(engine),
            cron_insertion=cron_insertion(engine, registrar),
            body_limit=settings.body_limit,
            body_timeout=settings.body_timeout,
            triggers_per_minute=settings.triggers_per_minute,
            token_signer=signer,
            attempt_proof=await _attempt_proof(proofs, engine, signer, proof_opener),
            installation_key_digest=key_digest(installation_key),
            cursor_secret=cursor_secret(installation_key),
        )
    finally:
        await proofs.aclose()
        for task in going:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await engine.dispose()


async def _attempt_proof(
    stack: AsyncExitStack, engine: AsyncEngine, signer: TokenSigner | None, opener: ProofOpener | None
) -> AttemptProof | None:
    proofs: list[AttemptProof] = [] if signer is None else [SignedTokenProof(signer)]
    if opener is not None:
        proofs.append(await stack.enter_async_context(opener(engine)))
    return AnyProof(proofs) if proofs else None
