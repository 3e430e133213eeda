"""Makes a cron of a CronJob: a pure function that gives the registration, and says what it does not carry.

Nothing changes its meaning in silence. What is lost is a remark, and it is for others to decide whether a CronJob that
loses something is registered. Values of environment variables go into the registration and nowhere else.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cronplane_cli.cronjob import CronJob, CronJobSpec, PodSpec, Variable
from cronplane_cli.cronjob_remainder import CONTAINER, JOB, POD, Effect, Remark, remainder_of
from cronplane_cli.kubernetes_schedule import KubernetesScheduleError, read_schedule
from cronplane_cli.schedule_comparison import HORIZON, Comparison, compare
from cronplane_core.schedule import Schedule
from cronplane_core.tables import Overlap
from cronplane_entries.cron_request import CronCreation
from cronplane_entries.image_reference import ImageReference, ImageReferenceError
from cronplane_entries.registration import LONGEST_CATCHUP_WINDOW, LONGEST_RUN_TIMEOUT, SERVED_OVERLAPS
from cronplane_entries.registry import LONGEST_TIMEOUT, MOST_ATTEMPTS
from cronplane_entries.resource_quantities import RESOURCES

ENTRY = "container"
_SCHEDULE = "spec.schedule"
_POLICY = "spec.concurrencyPolicy"
_DEFAULT_BACKOFF_LIMIT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What becomes of a CronJob: the cron to register, None if there can be none, and what to know of it."""

    name: str
    schedule: str
    time_zone: str
    cron: CronCreation | None
    comparison: Comparison
    remarks: tuple[Remark, ...]

    def losses(self, *, accepted: Iterable[str]) -> tuple[Remark, ...]:
        """Give what is lost, but for the fields that somebody has said may be."""
        accepted = tuple(accepted)
        lost = (remark for remark in self.remarks if remark.effect is Effect.LOST)
        return tuple(remark for remark in lost if not any(remark.is_within(path) for path in accepted))


def translate(cronjob: CronJob, *, default_zone: str, is_paused: bool, now: datetime) -> Translation:
    """Translate a CronJob; schedules are compared over the 400 days from `now`, an aware instant.

    `default_zone` is the zone of the kube-controller-manager, in which a schedule is meant that names none.
    """
    spec = cronjob.spec
    zone = spec.time_zone or default_zone
    remarks: list[Remark] = []
    comparison = Comparison(expression=None)
    try:
        theirs = read_schedule(spec.schedule, zone)
    except KubernetesScheduleError as error:
        remarks.append(_lost(_SCHEDULE, str(error)))
    else:
        zone = theirs.time_zone
        comparison = compare(theirs, after=now)
        remarks.extend(_schedule_remarks(spec, comparison, zone=zone))
    cron = None
    if comparison.expression is not None:
        schedule = Schedule.parse(comparison.expression, zone)
        cron, policy_remarks = _cron(cronjob, schedule, is_paused=is_paused, now=now)
        remarks.extend(policy_remarks)
    remarks.extend(remainder_of(cronjob))
    return Translation(
        name=cronjob.name,
        schedule=spec.schedule,
        time_zone=zone,
        cron=cron,
        comparison=comparison,
        remarks=tuple(remarks),
    )


def _schedule_remarks(spec: CronJobSpec, comparison: Comparison, *, zone: str) -> Iterator[Remark]:
    if spec.schedule.startswith(("TZ=", "CRON_TZ=")):
        yield _noted(_SCHEDULE, f"the zone that it names, {zone}, is the cron's")
    elif spec.time_zone is None:
        yield _noted("spec.timeZone", f"it names none, so it is taken to be that of the cluster, {zone}")
    if comparison.expression is None or not comparison.is_exact:
        yield _lost(_SCHEDULE, _why_not_exact(comparison))
    elif comparison.is_rewritten:
        yield _noted(_SCHEDULE, f"{_why_rewritten(comparison)}, so it is written {comparison.expression!r}")


def _why_not_exact(comparison: Comparison) -> str:
    if comparison.expression is None:
        return f"there is no way to write it as five fields: {comparison.refusal}"
    if not comparison.remaining:
        return f"{comparison.refusal}; {comparison.expression!r} fires as often, at times of the clock"
    return f"some fires of Kubernetes differ from those of {comparison.expression!r} here"


def _why_rewritten(comparison: Comparison) -> str:
    if comparison.refusal is not None:
        return f"as it stands we refuse it ({comparison.refusal})"
    return "as it stands Kubernetes reads it otherwise than we do"


def _cron(cronjob: CronJob, schedule: Schedule, *, is_paused: bool, now: datetime) -> tuple[CronCreation, list[Remark]]:
    spec = cronjob.spec
    job = spec.job_template.spec
    pod = job.template.spec
    tries = 1 + (_DEFAULT_BACKOFF_LIMIT if job.backoff_limit is None else job.backoff_limit)
    deadlines = [seconds for seconds in (job.active_deadline_seconds, pod.active_deadline_seconds) if seconds]
    timeout = _bounded(min(deadlines, default=None), LONGEST_TIMEOUT)
    run_timeout = _bounded(job.active_deadline_seconds or None, LONGEST_RUN_TIMEOUT)
    overlap = _overlap(spec, schedule, run_timeout=job.active_deadline_seconds, now=now)
    cron = CronCreation(
        name=cronjob.name,
        cron_expr=schedule.expression,
        tz=schedule.time_zone,
        entrypoint=ENTRY,
        payload=_payload(pod),
        enabled=not (is_paused or spec.suspend),
        overlap=overlap or Overlap.SKIP,
        catchup_window=_bounded(spec.starting_deadline_seconds, LONGEST_CATCHUP_WINDOW),
        timeout=timeout,
        max_attempts=min(tries, MOST_ATTEMPTS),
        run_timeout=run_timeout if job.active_deadline_seconds else None,
    )
    remarks = [
        *_deadline_remarks(cronjob),
        *_policy_remarks(spec, is_served=overlap is not None),
        *_retry_remarks(pod, tries=tries),
        *_payload_remarks(pod),
    ]
    return cron, remarks


