"""Which schema a version may serve with."""

import pytest

from cronplane_core.schema_revision import Readiness, SchemaState, judge


def state(revision: str | None, oldest_code: str | None = None) -> SchemaState:
    return SchemaState(revision=revision, oldest_code=oldest_code)


def test_the_schema_of_this_very_version_is_no_matter() -> None:
    assert judge(state("0009", "0009"), code="0009") == Readiness()
    assert judge(state("0009", "0003"), code="0009") == Readiness()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (state(None), ["no schema yet", "cronplane migrate"]),
        (state("0008"), ["0008", "0009", "cronplane migrate"]),
        (state("0012", "0010"), ["0012", "0010", "0009", "install a newer version"]),
        (state("0009", "0010"), ["0010", "install a newer version"]),
    ],
)
def test_what_keeps_a_version_from_serving_says_what_to_do(found: SchemaState, words: list[str]) -> None:
    readiness = judge(found, code="0009")
    assert readiness.notice is None
    assert readiness.obstacle is not None
    assert [word for word in words if word not in readiness.obstacle] == []


@pytest.mark.parametrize("oldest", [None, "0001", "0009"])
def test_a_newer_schema_is_served_with_unless_it_says_otherwise_and_it_is_told(oldest: str | None) -> None:
    readiness = judge(state("0010", oldest), code="0009")
    assert readiness.obstacle is None
    assert readiness.notice is not None
    assert "newer" in readiness.notice
