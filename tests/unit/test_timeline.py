"""Which version's fires count at which instant."""

from datetime import UTC, datetime, timedelta

from cronplane_core.schedule import Schedule
from cronplane_core.timeline import ScheduleVersion, Timeline, collapse, fires_between

NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
EVERY_MINUTE = Schedule.parse("* * * * *", "UTC")
HOURLY = Schedule.parse("0 * * * *", "UTC")


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def test_a_fire_at_the_very_instant_of_an_edit_is_the_old_versions() -> None:
    timeline = Timeline((ScheduleVersion(effective_from=NOON, schedule=EVERY_MINUTE),
                         ScheduleVersion(effective_from=NOON + minutes(2), schedule=HOURLY)))  # fmt: skip
    assert list(fires_between(timeline, first=NOON + minutes(1), before=NOON + minutes(121))) == [
        NOON + minutes(1),
        NOON + minutes(2),
        NOON + minutes(60),
        NOON + minutes(120),
    ]


def test_a_pause_has_no_fires_and_a_resume_counts_from_itself() -> None:
    timeline = Timeline((ScheduleVersion(effective_from=NOON, schedule=EVERY_MINUTE),
                         ScheduleVersion(effective_from=NOON + minutes(1.5), schedule=None),
                         ScheduleVersion(effective_from=NOON + minutes(4.5), schedule=EVERY_MINUTE)))  # fmt: skip
    assert timeline.next_after(NOON) == NOON + minutes(1)
    assert timeline.next_after(NOON + minutes(1)) == NOON + minutes(5)


def test_a_cron_that_ends_paused_has_no_next_fire() -> None:
    timeline = Timeline((ScheduleVersion(effective_from=NOON, schedule=None),))
    assert timeline.next_after(NOON) is None
    assert timeline.next_after(NOON + timedelta(days=1)) is None


def test_one_version_alone_is_its_schedule_so_that_crons_can_share_it() -> None:
    assert collapse([ScheduleVersion(effective_from=NOON, schedule=HOURLY)]) is HOURLY