def _bounded(seconds: int | None, longest: timedelta) -> int:
    """Give what is asked for within what a cron may have; without a bound, as much as it may have."""
    most = int(longest.total_seconds())
    return most if seconds is None else min(max(seconds, 1), most)


def _deadline_remarks(cronjob: CronJob) -> Iterator[Remark]:
    spec = cronjob.spec
    job, pod = spec.job_template.spec, spec.job_template.spec.template.spec
    start = spec.starting_deadline_seconds
    path = "spec.startingDeadlineSeconds"
    if start is None:
        days = LONGEST_CATCHUP_WINDOW.days
        yield _noted(path, f"without it Kubernetes starts the latest fire however late; here at most {days} days late")
    elif start == 0 or start > LONGEST_CATCHUP_WINDOW.total_seconds():
        yield _lost(path, f"a catchup_window is from 1 s to {LONGEST_CATCHUP_WINDOW.days} days")
    deadlines = ((f"{JOB}.activeDeadlineSeconds", job), (f"{POD}.activeDeadlineSeconds", pod))
    for path, seconds in ((path, part.active_deadline_seconds) for path, part in deadlines):
        if seconds is not None and not 1 <= seconds <= LONGEST_TIMEOUT.total_seconds():
            yield _lost(path, f"an attempt may take from 1 s to {LONGEST_TIMEOUT.days} days")
    if job.active_deadline_seconds is None and pod.active_deadline_seconds is None:
        message = f"without it a Job has no end; here an attempt ends after {LONGEST_TIMEOUT.days} days"
        yield _noted(f"{JOB}.activeDeadlineSeconds", message)


def _overlap(spec: CronJobSpec, schedule: Schedule, *, run_timeout: int | None, now: datetime) -> Overlap | None:
    """Give the policy that means the same, None if none that is served does."""
    wanted = {"Allow": Overlap.ALLOW, "Forbid": Overlap.SKIP, "Replace": Overlap.CANCEL_RUNNING}
    overlap = wanted[spec.concurrency_policy]
    if overlap in SERVED_OVERLAPS:
        return overlap
    # Of runs that are over before the next one begins, every policy says the same.
    shortest = schedule.shortest_interval(from_=now, horizon=HORIZON)
    is_over = run_timeout is not None and timedelta(seconds=run_timeout) < shortest
    return Overlap.SKIP if is_over else None


def _policy_remarks(spec: CronJobSpec, *, is_served: bool) -> Iterator[Remark]:
    if spec.concurrency_policy == "Forbid":
        yield _noted(_POLICY, "a fire is skipped while a run is not over, and not made up for when it is")
    if not is_served:
        does = {"Allow": "starts a run beside one that is not over", "Replace": "ends the run that is not over"}
        message = (
            f"{spec.concurrency_policy} {does[spec.concurrency_policy]}; here the new one is skipped, and an "
            "activeDeadlineSeconds of the Job shorter than the time between two fires would make it the same"
        )
        yield _lost(_POLICY, message)


def _retry_remarks(pod: PodSpec, *, tries: int) -> Iterator[Remark]:
    if tries > MOST_ATTEMPTS:
        yield _lost(f"{JOB}.backoffLimit", f"a run is tried {MOST_ATTEMPTS} times at most")
    if pod.restart_policy == "OnFailure" and tries > 1:
        yield _noted(f"{POD}.restartPolicy", "each attempt has a pod of its own, it is not restarted in the same one")


def _payload(pod: PodSpec) -> dict[str, Any]:
    container = pod.containers[0]
    resources = container.resources
    amounts = {
        kind: {name: amount for name, amount in (given or {}).items() if name in RESOURCES}
        for kind, given in (
            ("requests", resources.requests if resources else None),
            ("limits", resources.limits if resources else None),
        )
    }
    parts = {
        "command": container.command,
        "args": container.args,
        "env": [{"name": each.name, "value": each.value or ""} for each in _plain_variables(container.env or [])],
        "resources": {kind: given for kind, given in amounts.items() if given},
    }
    return {"image": container.image, **{name: part for name, part in parts.items() if part}}


def _plain_variables(variables: Iterable[Variable]) -> list[Variable]:
    """Give the variables that have a value of their own; of two with one name, the later counts."""
    return list({each.name: each for each in variables if not each.remainder}.values())


def _payload_remarks(pod: PodSpec) -> Iterator[Remark]:
    container = pod.containers[0]
    policy = _pull_policy(container.image)
    if policy is not None and container.image_pull_policy not in {None, policy}:
        message = f"an image of such a name is pulled by the policy {policy}"
        yield _lost(f"{CONTAINER}.imagePullPolicy", message)


def _pull_policy(image: str) -> str | None:
    """Give the policy that Kubernetes has for an image; None for what is no name of one, which the entry refuses."""
    try:
        return "Always" if ImageReference.parse(image).tag == "latest" else "IfNotPresent"
    except ImageReferenceError:
        return None


def _lost(path: str, message: str) -> Remark:
    return Remark(path=path, effect=Effect.LOST, message=message)


def _noted(path: str, message: str) -> Remark:
    return Remark(path=path, effect=Effect.NOTED, message=message)
