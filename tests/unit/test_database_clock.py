"""The database's clock as it is reckoned between two looks, with a database and a machine that tell made-up times."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cronplane_operator import database_clock
from cronplane_operator.database_clock import DatabaseClock

START = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


class World:
    """A machine whose clock we move, and a database whose clock runs `speed` times as fast, `offset` away."""

    def __init__(self) -> None:
        self.seconds, self.speed, self.offset = 1000.0, 1.0, timedelta(0)
        self.round_trip = 0.001
        # Of the next looks, before it is `round_trip` again.
        self.round_trips: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def database_now(self) -> datetime:
        return START + self.offset + timedelta(seconds=(self.seconds - 1000.0) * self.speed)

    async def execute(self, _: Any) -> Any:
        told = self.database_now()
        self.seconds += self.round_trips.pop(0) if self.round_trips else self.round_trip
        return type("Result", (), {"scalar_one": staticmethod(lambda: told)})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    @asynccontextmanager
    async def transaction(_: Any) -> AsyncIterator[World]:
        yield world

    monkeypatch.setattr(database_clock, "transaction", transaction)
    return world


async def measured(clock: DatabaseClock, world: World, *, times: int = 3) -> None:
    engine: Any = world
    for _ in range(times):
        await clock.measure(engine)
        world.seconds += 1.0


@pytest.mark.parametrize("speed", [1.0, 60.0, 600.0])
async def test_it_follows_the_database_and_is_never_early(world: World, speed: float) -> None:
    world.speed = speed
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    behind = world.database_now() - clock.now()
    assert timedelta(0) <= behind + timedelta(microseconds=2)
    assert behind <= timedelta(seconds=2 * world.round_trip * speed)
    assert clock.real_seconds(speed) == pytest.approx(1.0, rel=0.02)


async def test_a_clock_that_is_set_is_followed_at_once_and_does_not_pass_for_a_fast_one(world: World) -> None:
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    world.offset = timedelta(hours=1)
    await measured(clock, world, times=1)
    assert clock.real_seconds(1.0) == 1.0
    assert abs(world.database_now() - clock.now()) < timedelta(seconds=0.01)


async def test_an_answer_that_stalls_does_not_make_a_fast_clock_faster_than_it_is(world: World) -> None:
    world.speed = 60.0
    clock = DatabaseClock(monotonic=world.monotonic)
    world.round_trips = [0.05, 0.001]
    await measured(clock, world, times=1)
    assert clock.now() <= world.database_now() + timedelta(microseconds=2)


@pytest.mark.parametrize("speed", [0.0, 0.05, 0.9])
async def test_of_a_clock_that_stands_or_is_slow_nobody_waits_longer_than_was_said(world: World, speed: float) -> None:
    world.speed = speed
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    assert clock.real_seconds(60.0) == 60.0


@pytest.mark.parametrize("step", [0.5, 0.99, 1.0, 1.1])
async def test_of_a_clock_that_is_set_back_a_little_nobody_waits_longer_than_was_said(
    world: World, step: float
) -> None:
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    world.offset = timedelta(seconds=-step)
    await measured(clock, world, times=1)
    assert clock.real_seconds(60.0) == 60.0


async def test_a_slow_network_does_not_make_it_early(world: World) -> None:
    world.round_trip = 0.4
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    assert clock.now() <= world.database_now()


def test_it_has_no_time_before_it_was_measured() -> None:
    with pytest.raises(RuntimeError):
        DatabaseClock().now()


async def test_an_answer_that_was_long_on_its_way_changes_no_rate(world: World) -> None:
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world)
    for round_trip in (0.7, 0.001, 0.7, 0.001):
        world.round_trip = round_trip
        await measured(clock, world, times=1)
        assert clock.real_seconds(1.0) == 1.0


async def test_a_held_up_look_does_not_make_a_clock_fast(world: World) -> None:
    """Between the two looks the machine stands still after the first answer was given and before it was read."""
    world.round_trips = [0.5, 0.0001]
    clock = DatabaseClock(monotonic=world.monotonic)
    await measured(clock, world, times=1)
    assert clock.real_seconds(1.0) == 1.0
