"""Turns: who has much waiting delays nobody who has little."""

from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from cronplane_operator.fair_queue import FairQueue

ONE, OTHER, THIRD = UUID(int=1), UUID(int=2), UUID(int=3)


def queue(items: list[tuple[UUID, int]]) -> FairQueue[tuple[UUID, int]]:
    waiting: FairQueue[tuple[UUID, int]] = FairQueue()
    for owner, item in items:
        waiting.put(owner, (owner, item))
    return waiting


def test_owners_take_turns_and_where_it_stopped_it_goes_on() -> None:
    waiting = queue([(ONE, 1), (ONE, 2), (ONE, 3), (OTHER, 1), (OTHER, 2)])
    assert waiting.take(3) == [(ONE, 1), (OTHER, 1), (ONE, 2)]
    waiting.put(THIRD, (THIRD, 1))
    assert waiting.take(9) == [(OTHER, 2), (ONE, 3), (THIRD, 1)]
    assert (waiting.take(9), len(waiting)) == ([], 0)


def test_it_tells_who_has_much_waiting() -> None:
    waiting = queue([(ONE, 1), (ONE, 2), (OTHER, 1)])
    assert waiting.owners_with(2) == {ONE: 2}
    waiting.take(2)
    assert waiting.owners_with(1) == {ONE: 1}


_ITEMS = st.lists(st.tuples(st.sampled_from([ONE, OTHER, THIRD]), st.integers()), max_size=60)


@given(items=_ITEMS, sizes=st.lists(st.integers(min_value=1, max_value=7), min_size=60, max_size=60))
def test_nobody_is_more_than_a_turn_ahead_of_who_still_waits_and_each_owners_order_stays(
    items: list[tuple[UUID, int]], sizes: list[int]
) -> None:
    waiting, taken = queue(items), list[tuple[UUID, int]]()
    left = Counter(owner for owner, _ in items)
    for size in sizes:
        part = waiting.take(size)
        taken += part
        left.subtract(owner for owner, _ in part)
        had = Counter(owner for owner, _ in taken)
        assert all(had[owner] + 1 >= max(had.values()) for owner in left if left[owner])
    assert len(waiting) == 0
    assert all(
        [each for each in taken if each[0] == owner] == [each for each in items if each[0] == owner] for owner in left
    )
