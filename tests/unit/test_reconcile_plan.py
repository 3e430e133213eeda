"""The plan from two states, and the fires that a cron owes across edits: against a walk over every minute."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from cronplane_core.job_state_repository import CronState, StoredVersion
from cronplane_core.schedule import Schedule
from cronplane_core.timeline import fires_between
from cronplane_operator.reconcile_plan import KnownJob, owed_source, plan

START = datetime(2026, 5, 1, 12, 0, 20, tzinfo=UTC)
ORGANIZATION = uuid4()
EXPRESSIONS = ["* * * * *", "*/5 * * * *", "7 * * * *", "0 13 * * *", "*/20 12 * * *"]


def state(
    cron_id: UUID, *, job: int | None = 1, generation: int = 1, next_run_time: datetime | None = None
) -> CronState:
    return CronState(
        id=cron_id,
        organization_id=ORGANIZATION,
        generation=generation,
        cron_expr="* * * * *",
        tz="UTC",
        enabled=True,
        effective_from=START,
        job_generation=1,
        next_run_time=next_run_time,
    )


def test_a_job_that_is_as_it_is_stored_is_left_alone() -> None:
    cron_id, next_run_time = uuid4(), START + timedelta(minutes=1)
    known = {cron_id: KnownJob(generation=1, next_run_time=next_run_time)}
    todo = plan([state(cron_id, next_run_time=next_run_time)], known, complete=True)
    assert (todo.adopted, todo.outdated, todo.removed) == ((), (), ())


def test_a_job_that_is_stored_is_adopted_a_changed_cron_computed_anew_and_a_vanished_one_removed() -> None:
    stored, changed, vanished = uuid4(), uuid4(), uuid4()
    todo = plan(
        [state(stored, next_run_time=START + timedelta(minutes=1)), state(changed, generation=2)],
        {vanished: KnownJob(generation=1, next_run_time=None)},
        complete=True,
    )
    assert [cron.id for cron in todo.adopted] == [stored]
    assert [cron.id for cron in todo.outdated] == [changed]
    assert todo.removed == (vanished,)


def test_looking_at_a_part_of_the_crons_removes_nothing() -> None:
    assert plan([], {uuid4(): KnownJob(generation=1, next_run_time=None)}, complete=False).removed == ()


def test_a_job_that_still_owes_a_fire_of_before_its_last_edit_is_computed_anew() -> None:
    cron_id = uuid4()
    todo = plan([state(cron_id, next_run_time=START - timedelta(minutes=3))], {}, complete=True)
    assert [cron.id for cron in todo.outdated] == [cron_id]


Edit = tuple[int, str, bool]
edits = st.lists(st.tuples(st.integers(1, 4000), st.sampled_from(EXPRESSIONS), st.booleans()), min_size=0, max_size=5)


def history(cron_id: UUID, first: str, changes: Sequence[Edit]) -> list[StoredVersion]:
    instant, versions = START, []
    for number, (seconds, expression, enabled) in enumerate([(0, first, True), *changes], start=1):
        instant += timedelta(seconds=seconds)
        versions.append(
            StoredVersion(
                cron_id=cron_id,
                generation=number,
                effective_from=instant,
                cron_expr=expression,
                tz="UTC",
                enabled=enabled,
            )
        )
    return versions


def walk(versions: Sequence[StoredVersion], *, until: datetime) -> list[datetime]:
    """Find every fire by asking, for each minute, the version that is in force then."""
    fires, minute = [], START.replace(second=0) + timedelta(minutes=1)
    while minute <= until:
        version = [v for v in versions if v.effective_from < minute][-1]
        schedule = Schedule.parse(version.cron_expr, version.tz)
        if version.enabled and schedule.next_after(minute - timedelta(minutes=1)) == minute:
            fires.append(minute)
        minute += timedelta(minutes=1)
    return fires


@given(first=st.sampled_from(EXPRESSIONS), changes=edits, seen=st.integers(0, 5), claimed=st.integers(0, 200))
def test_whatever_was_edited_since_no_fire_is_lost_or_doubled(
    first: str, changes: list[Edit], seen: int, claimed: int
) -> None:
    """A runner knew the versions up to `seen` and claimed some fires; its successor claims the rest."""
    cron_id = uuid4()
    versions = history(cron_id, first, changes)
    known = versions[: 1 + min(seen, len(changes))]
    until = versions[-1].effective_from + timedelta(hours=3)
    # A claim sees every edit before it, so what is claimed lies before the first edit that the runner did not know.
    unseen = versions[len(known)].effective_from if len(known) < len(versions) else until
    by_then = [fire for fire in walk(known, until=until) if fire <= unseen]
    done, rest = by_then[:claimed], by_then[claimed:]
    later_known = (fire for fire in walk(known, until=until + timedelta(days=2)) if fire > unseen)
    next_known = rest[0] if rest else next(later_known, None)
    current = versions[-1]
    cron = CronState(
        id=cron_id,
        organization_id=ORGANIZATION,
        generation=current.generation,
        cron_expr=current.cron_expr,
        tz="UTC",
        enabled=current.enabled,
        effective_from=current.effective_from,
        job_generation=known[-1].generation,
        next_run_time=next_known,
    )
    source, owed = owed_source(cron, versions)
    later = [] if owed is None else list(fires_between(source, first=owed, before=until + timedelta(seconds=1)))
    assert done + [fire for fire in later if fire <= until] == walk(versions, until=until)
