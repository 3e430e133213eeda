"""What the mirror of a cron has to be, and what has to be written so that it is: decided from records alone.

Nothing here reads a clock, the database or the cluster.
"""

import enum
import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from cronplane_core.cron_mirror_repository import MirrorPlace, ShownCron
from cronplane_core.kubernetes_client import CRONS, Body
from cronplane_core.tables import CronSource, RunStatus
from cronplane_operator.cron_resources import is_registration

CRON_ID_LABEL = "crons.cronplane.dev/cron-id"
_LONGEST_NAME = 63
_HASH_LENGTH = 8
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
# What the definition fills in where nothing is said.
_BY_DEFAULT = frozenset({"consecutive_failures", "runs"})
_FAILED = frozenset({RunStatus.ERROR, RunStatus.TIMED_OUT, RunStatus.LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a condition holds, with a word in CamelCase and a sentence."""

    holds: bool
    reason: str
    message: str


class RefusalReason(enum.StrEnum):
    """Why a resource is not registered as it is, in a word."""

    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    NAMESPACE_NOT_MAPPED = "NamespaceNotMapped"
    NOT_GRANTED = "NotGranted"
    QUOTA_EXCEEDED = "QuotaExceeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a resource is not registered as it is: its `metadata.generation` then, a word, and a sentence."""

    generation: int
    reason: RefusalReason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorWrite:
    """What has to be written of one mirror: None is what is right already.

    `spec` is the whole of it, `surplus` the fields that somebody else has put beside it.
    """

    spec: Body | None
    surplus: tuple[str, ...]
    status: Body | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """What an Event says: `Normal` or `Warning`, a word in CamelCase, and a sentence."""

    type: str
    reason: str
    message: str


MIRROR_RESTORED = Remark(
    type="Warning",
    reason="MirrorRestored",
    message="The resource was deleted and is here again, since its cron is; delete the cron over the API instead.",
)
MIRROR_REVERTED = Remark(
    type="Warning",
    reason="MirrorReverted",
    message="The resource was edited and is as before, since it mirrors a cron; change that over the API instead.",
)


def is_label(name: str) -> bool:
    """Tell whether Kubernetes takes a name for any resource (RFC 1123, a DNS label)."""
    return _DNS_LABEL.fullmatch(name) is not None


def readable_label(name: str, cron_id: UUID) -> str:
    """Make a DNS label that reads like a cron's name and belongs to this cron alone."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[: _LONGEST_NAME - _HASH_LENGTH - 1].strip("-")
    digest = hashlib.sha256(cron_id.bytes).hexdigest()[:_HASH_LENGTH]
    return f"{slug or 'cron'}-{digest}"


def mirror_spec(cron: ShownCron) -> Body:
    """Give the spec of a cron's mirror: what the API shows of it, without its payload."""
    policies = cron.policies
    spec = {
        "name": cron.name,
        "cron_expr": cron.cron_expr,
        "tz": cron.tz,
        "entrypoint": cron.entrypoint,
        "enabled": cron.enabled,
        "overlap": policies["overlap"],
        "catchup": policies["catchup"],
        "catchup_window": _seconds(policies["catchup_window"]),
        "timeout": _seconds(policies["timeout"]),
        "max_attempts": policies["max_attempts"],
        "backoff": {
            "initial": _seconds(policies["backoff_initial"]),
            "maximum": _seconds(policies["backoff_maximum"]),
        },
        "run_timeout": _seconds(policies["run_timeout"]),
        "jitter": _seconds(policies["jitter"]),
        "starts_at": _instant(policies["starts_at"]),
        "ends_at": _instant(policies["ends_at"]),
        "max_runs": policies["max_runs"],
    }
    return {name: value for name, value in spec.items() if value is not None}


def mirror_status(
    cron: ShownCron, *, generation: int, before: Mapping[str, Any], now: datetime, refusal: Refusal | None = None
) -> Body:
    """Give the status of the resource of a cron; `before` is the one it has, for when its conditions changed last.

    `generation` is the resource's own, `now` an aware instant, and `refusal` why it is not registered as it is now.
    """
    judged = [run for run in cron.runs if run.status not in {RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.WAITING}]
    last = judged[0] if judged else None
    ready = _ready(cron) if refusal is None else _refused(refusal, is_registered=True)
    verdicts = {"Ready": ready, "Scheduled": _scheduled(cron), "Degraded": _degraded(cron)}
    status = {
        "next_fire": _instant(cron.next_fire if cron.enabled else None),
        "last_fire": _instant(cron.runs[0].scheduled_for if cron.runs else None),
        "last_result": last.status.value if last else None,
        "last_reason": last.reason if last else None,
        "consecutive_failures": cron.failures,
        "runs": [
            {
                "id": str(run.id),
                "scheduled_for": _instant(run.scheduled_for),
                "status": run.status.value,
                "reason": run.reason,
                **({"job": run.job} if run.job else {}),
            }
            for run in cron.runs
        ],
        "conditions": conditions(verdicts, generation=generation, before=before, now=now),
        "observedGeneration": generation,
    }
    return {name: value for name, value in status.items() if value is not None}


def conditions(
    verdicts: Mapping[str, Verdict], *, generation: int, before: Mapping[str, Any], now: datetime
) -> list[Body]:
    """Write conditions; one whose truth has not changed keeps the time at which it did."""
    known = {each["type"]: each for each in before.get("conditions", [])}
    return [_condition(name, verdict, known.get(name), generation, now) for name, verdict in verdicts.items()]


def plan_write(cron: ShownCron, actual: Body | None, *, now: datetime) -> MirrorWrite:
    """Compare a mirror with what it has to be; `actual` is None if there is none, and then its status comes later."""
    spec = mirror_spec(cron)
    if actual is None:
        return MirrorWrite(spec=spec, surplus=(), status=None)
    found = actual.get("spec", {})
    surplus = tuple(sorted(found.keys() - spec.keys()))
    is_right = not surplus and found == spec
    return MirrorWrite(spec=None if is_right else spec, surplus=surplus, status=plan_status(cron, actual, now=now))


def plan_status(cron: ShownCron, actual: Body, *, now: datetime, refusal: Refusal | None = None) -> Body | None:
    """Give the status that the resource of a cron lacks, or None if it is right."""
    before = actual.get("status", {})
    generation = actual["metadata"]["generation"]
    status = mirror_status(cron, generation=generation, before=before, now=now, refusal=refusal)
    return None if before == status else status


def plan_refused_status(refusal: Refusal, actual: Body, *, now: datetime) -> Body | None:
    """Give the status that a resource lacks for which there is no cron, or None if it is right."""
    before = actual.get("status", {})
    verdicts = {"Ready": _refused(refusal, is_registered=False)}
    status = {
        "conditions": conditions(verdicts, generation=refusal.generation, before=before, now=now),
        "observedGeneration": refusal.generation,
    }
    is_right = before == before | status and not before.keys() - status.keys() - _BY_DEFAULT
    return None if is_right else status


def is_judged(cron: ShownCron, actual: Body, refusal: Refusal | None) -> bool:
    """Say whether a person's resource has been registered as it is now, or refused."""
    generation: int = actual["metadata"]["generation"]
    return generation == (cron.source_generation if refusal is None else refusal.generation)


def is_mirror_of(cron: ShownCron, actual: Body, place: MirrorPlace) -> bool:
    """Say whether the resource in a mirror's place is the mirror, and not somebody else's of the same name.

    It is known by its UID; one that was made and whose UID was not noted any more still names its cron.
    """
    uid: str = actual["metadata"]["uid"]
    return uid == place.uid or names_cron(actual, cron.id)


def names_cron(actual: Body, cron_id: UUID) -> bool:
    """Say whether a resource without a payload says of itself that it mirrors this cron."""
    labels: Mapping[str, str] = actual["metadata"].get("labels", {})
    return labels.get(CRON_ID_LABEL) == str(cron_id) and not is_registration(actual)


def mirror_body(cron: ShownCron, *, namespace: str, name: str, installation: str, spec: Body) -> Body:
    """Give a mirror as it is applied."""
    return {
        "apiVersion": f"{CRONS.group}/{CRONS.version}",
        "kind": "Cron",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "cronplane",
                "crons.cronplane.dev/installation": installation,
                CRON_ID_LABEL: str(cron.id),
            },
        },
        "spec": spec,
    }


