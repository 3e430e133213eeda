"""The route class of the whole API: who may pass, what may be asked, and which bodies are read, before FastAPI parses.

So a stranger's body is never looked at, and FastAPI sees only JSON that was read strictly. A body has a limit of size
and one of time, each for the whole of it, so that nobody makes this process keep much, or for long.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from uuid import UUID

from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import text
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cronplane_api import strict_json
from cronplane_api.errors import (
    INVALID,
    MALFORMED,
    TOO_LARGE,
    TOO_SLOW,
    UNAUTHENTICATED,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemDetail,
    ProblemError,
)
from cronplane_api.principals import Access, Principal, access_of, authorize, bearer_key, is_installation_key
from cronplane_api.problem_details import documented
from cronplane_api.state import state_of
from cronplane_core import lease
from cronplane_core.database import autocommit
from cronplane_core.signed_tokens import TokenInvalidError
from cronplane_core.tables import Role

LONGEST_QUERY = 8192
# The end of an attempt with a result and an output at their bounds, with every character escaped.
LARGEST_END = 1024 * 1024
# For the description of a query that is a text; the guard refuses NUL in every query, before any pattern is asked.
WITHOUT_NUL = r"^[^\x00]*$"
_MOST_LENGTH_DIGITS = 20
_NOW = text("SELECT scheduler.now()")
_UUID = TypeAdapter(UUID)


class StrictRequest(Request):
    """A request whose body is bounded and strictly JSON."""

    async def body(self) -> bytes:
        """Read the body, as long as it is within the limits, however it is sent."""
        if not hasattr(self, "_body"):
            state = state_of(self)
            try:
                async with asyncio.timeout(state.body_timeout.total_seconds()):
                    self._body = await self._read(_body_limit(self))
            except ClientDisconnect as error:
                raise ProblemError(MALFORMED, "The body ended before it was whole") from error
            except TimeoutError as error:
                seconds = state.body_timeout.total_seconds()
                raise ProblemError(TOO_SLOW, f"The body did not arrive within {seconds:g} seconds") from error
        return self._body

    async def _read(self, limit: int) -> bytes:
        body = bytearray()
        async for chunk in self.stream():
            if len(body) + len(chunk) > limit:
                raise ProblemError(TOO_LARGE, f"The body has more than {limit} bytes")
            body += chunk
        return bytes(body)

    async def json(self) -> Any:  # noqa: ANN401 - Starlette's own signature
        """Read the body as JSON."""
        if not hasattr(self, "_json"):
            self._json = strict_json.parse(await self.body())
        return self._json


class GuardedRoute(APIRoute):
    """Lets those pass whom the endpoint is for (`principals.requires`); an endpoint that does not say is a defect."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI has 30
        super().__init__(path, endpoint, **options)
        self.responses = documented(*self._refusals()) | self.responses

    def _refusals(self) -> Iterator[int]:
        """Name the statuses of the guards' own, for the description of the API."""
        yield from (400, 422)
        if access_of(self.endpoint) is not Access.PUBLIC:
            yield from (401, 503)
        if self.body_field is not None:
            yield from (408, 413, 415)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the guards before FastAPI's own handler."""
        handle = super().get_route_handler()
        access = access_of(self.endpoint)
        known_queries = {parameter.alias for parameter in self.dependant.query_params}
        takes_body = self.body_field is not None

        async def guarded(plain: Request) -> Response:
            request = StrictRequest(plain.scope, plain.receive)
            if access is Access.TOKEN:
                await _check_token(request)
            elif access is not Access.PUBLIC:
                await _admit(request, access)
            _check_queries(request, known_queries)
            if takes_body:
                await _check_body(request)
            return await handle(request)

        return guarded


