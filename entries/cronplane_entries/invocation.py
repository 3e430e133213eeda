"""Calls an entry's functions the one right way, for registration and for execution alike.

What an entry raises or returns is foreign: it is turned into errors of ours here, and no input value gets into their
messages.
"""

import asyncio
import inspect
import json
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from cronplane_entries.core import (
    AnyCronEntrySpec,
    BaseExecutionPayload,
    EntryError,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)

MAXIMUM_PAYLOAD_BYTES = 128 * 1024
MAXIMUM_RESULT_BYTES = 64 * 1024

ModelT = TypeVar("ModelT", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One thing that is wrong: where (outermost name first), what, in a sentence, and a stable word for it."""

    path: tuple[str | int, ...]
    message: str
    type: str


class PayloadInvalidError(EntryError):
    """The payload is refused; `errors` say where and why."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{'.'.join(map(str, e.path)) or 'payload'}: {e.message}" for e in self.errors))


class EntryContractError(EntryError):
    """The entry broke its contract, which is for its author to mend."""


class ResultInvalidError(EntryError):
    """What the executor returned cannot be kept; return a small mapping of JSON values, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A payload that the entry accepted: as the person sent it, normalized, and as the executor will get it; JSON."""

    user_payload: dict[str, JsonValue]
    execution_payload: dict[str, JsonValue]


async def register(
    spec: AnyCronEntrySpec, *, payload: Mapping[str, JsonValue], context: RegistrationContext
) -> Registration:
    """Let the entry judge a user payload and make the execution payload of it.

    Raises:
        PayloadInvalidError: the entry refuses the payload.
        EntryContractError: the validator did not return an execution payload, or failed otherwise.

    """
    user_payload = _load(spec.user_payload_model, json.dumps(payload), strict=True)
    try:
        execution_payload = await _call_validator(spec, user_payload, context)
    except RegistrationRefusedError as error:
        raise PayloadInvalidError([FieldError(path=error.field, message=str(error), type="refused")]) from error
    except ValidationError as error:
        raise PayloadInvalidError(_field_errors(error)) from error
    except ValueError as error:
        raise PayloadInvalidError([FieldError(path=(), message=str(error), type="refused")]) from error
    except Exception as error:
        raise EntryContractError(
            f"The entry's registration validator failed with {type(error).__name__}; tell its author"
        ) from error
    if not isinstance(execution_payload, spec.execution_payload_model):
        raise EntryContractError(
            f"The registration validator returned a {type(execution_payload).__name__}, "
            f"not a {spec.execution_payload_model.__name__}"
        )
    return Registration(user_payload=_dump(user_payload), execution_payload=_dump(execution_payload))


async def _call_validator(spec: AnyCronEntrySpec, payload: Any, context: RegistrationContext) -> object:  # noqa: ANN401
    """Call a validator that may be sync, and then must not hold up everybody else's requests."""
    if inspect.iscoroutinefunction(spec.registration_validator):
        return await spec.registration_validator(payload, context=context)
    returned = await asyncio.to_thread(spec.registration_validator, payload, context=context)
    return await returned if isinstance(returned, Awaitable) else returned


def load_execution_payload(spec: AnyCronEntrySpec, payload_json: str | bytes) -> BaseExecutionPayload:
    """Read a stored execution payload.

    Raises:
        PayloadInvalidError: the entry's model, as it is today, does not accept it.

    """
    return _load(spec.execution_payload_model, payload_json, strict=False)


def validate_execution(
    spec: AnyCronEntrySpec,
    *,
    payload: BaseExecutionPayload,
    context: ExecutionContext,
    run_until_complete: Callable[[Awaitable[object]], object],
) -> None:
    """Call the execution validator, sync or async; what it raises passes through."""
    returned = spec.execution_validator(payload, context=context)
    if inspect.isawaitable(returned):
        run_until_complete(returned)


def execute(
    spec: AnyCronEntrySpec,
    *,
    payload: BaseExecutionPayload,
    context: ExecutionContext,
    run_until_complete: Callable[[Awaitable[object]], object],
) -> object:
    """Call the executor, sync or async, and give what it returns; what it raises passes through."""
    returned = spec.executor(payload, context=context)
    return run_until_complete(returned) if inspect.isawaitable(returned) else returned


def encode_result(result: object) -> str | None:
    """Give a result as JSON text that PostgreSQL accepts; None stays None.

    Raises:
        ResultInvalidError: it is no mapping, not JSON, too large, or holds what PostgreSQL's jsonb refuses.

    """
    if result is None:
        return None
    if not isinstance(result, Mapping):
        raise ResultInvalidError(f"The executor returned a {type(result).__name__}, not a mapping")
    try:
        text = json.dumps(result, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ResultInvalidError("The result has a lone surrogate, which is no character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultInvalidError(f"The result is not JSON: {type(error).__name__}") from error
    if "\\u0000" in text and any(unstorable(json.loads(text))):
        raise ResultInvalidError("The result has a NUL character, which PostgreSQL cannot keep")
    if size > MAXIMUM_RESULT_BYTES:
        raise ResultInvalidError(f"The result has {size} bytes, more than {MAXIMUM_RESULT_BYTES}")
    return text


def unstorable(value: JsonValue) -> Iterator[FieldError]:
    """Find what PostgreSQL's jsonb cannot hold: NUL characters, lone surrogates, numbers that are not finite."""
    pending: list[tuple[tuple[str | int, ...], JsonValue]] = [((), value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, dict):
            for name, child in item.items():
                yield from _text_errors((*path, name), name)
                pending.append(((*path, name), child))
        elif isinstance(item, list):
            pending.extend(((*path, index), child) for index, child in enumerate(item))
        elif isinstance(item, str):
            yield from _text_errors(path, item)
        elif isinstance(item, float) and not math.isfinite(item):
            yield FieldError(path=path, message="this number is not finite", type="number_not_finite")


def _text_errors(path: tuple[str | int, ...], text: str) -> Iterator[FieldError]:
    if "\0" in text:
        yield FieldError(path=path, message="a NUL character cannot be stored", type="nul_character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        yield FieldError(path=path, message="a lone surrogate is no character", type="lone_surrogate")


def _load(model: type[ModelT], payload_json: str | bytes, *, strict: bool) -> ModelT:
    try:
        return model.model_validate_json(payload_json, strict=strict or None)
    except ValidationError as error:
        raise PayloadInvalidError(_field_errors(error)) from error


def _dump(model: BaseModel) -> dict[str, JsonValue]:
    dumped: dict[str, JsonValue] = model.model_dump(mode="json")
    if errors := list(unstorable(dumped)):
        raise PayloadInvalidError(errors)
    if len(json.dumps(dumped)) > MAXIMUM_PAYLOAD_BYTES:
        message = f"the payload takes more than {MAXIMUM_PAYLOAD_BYTES} bytes; make it smaller"
        raise PayloadInvalidError([FieldError(path=(), message=message, type="too_large")])
    return dumped


def _field_errors(error: ValidationError) -> Iterator[FieldError]:
    for found in error.errors(include_url=False, include_input=False, include_context=False):
        yield FieldError(path=found["loc"], message=found["msg"], type=found["type"])
