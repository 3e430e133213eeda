"""Reads JSON as RFC 8259 means it, and refuses what parsers differ on, before anything else sees it.

Python's own parser takes duplicate keys, NaN, numbers that overflow, and any depth until it breaks; a database or
another service would then see something else than we did.
"""

import json
import math
from collections.abc import Iterable
from itertools import islice
from typing import NoReturn

from pydantic import JsonValue

from cronplane_api.errors import INVALID, MALFORMED, ProblemDetail, ProblemError
from cronplane_entries.invocation import MOST_ERRORS, unstorable

DEEPEST_NESTING = 64
MOST_DIGITS = 400
_Container = dict[str, JsonValue] | list[JsonValue]


def parse(body: bytes) -> JsonValue:
    """Read one JSON text in UTF-8.

    Raises:
        ProblemError: 400 if it is not JSON, or beyond the bounds; 422 if it holds what PostgreSQL cannot keep.

    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        _malformed("The body is not UTF-8")
    try:
        value: JsonValue = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        _malformed(f"The body is not JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        _too_deep()
    _check_depth(value)
    _check_storable(value)
    return value


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _malformed("An object in the body has the same key twice")
    return members


def _constant(name: str) -> NoReturn:
    _malformed(f"The body is not JSON: {name} is no number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _malformed("A number in the body is too large")
    return number


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        _malformed(f"A number in the body has more than {MOST_DIGITS} digits")
    return int(text)


def _check_depth(value: JsonValue) -> None:
    containers, depth = _containers([value]), 0
    while containers:
        depth += 1
        if depth > DEEPEST_NESTING:
            _too_deep()
        containers = [inner for outer in containers for inner in _containers(_members(outer))]


def _containers(values: Iterable[JsonValue]) -> list[_Container]:
    return [value for value in values if isinstance(value, dict | list)]


def _members(container: _Container) -> Iterable[JsonValue]:
    return container.values() if isinstance(container, dict) else container


def _check_storable(value: JsonValue) -> None:
    errors = [
        ProblemDetail(pointer=_printable(found.pointer), message=found.message, type=found.type)
        # A small body may be wrong in thousands of places, and nobody reads so many.
        for found in islice(unstorable(value), MOST_ERRORS)
    ]
    if errors:
        raise ProblemError(INVALID, "The body holds characters that cannot be kept", errors=errors)


def _printable(text: str) -> str:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _too_deep() -> NoReturn:
    _malformed(f"The body is nested more than {DEEPEST_NESTING} deep")


def _malformed(detail: str) -> NoReturn:
    raise ProblemError(MALFORMED, detail)
