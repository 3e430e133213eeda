"""How several watches are told of as one, and how often of what they see."""

import asyncio

import pytest

from cronplane_operator.kopf_watch import Hint, WatchState, combined

WATCHES = WatchState(is_watching=True, ends=1, reason="")
ENDED = WatchState(is_watching=False, ends=2, reason="forbidden")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([WATCHES], WATCHES),
        ([WATCHES, WATCHES], WatchState(is_watching=True, ends=2, reason="")),
        ([WATCHES, ENDED], WatchState(is_watching=False, ends=3, reason="forbidden")),
    ],
)
def test_several_watch_if_all_do_and_the_one_that_does_not_says_why(
    states: list[WatchState], expected: WatchState
) -> None:
    assert combined(states) == expected


async def test_what_happens_before_it_was_heard_of_is_told_once_and_what_happens_then_again() -> None:
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    hint = Hint(asyncio.get_running_loop(), tell)
    for _ in range(3):
        await hint.happened()
    await asyncio.sleep(0)
    assert told == 1
    await hint.happened()
    await asyncio.sleep(0)
    assert told == 2
