"""The array literals, read by PostgreSQL itself."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cronplane_core import array_literals as arrays

storable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(values=st.lists(st.none() | storable))
def test_texts_come_back_as_they_were(database: Any, values: list[str | None]) -> None:
    assert database.execute("SELECT %s::text[]", (arrays.texts(values),)) == [(values,)]


def test_the_other_kinds_come_back_as_they_were(database: Any) -> None:
    identities: list[UUID] = [uuid4(), uuid4()]
    instants = [datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), None]
    row = database.execute(
        "SELECT %s::uuid[], %s::bigint[], %s::timestamptz[], %s::uuid[]",
        (arrays.uuids(identities), arrays.integers([2**60, None, -1]), arrays.instants(instants), arrays.uuids([])),
    )
    assert row == [(identities, [2**60, None, -1], instants, [])]
