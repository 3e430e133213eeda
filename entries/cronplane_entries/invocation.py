"""Calls an entry's functions the one right way, for registration and for execution alike.

What an entry raises or returns is foreign: it is turned into errors of ours here, and no input value gets into their
messages.
"""

import asyncio
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from cronplane_entries.core import (
    AnyCronEntrySpec,
    BaseExecutionPayload,
    BaseUserPayload,
    EntryError,
    ExecutionContext,
    RegistrationContext,
    RegistrationRefusedError,
)

VALIDATOR_SECONDS = 30.0
MAXIMUM_PAYLOAD_BYTES = 128 * 1024
MAXIMUM_RESULT_BYTES = 64 * 1024
# What reads a payload or a result later, pydantic among it, has limits of its own.
DEEPEST_NESTING = 64
MOST_ERRORS = 100
_SURROGATE = re.compile("[\ud800-\udfff]")

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """One thing that is wrong: where (outermost name first), what, in a sentence, and a stable word for it."""

    path: tuple[str | int, ...]
    message: str
    type: str

    @property
    def pointer(self) -> str:
        """Give the place as people and programs are told of it."""
        return json_pointer(self.path)


def json_pointer(path: Iterable[str | int]) -> str:
    """Write a path as a JSON pointer (RFC 6901), empty for the whole."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


class PayloadInvalidError(EntryError):
    """The payload is refused; `errors` say where and why, the first hundred of them."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        # A small payload may be wrong in thousands of places, and nobody reads so many.
        self.errors = tuple(islice(errors, MOST_ERRORS))
        super().__init__("; ".join(f"{'.'.join(map(str, e.path)) or 'payload'}: {e.message}" for e in self.errors))


class EntryContractError(EntryError):
    """The entry broke its contract, which is for its author to mend."""


class ResultInvalidError(EntryError):
    """What the executor returned cannot be kept; return a small mapping of JSON values, or nothing."""


class ResultTooLargeError(ResultInvalidError):
    """The result is larger than what is kept of one; return less of it."""


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
        EntryContractError: the validator failed otherwise, or returned no execution payload that can be kept as JSON.

    """
    user_payload = _load(spec.user_payload_model, json.dumps(payload), strict=True)
    execution_payload = await _execution_payload(spec, user_payload, context)
    kept = _dump(execution_payload)
    _check_is_unchanged(spec, execution_payload, kept)
    return Registration(user_payload=_dump(user_payload), execution_payload=kept)


async def _execution_payload(
    spec: AnyCronEntrySpec, user_payload: BaseUserPayload, context: RegistrationContext
) -> BaseExecutionPayload:
    limit = asyncio.timeout(VALIDATOR_SECONDS)
    try:
        async with limit:
            execution_payload = await _call_validator(spec, user_payload, context)
    except RegistrationRefusedError as error:
        raise PayloadInvalidError([_refusal(error, path=error.field)]) from error
    except ValidationError as error:
        raise PayloadInvalidError(_field_errors(error)) from error
    except (ValueError, AssertionError) as error:
        raise PayloadInvalidError([_refusal(error)]) from error
    except (Exception, SystemExit) as error:
        if limit.expired():
            message = f"The entry's registration validator took more than {VALIDATOR_SECONDS:g} s; tell its author"
            raise EntryContractError(message) from error
        raise EntryContractError(
            f"The entry's registration validator failed with {type(error).__name__}; tell its author"
        ) from error
    if not isinstance(execution_payload, spec.execution_payload_model):
        raise EntryContractError(
            f"The registration validator returned a {type(execution_payload).__name__}, "
            f"not a {spec.execution_payload_model.__name__}"
        )
    return execution_payload


async def _call_validator(spec: AnyCronEntrySpec, payload: BaseUserPayload, context: RegistrationContext) -> object:
    """Call a validator that may be sync, and then must not hold up everybody else's requests."""
    if inspect.iscoroutinefunction(spec.registration_validator):
        return await spec.registration_validator(payload, context=context)
    returned = await asyncio.to_thread(_call_in_thread, spec, payload, context)
    return await returned if isinstance(returned, Awaitable) else returned


def _call_in_thread(spec: AnyCronEntrySpec, payload: BaseUserPayload, context: RegistrationContext) -> object:
    try:
        return spec.registration_validator(payload, context=context)
    except StopIteration as error:
        # A future cannot carry it (PEP 479): whoever waits for the thread would wait forever.
        raise RuntimeError("the validator raised StopIteration") from error


