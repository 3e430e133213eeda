"""Carries a change out: one transaction, committed before the answer is sent, and once per Idempotency-Key."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypedDict

from fastapi import Header
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from cronplane_api.errors import PRECONDITION_FAILED, ProblemError
from cronplane_api.state import principal_of, state_of
from cronplane_core import failpoints, idempotency_repository
from cronplane_core.change_notifier import Channel
from cronplane_core.cron_repository import Cron
from cronplane_core.database import autocommit, transaction
from cronplane_core.failpoints import Failpoint
from cronplane_core.idempotency_repository import StoredResponse

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x21-\x7e]{1,255}$",
        description="a text of your own; the same request again is not carried out twice",
    ),
]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="the ETag that was read; 412 if the cron has been changed since")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client is told of a change: `body` is None for an answer without one."""

    status: int
    body: BaseModel | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class _Identity(TypedDict):
    """What tells one request from another: whose key it carries, and what it asks for."""

    scope: str
    key: str
    fingerprint: bytes


Action = Callable[[AsyncConnection], Awaitable[Answer]]


async def carry_out(
    request: Request, action: Action, *, notify: Channel | None = None, is_one_statement: bool = False
) -> Response:
    """Run `action` in a transaction and answer once that is committed, then hint at what changed.

    An action of one statement needs no transaction around it: that spares two round trips, and what the statement locks
    is free again as soon as PostgreSQL has written it.
    """
    state = state_of(request)
    lend = autocommit if is_one_statement else transaction
    async with lend(state.engine) as connection:
        answer = await action(connection)
    return committed(request, answer, notify=notify)


def committed(request: Request, answer: Answer, *, notify: Channel | None) -> Response:
    """Answer what has been committed, and hint at it."""
    failpoints.reach(Failpoint.API_COMMITTED)
    if notify is not None:
        state_of(request).notifier.notify(notify)
    return _response(answer)


async def carry_out_once(
    request: Request,
    idempotency_key: str | None,
    action: Action,
    *,
    notify: Channel | None = None,
) -> Response:
    """Do the same, but give the first answer again to a request that was carried out before.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.

    """
    if idempotency_key is None:
        return await carry_out(request, action, notify=notify)
    state, identity = state_of(request), await _identity(request, idempotency_key)
    async with transaction(state.engine) as connection:
        stored = await idempotency_repository.begin(connection, **identity)
        response = _replay(stored) if stored is not None else await _first(connection, identity, action)
    failpoints.reach(Failpoint.API_COMMITTED)
    if stored is None and notify is not None:
        state.notifier.notify(notify)
    return response


async def answered_before(request: Request, idempotency_key: str | None) -> Response | None:
    """Give the first answer again, or None to a request that is new.

    Asked before an entry's validator is called, so that no connection is held while a validator takes its time.

    Raises:
        IdempotencyKeyReusedError: the key belongs to another request.

    """
    if idempotency_key is None:
        return None
    identity = await _identity(request, idempotency_key)
    async with autocommit(state_of(request).engine) as connection:
        stored = await idempotency_repository.find(connection, **identity)
    return None if stored is None else _replay(stored)


async def _first(connection: AsyncConnection, identity: _Identity, action: Action) -> Response:
    answer = await action(connection)
    body = None if answer.body is None else json.loads(answer.body.model_dump_json())
    await idempotency_repository.complete(
        connection,
        scope=identity["scope"],
        key=identity["key"],
        status=answer.status,
        headers=dict(answer.headers),
        body=body,
    )
    return _response(answer)


def etag(cron: Cron) -> dict[str, str]:
    """Give the header that names a cron's generation (RFC 9110, section 8.8.3)."""
    return {"ETag": f'"{cron.generation}"'}


def check_if_match(if_match: str | None, cron: Cron) -> None:
    """Let a change pass only if the cron is as the client read it (RFC 9110, section 13.1.1).

    Raises:
        ProblemError: 412, it has been changed since.

    """
    if if_match is None or if_match.strip() == "*":
        return
    if f'"{cron.generation}"' not in [tag.strip() for tag in if_match.split(",")]:
        raise ProblemError(PRECONDITION_FAILED, f"The cron is at generation {cron.generation} by now; read it again")


async def _identity(request: Request, idempotency_key: str) -> _Identity:
    target = f"{request.method} {request.url.path}\n".encode()
    fingerprint = hashlib.sha256(target + await request.body()).digest()
    return _Identity(scope=principal_of(request).scope, key=idempotency_key, fingerprint=fingerprint)


def _response(answer: Answer) -> Response:
    content = None if answer.body is None else answer.body.model_dump_json()
    media_type = None if answer.body is None else "application/json"
    return Response(content, status_code=answer.status, media_type=media_type, headers=dict(answer.headers))


def _replay(stored: StoredResponse) -> Response:
    content = None if stored.body is None else json.dumps(stored.body, ensure_ascii=False)
    media_type = None if stored.body is None else "application/json"
    headers = {**stored.headers, "Idempotency-Replayed": "true"}
    return Response(content, status_code=stored.status, media_type=media_type, headers=headers)