def remarks_on(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Remark]:
    """Say what is worth an Event in the change of a status: failures, misses, and pauses."""
    known = {run["id"]: run["status"] for run in before.get("runs", [])}
    ended = [run for run in after.get("runs", []) if known.get(run["id"]) != run["status"]]
    remarks = [_on_run(run) for run in reversed(ended) if run["status"] in _WORTH_AN_EVENT]
    was_paused, is_paused = _is_paused(before), _is_paused(after)
    if is_paused and not was_paused:
        remarks.append(Remark(type="Normal", reason="Paused", message="The cron was paused and does not fire."))
    elif was_paused and not is_paused:
        remarks.append(Remark(type="Normal", reason="Resumed", message="The cron fires again."))
    if (refused := _refusal_in(after)) is not None and refused != _refusal_in(before):
        remarks.append(Remark(type="Warning", reason="RegistrationRefused", message=refused))
    return remarks


def _refusal_in(status: Mapping[str, Any]) -> str | None:
    """Give what a status says of a registration that was refused."""
    known = status.get("conditions", [])
    refused = (each for each in known if each["type"] == "Ready" and each["reason"] in set(RefusalReason))
    return next((each["message"] for each in refused), None)


_WORTH_AN_EVENT = frozenset({status.value for status in _FAILED} | {RunStatus.MISSED.value})