async def _admit(request: Request, access: Role | Access) -> None:
    state = state_of(request)
    key_text = bearer_key(request)
    if is_installation_key(key_text, state.installation_key_digest):
        async with autocommit(state.engine) as connection:
            principal = Principal(key=None, now=await connection.scalar(_NOW))
    else:
        key = await state.key_recognition.call(None, key_text)
        if key is None:
            raise ProblemError(UNAUTHENTICATED, "The key is unknown or revoked")
        principal = Principal(key=key, now=key.now)
    authorize(principal, access, organization_id=_organization_id(request))
    request.state.principal = principal


async def _check_token(request: Request) -> None:
    """Let nobody's body be read who proves no attempt; what else a token is good for, the endpoint finds out."""
    signer, token = state_of(request).token_signer, bearer_key(request)
    if "number" in request.path_params:
        request.state.attempt_owner = await _prove_attempt(request, token)
    elif signer is None or not signer.recognizes(token):
        raise _not_proven()


async def _prove_attempt(request: Request, token: str) -> UUID | None:
    state = state_of(request)
    if state.attempt_proof is None:
        raise ProblemError(UNAUTHENTICATED, "The installation has no keys for tokens of runs: set CRONPLANE_TOKEN_KEYS")
    try:
        run_id, number = UUID(request.path_params["run_id"]), int(request.path_params["number"])
        async with autocommit(state.engine) as connection:
            now = await lease.database_time(connection)
        return await state.attempt_proof.prove(token, run_id=run_id, number=number, now=now)
    except (ValueError, TokenInvalidError) as error:
        raise _not_proven() from error


def _not_proven() -> ProblemError:
    return ProblemError(UNAUTHENTICATED, "Send the token that is good for this run: Authorization: Bearer …")


def _organization_id(request: Request) -> UUID | None:
    written = request.path_params.get("organization_id")
    try:
        # As FastAPI reads it later: UUID() alone takes the digits of every script.
        return None if written is None else _UUID.validate_strings(written)
    except ValidationError as error:
        detail = ProblemDetail(pointer="path.organization_id", message="this is no UUID", type="uuid_parsing")
        raise ProblemError(INVALID, "The organization in the path is no UUID", errors=[detail]) from error


def _check_queries(request: Request, known: set[str]) -> None:
    if len(request.scope["query_string"]) > LONGEST_QUERY:
        raise ProblemError(INVALID, f"The query has more than {LONGEST_QUERY} bytes")
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        message = f"there is no such parameter; known: {', '.join(sorted(known)) or 'none'}"
        raise ProblemError(
            INVALID,
            "The query has parameters that are not known",
            errors=[ProblemDetail(pointer=f"query.{name[:100]}", message=message, type="unknown") for name in unknown],
        )
    if nul := [name for name, value in request.query_params.multi_items() if "\0" in value]:
        message = "a NUL character is no part of any name here"
        details = [ProblemDetail(pointer=f"query.{name}", message=message, type="nul_character") for name in nul]
        raise ProblemError(INVALID, "The query has a NUL character", errors=details)


async def _check_body(request: Request) -> None:
    limit = _body_limit(request)
    if _declared_length(request) > limit:
        raise ProblemError(TOO_LARGE, f"The body has more than {limit} bytes")
    if not await request.body():
        return
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "Send the body as it is, without a Content-Encoding")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ProblemError(UNSUPPORTED_MEDIA_TYPE, "Send JSON, with Content-Type: application/json")
    # Here, and kept for FastAPI, which would give a refusal of ours in words of its own.
    await request.json()


def _body_limit(request: Request) -> int:
    """Give how many bytes are read: from an attempt that has proven itself also a result with all that was printed."""
    limit = state_of(request).body_limit
    return max(limit, LARGEST_END) if hasattr(request.state, "attempt_owner") else limit


def _declared_length(request: Request) -> int:
    written = request.headers.get("content-length", "0")
    if not (written.isascii() and written.isdecimal() and len(written) <= _MOST_LENGTH_DIGITS):
        raise ProblemError(MALFORMED, "Content-Length is no number of bytes")
    return int(written)
