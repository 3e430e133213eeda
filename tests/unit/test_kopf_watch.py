"""How several watches are told of as one."""

import pytest

from cronplane_operator.kopf_watch import WatchState, combined

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
