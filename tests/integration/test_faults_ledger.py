"""What the other fault tests rely on: failpoints that do nothing unless armed, and a ledger that must tally."""

from importlib import import_module
from typing import Any
from uuid import UUID, uuid4

import pytest

from cronplane_core import failpoints
from cronplane_core.failpoints import Failpoint

RUN = uuid4()
ATTEMPT = (RUN, 1)


@pytest.fixture
def faults(entries: Any) -> Any:
    return import_module("fault_entries")


@pytest.fixture
def disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test installs goes with it."""
    monkeypatch.setattr(failpoints, "_handler", None)


def entered(faults: Any, *, run_id: UUID = RUN, attempt: int = 1) -> Any:
    return faults.LedgerLine("entered", run_id, attempt)


def effect(faults: Any, *, run_id: UUID = RUN, attempt: int = 1) -> Any:
    return faults.LedgerLine("effect", run_id, attempt)


def test_a_ledger_that_tallies_is_silent_whatever_the_outcomes(faults: Any) -> None:
    lines = [entered(faults), effect(faults), entered(faults, attempt=2)]
    outcomes = {ATTEMPT: "completed", (RUN, 2): "lost", (RUN, 3): "lost", (RUN, 4): None}
    assert list(faults.discrepancies(lines, outcomes)) == []


def test_a_body_that_was_entered_twice_is_named(faults: Any) -> None:
    lines = [entered(faults), entered(faults), effect(faults)]
    assert ["entered 2 times" in found for found in faults.discrepancies(lines, {ATTEMPT: "completed"})] == [True]


def test_a_body_of_which_there_is_no_record_is_named(faults: Any) -> None:
    assert ["not recorded" in found for found in faults.discrepancies([entered(faults)], {})] == [True]


def test_a_completed_attempt_without_an_effect_is_named(faults: Any) -> None:
    found = list(faults.discrepancies([entered(faults)], {ATTEMPT: "completed"}))
    assert ["0 effects" in each for each in found] == [True]


def test_an_effect_without_an_entering_is_named(faults: Any) -> None:
    assert len(list(faults.discrepancies([effect(faults)], {ATTEMPT: "error"}))) == 1


async def test_a_ledger_with_a_line_too_many_fails_the_test(
    start_runner: Any, ledger: Any, faults: Any, assert_nothing_is_lost: Any
) -> None:
    await start_runner()
    await assert_nothing_is_lost()
    faults.write_line(str(ledger), f"entered {RUN} 1 {uuid4()}")
    with pytest.raises(AssertionError, match="not recorded"):
        await assert_nothing_is_lost()


@pytest.mark.usefixtures("disarmed")
def test_a_failpoint_does_nothing_until_a_handler_is_installed_which_is_told_its_name() -> None:
    told: list[str] = []
    failpoints.reach(Failpoint.CLAIM_COMMIT)
    failpoints.install(told.append)
    failpoints.reach(Failpoint.CLAIM_COMMITTED)
    assert told == ["claim-committed"]


@pytest.mark.parametrize(("hit", "broken"), [("1", [0]), ("3", [2]), ("1.0", [0, 1, 2, 3]), ("0.0", [])])
def test_an_order_says_which_time_a_failpoint_breaks(faults: Any, hit: str, broken: list[int]) -> None:
    handle = faults.armed(f"notify {hit} break", seed="seed")
    raised = []
    for time in range(4):
        handle("claim-commit")
        try:
            handle("notify")
        except ConnectionResetError:
            raised.append(time)
    assert raised == broken


def test_the_same_seed_breaks_the_same_times(faults: Any) -> None:
    def times(seed: str) -> list[int]:
        handle = faults.armed("* 0.5 break", seed=seed)
        found = []
        for time in range(64):
            try:
                handle("notify")
            except ConnectionResetError:
                found.append(time)
        return found

    assert times("one") == times("one")
    assert times("one") != times("two")
