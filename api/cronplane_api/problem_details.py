"""Turns every error into a problem (RFC 9457), at the one place where errors leave the API.

What went wrong inside is never told to a client; no input is repeated to anybody.
"""

from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from math import ceil
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from cronplane_api import errors
from cronplane_api.errors import PROBLEM_TYPES, Problem, ProblemDetail, ProblemError
from cronplane_core.cron_repository import CronNameTakenError
from cronplane_core.database import DatabaseUnavailableError
from cronplane_core.idempotency_repository import IdempotencyKeyReusedError
from cronplane_core.organization_repository import OrganizationNameTakenError, QuotaExceededError
from cronplane_entries.invocation import MOST_ERRORS, json_pointer
from cronplane_entries.registration import EntryNotGrantedError, RegistrationError

ErrorT = TypeVar("ErrorT", bound=Exception)
MEDIA_TYPE = "application/problem+json"
# A name in a body may be as long as the body, and each error below it would repeat it.
LONGEST_POINTER = 300


class ProblemItem(BaseModel):
    """One thing that is wrong with the request."""

    pointer: str = Field(description="where: a JSON pointer into the body, or a name of the query or path")
    message: str = Field(description="what, for people")
    type: str = Field(description="what, for programs")


class ProblemBody(BaseModel):
    """A refusal (RFC 9457)."""

    type: str = Field(description="a stable address for this kind of problem")
    title: str
    status: int
    detail: str = Field(description="a sentence that a person can act on")
    errors: list[ProblemItem] | None = Field(default=None, description="everything that is wrong, if it can be named")


def respond(problem: Problem, detail: str, details: Iterable[ProblemDetail] = ()) -> JSONResponse:
    """Answer with a problem, and the first hundred of its details."""
    items = [
        ProblemItem(pointer=item.pointer[:LONGEST_POINTER], message=item.message, type=item.type)
        for item in islice(details, MOST_ERRORS)
    ]
    body = ProblemBody(
        type=PROBLEM_TYPES + problem.slug,
        title=problem.title,
        status=problem.status,
        detail=detail,
        errors=items or None,
    )
    return JSONResponse(
        body.model_dump(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers=dict(problem.headers),
    )


def documented(*statuses: int) -> dict[int | str, dict[str, object]]:
    """Describe these statuses for OpenAPI."""
    titles = {status: " / ".join(p.title for p in errors.ALL_PROBLEMS if p.status == status) for status in statuses}
    return {
        status: {"description": titles[status], "content": {MEDIA_TYPE: {"schema": _SCHEMA}}} for status in statuses
    }


_SCHEMA = {"$ref": "#/components/schemas/ProblemBody"}


def install(application: FastAPI) -> None:
    """Answer every error of this application with a problem."""
    _answer(application, ProblemError, _on_problem)
    _answer(application, RequestValidationError, _on_invalid_request)
    _answer(application, RegistrationError, _on_registration)
    _answer(application, EntryNotGrantedError, _on_not_granted)
    _answer(application, QuotaExceededError, _on_quota)
    _answer(application, CronNameTakenError, _on_conflict)
    _answer(application, OrganizationNameTakenError, _on_conflict)
    _answer(application, IdempotencyKeyReusedError, _on_reused_key)
    _answer(application, DatabaseUnavailableError, _on_unavailable)
    _answer(application, HTTPException, _on_http)


def _answer(
    application: FastAPI, kind: type[ErrorT], answer: Callable[[Request, ErrorT], Awaitable[JSONResponse]]
) -> None:
    """Answer errors of one kind, and give its type to the answer; Starlette's own interface knows only `Exception`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, kind):
            raise error
        return await answer(request, error)

    application.add_exception_handler(kind, handle)


async def _on_problem(_: Request, error: ProblemError) -> JSONResponse:
    return respond(error.problem, error.detail, error.errors)


async def _on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    details = (
        ProblemDetail(pointer=_place(found["loc"]), message=found["msg"], type=found["type"])
        for found in error.errors()
    )
    return respond(errors.INVALID, "Some of the request is missing or wrong", details)


async def _on_registration(_: Request, error: RegistrationError) -> JSONResponse:
    details = [ProblemDetail(pointer=found.pointer, message=found.message, type=found.type) for found in error.errors]
    return respond(errors.INVALID, "The cron is refused as it is", details)


async def _on_not_granted(_: Request, error: Exception) -> JSONResponse:
    detail = ProblemDetail(pointer="/entrypoint", message="this entry is not granted", type="entry_not_granted")
    return respond(errors.ENTRY_NOT_GRANTED, f"{error}; ask the administrator", [detail])


async def _on_quota(_: Request, error: QuotaExceededError) -> JSONResponse:
    response = respond(errors.QUOTA_EXCEEDED, str(error))
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(ceil(error.retry_after.total_seconds()), 1))
    return response


async def _on_conflict(_: Request, error: Exception) -> JSONResponse:
    return respond(errors.CONFLICT, str(error))


async def _on_reused_key(_: Request, error: Exception) -> JSONResponse:
    return respond(errors.IDEMPOTENCY_KEY_REUSED, str(error))


async def _on_unavailable(_: Request, error: Exception) -> JSONResponse:
    return respond(errors.UNAVAILABLE, str(error))


async def _on_http(request: Request, error: HTTPException) -> JSONResponse:
    known = {problem.status: problem for problem in (errors.NOT_FOUND, errors.METHOD_NOT_ALLOWED, errors.MALFORMED)}
    problem = known.get(error.status_code, Problem(status=error.status_code, slug="refused", title=error.detail))
    response = respond(problem, _SENTENCES.get(error.status_code, error.detail))
    response.headers.update(error.headers or {})
    if problem is errors.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = _allowed(request)
    return response


def _allowed(request: Request) -> str:
    """Name every method of a path (RFC 9110, section 10.2.1); the router knows only the first of its routes."""
    operations = request.app.openapi()["paths"][request.scope["route"].path_format]
    return ", ".join(sorted(method.upper() for method in operations))


def defect() -> JSONResponse:
    """Answer where the error is ours, whatever it is."""
    return respond(errors.INTERNAL, "The request was not carried out; try again, or tell the administrator")


_SENTENCES = {
    404: "There is nothing here, or your key does not reach it",
    405: "This path is served, but not with this method; the header Allow names those that are",
}


def _place(location: tuple[str | int, ...]) -> str:
    """Name the place of an error: a pointer into the body, or the name of a query or path parameter."""
    source, *path = location
    return json_pointer(path) if source == "body" else ".".join(map(str, (source, *path)))