def _check_is_unchanged(spec: AnyCronEntrySpec, payload: BaseExecutionPayload, kept: dict[str, JsonValue]) -> None:
    """Find out now, not when the cron fires, whether the executor will get what the validator returned."""
    try:
        loaded = load_execution_payload(spec, json.dumps(kept))
    except PayloadInvalidError as error:
        raise EntryContractError(f"The entry does not accept its own execution payload from JSON: {error}") from error
    changed = [name for name in type(loaded).model_fields if getattr(loaded, name) != getattr(payload, name)]
    if changed:
        raise EntryContractError(f"JSON cannot keep these of the entry's execution payload: {', '.join(changed)}")


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
        ResultTooLargeError: it is too large.
        ResultInvalidError: it is no mapping, not JSON, or holds what PostgreSQL's jsonb refuses.

    """
    if result is None:
        return None
    if not isinstance(result, Mapping):
        raise ResultInvalidError(f"The executor returned a {type(result).__name__}, not a mapping")
    try:
        text = json.dumps(dict(result), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ResultInvalidError("The result has a lone surrogate, which is no character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultInvalidError(f"The result is not JSON: {error}") from error
    if size > MAXIMUM_RESULT_BYTES:
        raise ResultTooLargeError(f"The result has {size} bytes, more than {MAXIMUM_RESULT_BYTES}")
    if _may_be_unstorable(text):
        for found in unstorable(json.loads(text)):
            raise ResultInvalidError(f"The result cannot be kept: {found.message}")
    return text


def _may_be_unstorable(text: str) -> bool:
    """Say whether a look inside is needed; what is left to find there shows in the text, or in something like it."""
    return "\\u0000" in text or text.count("{") + text.count("[") > DEEPEST_NESTING


def unstorable(value: JsonValue) -> Iterator[FieldError]:
    """Find what cannot be kept.

    PostgreSQL's jsonb refuses NUL characters, lone surrogates and numbers that are not finite; what is nested more than
    `DEEPEST_NESTING` deep could be written, but not be shown again.
    """
    pending: list[tuple[tuple[str | int, ...], JsonValue]] = [((), value)]
    while pending:
        path, item = pending.pop()
        if len(path) >= DEEPEST_NESTING and isinstance(item, dict | list):
            yield FieldError(path=path, message=f"this is nested more than {DEEPEST_NESTING} deep", type="too_deep")
        elif isinstance(item, dict):
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
    if _SURROGATE.search(text):
        yield FieldError(path=path, message="a lone surrogate is no character", type="lone_surrogate")


def _load(model: type[ModelT], payload_json: str | bytes, *, strict: bool) -> ModelT:
    try:
        return model.model_validate_json(payload_json, strict=strict or None)
    except ValidationError as error:
        raise PayloadInvalidError(_field_errors(error)) from error


def _dump(model: BaseModel) -> dict[str, JsonValue]:
    """Write a model as it is read: under its aliases, and without what is computed."""
    try:
        dumped: dict[str, JsonValue] = model.model_dump(mode="json", by_alias=True, round_trip=True, warnings="error")
    except Exception as error:
        # A serializer of the entry's own may raise anything, and pydantic's words may repeat a value.
        raise EntryContractError(f"A {type(model).__name__} of the entry cannot be written as JSON") from error
    if errors := list(unstorable(dumped)):
        raise PayloadInvalidError(errors)
    if len(json.dumps(dumped, ensure_ascii=False).encode()) > MAXIMUM_PAYLOAD_BYTES:
        message = f"the payload takes more than {MAXIMUM_PAYLOAD_BYTES} bytes; make it smaller"
        raise PayloadInvalidError([FieldError(path=(), message=message, type="too_large")])
    return dumped


def _field_errors(error: ValidationError) -> Iterator[FieldError]:
    for found in error.errors(include_url=False, include_input=False):
        yield FieldError(path=found["loc"], message=_message(found), type=found["type"])


def _refusal(error: Exception, *, path: tuple[str | int, ...] = ()) -> FieldError:
    return FieldError(path=path, message=str(error) or "the entry refuses this payload", type="refused")


def _message(found: ErrorDetails) -> str:
    if found["type"] == "union_tag_invalid":
        # The only one of pydantic's messages that repeats a whole value.
        return f"{found['ctx']['discriminator']} is none of {found['ctx']['expected_tags']}"
    if found["type"] == "value_error":
        # In the entry's own words, without pydantic's before them.
        return str(found["ctx"]["error"])
    return found["msg"]
