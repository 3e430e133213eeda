"""The leader's age as one process knows it, with a clock that the test turns."""

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest

from cronplane_core.leadership import Leadership
from cronplane_core.lease import LeaseState
from cronplane_core.metrics import ProcessMetrics


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leadership(clock: Clock) -> Leadership:
    return Leadership(monotonic=clock)


def lease(*, age: float) -> LeaseState:
    return LeaseState(holder="a", epoch=3, renewed_at=datetime(2026, 1, 1, tzinfo=UTC), age=timedelta(seconds=age))


def told(leadership: Leadership) -> dict[str, float]:
    registry = ProcessMetrics(leadership=leadership).registry
    return {
        sample.name: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name.startswith(("cronplane_leader", "cronplane_database"))
    }


def test_before_anything_is_known_the_age_is_infinite_so_that_an_alarm_rings(leadership: Leadership) -> None:
    assert told(leadership) == {
        "cronplane_leader_age_seconds": inf,
        "cronplane_leader_epoch": 0,
        "cronplane_database_up": 0,
    }


def test_where_nobody_has_ever_led_the_age_is_infinite_though_the_database_answers(leadership: Leadership) -> None:
    leadership.saw(None)
    assert (leadership.age, told(leadership)["cronplane_database_up"]) == (inf, 1)


def test_an_age_grows_from_what_was_last_read(leadership: Leadership, clock: Clock) -> None:
    leadership.saw(lease(age=2))
    clock.seconds += 5
    assert told(leadership) == {
        "cronplane_leader_age_seconds": 7,
        "cronplane_leader_epoch": 3,
        "cronplane_database_up": 1,
    }


def test_while_the_database_is_away_the_age_goes_on_growing(leadership: Leadership, clock: Clock) -> None:
    leadership.saw(lease(age=2))
    leadership.lost_sight()
    clock.seconds += 60
    assert told(leadership) == {
        "cronplane_leader_age_seconds": 62,
        "cronplane_leader_epoch": 3,
        "cronplane_database_up": 0,
    }


def test_what_was_seen_is_fresh_for_as_long_as_was_asked(leadership: Leadership, clock: Clock) -> None:
    assert not leadership.is_fresh(within=15)
    leadership.saw(None)
    clock.seconds += 15
    assert leadership.is_fresh(within=15)
    clock.seconds += 1
    assert not leadership.is_fresh(within=15)


def test_two_processes_metrics_do_not_count_for_each_other() -> None:
    first, second = ProcessMetrics(), ProcessMetrics()
    first.leadership.saw(None)
    texts: list[Any] = [metrics.render().decode() for metrics in (first, second)]
    assert ["cronplane_database_up 1.0" in text for text in texts] == [True, False]
