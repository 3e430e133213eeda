"""Which bodies are JSON to us, and that what is read is what was written."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_api.errors import ProblemError
from cronplane_api.strict_json import DEEPEST_NESTING, MOST_DIGITS, parse
from cronplane_entries.invocation import MOST_ERRORS, json_pointer

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda children: st.lists(children) | st.dictionaries(TEXT, children),
    max_leaves=30,
)


def refusal(body: bytes) -> ProblemError:
    with pytest.raises(ProblemError) as refused:
        parse(body)
    return refused.value


@given(value=VALUES, ensure_ascii=st.booleans())
def test_what_was_written_is_read(value: Any, ensure_ascii: bool) -> None:  # noqa: FBT001 - Hypothesis' own calling
    assert repr(parse(json.dumps(value, ensure_ascii=ensure_ascii).encode())) == repr(value)


@given(body=st.binary(max_size=200))
def test_whatever_comes_is_read_or_refused(body: bytes) -> None:
    with suppress(ProblemError):
        assert parse(body) == json.loads(body)


@pytest.mark.parametrize("nest", [lambda n: "[" * n + "]" * n, lambda n: '{"a":' * n + "1" + "}" * n])
def test_nesting_ends_at_its_bound(nest: Callable[[int], str]) -> None:
    parse(nest(DEEPEST_NESTING).encode())
    for depth in (DEEPEST_NESTING + 1, 10_000, 500_000):
        assert refusal(nest(depth).encode()).problem.status == 400


def test_integers_end_at_their_bound() -> None:
    assert parse(b"9" * MOST_DIGITS) == 10**MOST_DIGITS - 1
    assert refusal(b"9" * (MOST_DIGITS + 1)).problem.status == 400
    assert refusal(b"9" * 5000).problem.status == 400


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + "0" * 400 + ".0", "NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_no_finite_one_is_refused(number: str) -> None:
    assert refusal(f"[{number}]".encode()).problem.status == 400


@pytest.mark.parametrize("number", ["9007199254740993", "-0.0", "5e-324", "1.7976931348623157e308", "1E5"])
def test_a_finite_number_is_read_as_it_is(number: str) -> None:
    value = parse(number.encode())
    assert repr(value) == repr(json.loads(number))
    assert isinstance(value, int | float)
    assert math.isfinite(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        '{"a":1',
        '{"a":1,}',
        "[1,]",
        "{'a':1}",
        '{"a":1}{"b":2}',
        "01",
        "+1",
        ".5",
        "'a'",
        '"\t"',
        "nul",
        "//",
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    assert refusal(text.encode()).problem.status == 400


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_another_encoding_is_refused(encoding: str) -> None:
    assert refusal('{"name": "x"}'.encode(encoding)).problem.status == 400


@pytest.mark.parametrize("body", [b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf8\x88\x80\x80\x80"'])
def test_what_is_not_utf_8_is_refused(body: bytes) -> None:
    assert refusal(body).problem.status == 400


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '{"a":{"b":1,"c":2,"b":3}}', '[{"a":1},{"":1,"":1}]', r'{"a":1,"\u0061":1}']
)
def test_a_key_that_comes_twice_is_refused(text: str) -> None:
    assert refusal(text.encode()).problem.status == 400


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (r'{"a": "\u0000"}', "/a"),
        (r'{"a": ["x", {"b/c~d": "\u0000"}]}', "/a/1/b~1c~0d"),
        (r'{"a": "\ud800"}', "/a"),
        (r'{"a": "\udc00\ud800"}', "/a"),
        (r'"\ud83d"', ""),
        (r'{"\u0000": 1}', "/\N{REPLACEMENT CHARACTER}"),
        (r'{"\ud800": 1}', "/?"),
    ],
)
def test_what_postgresql_cannot_keep_is_pointed_at(text: str, place: str) -> None:
    error = refusal(text.encode())
    assert error.problem.status == 422
    assert [detail.pointer for detail in error.errors] == [place]


def test_no_more_errors_are_named_than_anybody_reads() -> None:
    assert len(refusal(b"[" + b",".join([rb'"\u0000"'] * 8000) + b"]").errors) == MOST_ERRORS


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse(rb'"\ud83d\ude80"') == "\N{ROCKET}"


def test_no_refusal_repeats_what_was_sent() -> None:
    for body in (b'{"a": secret}', b'{"secret": 1, "secret": 2}', b'"secret\xff"', b'{"a": "secret'):
        error = refusal(body)
        assert "secret" not in error.detail


def test_a_pointer_escapes_what_rfc_6901_escapes() -> None:
    assert json_pointer(("a/b", 0, "m~n", "")) == "/a~1b/0/m~0n/"
