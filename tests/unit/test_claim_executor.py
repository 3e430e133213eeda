"""What waits to be claimed: in turns by organization, and never lost by being put back or made anew."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from cronplane_core.schedule import Schedule
from cronplane_operator.claim_executor import ClaimExecutor
from cronplane_operator.database_clock import DatabaseClock
from cronplane_operator.fire_trigger import FireTrigger
from cronplane_operator.job_store import CronJob

FIRST = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
TRIGGER = FireTrigger(source=Schedule.parse("* * * * *", "UTC"), clock=DatabaseClock())
ONE, OTHER = UUID(int=1), UUID(int=2)


def job(organization_id: UUID) -> CronJob:
    return CronJob(cron_id=uuid4(), organization_id=organization_id, generation=1, trigger=TRIGGER, next_run_time=FIRST)


def executor(jobs: list[CronJob]) -> ClaimExecutor:
    waiting = ClaimExecutor(on_due=lambda: None)
    for each in jobs:
        waiting.submit_job(each, [FIRST])
    return waiting


def taken(waiting: ClaimExecutor, limit: int) -> list[UUID]:
    return [due.cron_id for due in waiting.take(limit=limit)]


def test_organizations_take_turns() -> None:
    many, [few] = [job(ONE) for _ in range(5)], [job(OTHER)]
    assert taken(executor([*many, few]), 3) == [many[0].cron_id, few.cron_id, many[1].cron_id]


def test_what_comes_due_again_meanwhile_is_claimed_once_from_its_first_fire() -> None:
    each = job(ONE)
    waiting = executor([each])
    waiting.submit_job(each, [FIRST + timedelta(minutes=1)])
    assert [due.first for due in waiting.take(limit=9)] == [FIRST]
    assert waiting.take(limit=9) == []


def test_what_is_put_back_is_taken_again_and_owes_what_it_owed() -> None:
    each = job(ONE)
    waiting = executor([each])
    waiting.take(limit=9)
    waiting.submit_job(each, [FIRST + timedelta(minutes=1)])
    waiting.put_back([each.cron_id])
    assert [due.first for due in waiting.take(limit=9)] == [FIRST]
    assert len(waiting) == 0


def test_a_job_that_was_forgotten_is_passed_over_and_comes_again_when_it_is_due_again() -> None:
    forgotten, other = job(ONE), job(ONE)
    waiting = executor([forgotten, other])
    waiting.forget(forgotten.cron_id)
    assert taken(waiting, 1) == [other.cron_id]
    waiting.submit_job(forgotten, [FIRST])
    assert taken(waiting, 9) == [forgotten.cron_id]