def _on_run(run: Mapping[str, Any]) -> Remark:
    what = "missed" if run["status"] == RunStatus.MISSED.value else "failed"
    message = f"A run ended as {run['status']} ({run['reason']}); status.runs names the last ones."
    return Remark(type="Warning", reason=f"Run{what.capitalize()}", message=message)


def _is_paused(status: Mapping[str, Any]) -> bool:
    return any(each["type"] == "Scheduled" and each["reason"] == "Paused" for each in status.get("conditions", []))


def _ready(cron: ShownCron) -> Verdict:
    if cron.is_scheduled:
        return Verdict(holds=True, reason="Registered", message="The cron is registered, and the runner knows it.")
    return Verdict(holds=False, reason="NotTakenUp", message="The runner has not taken the cron up yet.")


def _refused(refusal: Refusal, *, is_registered: bool) -> Verdict:
    before = " What was registered before stays in force." if is_registered else ""
    return Verdict(holds=False, reason=refusal.reason, message=f"{refusal.message}{before}")


def _scheduled(cron: ShownCron) -> Verdict:
    if not cron.enabled:
        how = "set spec.enabled" if cron.source is CronSource.KUBERNETES else "resume it over the API"
        return Verdict(holds=False, reason="Paused", message=f"The cron is paused; {how}.")
    if cron.next_fire is None:
        return Verdict(holds=False, reason="NeverFiresAgain", message="Its schedule names no instant any more.")
    return Verdict(holds=True, reason="FireAhead", message=f"It fires next at {_instant(cron.next_fire)}.")


def _degraded(cron: ShownCron) -> Verdict:
    if not cron.failures:
        return Verdict(holds=False, reason="AsExpected", message="Its last run did not fail.")
    failed = next((run for run in cron.runs if run.status in _FAILED), None)
    reason = failed.reason if failed else "RunsFailed"
    return Verdict(
        holds=True, reason=reason, message=f"{cron.failures} runs in a row have failed; see status.runs and the API."
    )


def _condition(name: str, verdict: Verdict, known: Body | None, generation: int, now: datetime) -> Body:
    status = "True" if verdict.holds else "False"
    since = known["lastTransitionTime"] if known is not None and known["status"] == status else _instant(now)
    return {
        "type": name,
        "status": status,
        "reason": verdict.reason,
        "message": verdict.message,
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }


def _seconds(duration: timedelta | None) -> int | None:
    return None if duration is None else int(duration.total_seconds())


def _instant(instant: datetime | None) -> str | None:
    return None if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
