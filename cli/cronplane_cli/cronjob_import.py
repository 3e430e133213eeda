"""Moves CronJobs over: translates each, asks the API what it thinks of it, and registers it if that was ordered.

A CronJob that loses something is not registered unless somebody has said that this may be lost. A cron of the same name
is never changed: that is how a second import doubles nothing. The CronJobs themselves are not touched.
"""

import enum
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any
from uuid import UUID, uuid4

import typer

from cronplane_cli.api_client import ApiClient, ApiRefusedError, ApiUnavailableError
from cronplane_cli.cronjob import Body, CronJobInvalidError, read_cronjob
from cronplane_cli.cronjob_remainder import Effect, Remark
from cronplane_cli.cronjob_translation import Translation, translate
from cronplane_cli.errors import CommandError
from cronplane_cli.schedule_comparison import Difference
from cronplane_core.time_zones import zone_names
from cronplane_entries.cron_request import CronCreation

# Answers that are about one cron; any other says that there is no use in going on.
_ABOUT_ONE = {HTTPStatus(409), HTTPStatus(413), HTTPStatus(422)}


class Outcome(enum.StrEnum):
    """What became of a CronJob."""

    CARRIES_OVER = "carries over"
    REGISTERED = "registered"
    EXISTS = "is registered already"
    DIFFERS = "is registered already, otherwise than it would be now"
    LOSES = "does not carry over"
    REFUSED = "is refused"

    @property
    def is_good(self) -> bool:
        """Whether nothing is left to do for a person."""
        return self in {Outcome.CARRIES_OVER, Outcome.REGISTERED, Outcome.EXISTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one CronJob; `translation` is None for an object that is not a CronJob by Kubernetes' rules."""

    name: str
    outcome: Outcome
    translation: Translation | None = None
    remarks: tuple[Remark, ...] = ()
    cron_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What a person ordered: `accepted` are the fields that may be lost, None says that all may."""

    default_zone: str
    is_paused: bool = False
    is_applied: bool = False
    accepted: frozenset[str] | None = frozenset()


class OrganizationCrons:
    """The crons of one organization, as its key lets them be seen and made."""

    def __init__(self, *, api: ApiClient, organization_id: UUID) -> None:
        self._api = api
        self._path = f"/crons/{organization_id}"

    def preview(self, cron: CronCreation) -> Body:
        """Show what a registration would make."""
        return self._api.call("POST", f"{self._path}/preview", body=_body(cron))

    def find(self, name: str) -> Body | None:
        """Find the cron of a name."""
        items: list[Body] = self._api.call("GET", self._path, query={"name": name})["items"]
        return items[0] if items else None

    def register(self, cron: CronCreation) -> Body:
        """Register a cron; an answer that was lost is asked for once more, and nothing is made twice."""
        key = str(uuid4())
        try:
            return self._api.call("POST", self._path, body=_body(cron), idempotency_key=key)
        except ApiUnavailableError:
            return self._api.call("POST", self._path, body=_body(cron), idempotency_key=key)


def connect(organization_id: UUID | None, *, url: str, key: str | None, is_needed: bool) -> OrganizationCrons | None:
    """Give the crons of an organization, None if no organization is named and none is needed.

    Raises:
        CommandError: the organization or the key is missing.

    """
    if organization_id is None and not is_needed:
        return None
    if organization_id is None or not key:
        raise CommandError("Give --organization and an editor's key of it (CRONPLANE_API_KEY)")
    return OrganizationCrons(api=ApiClient(url=url, key=key), organization_id=organization_id)


def run(
    bodies: Iterable[Body], *, crons: OrganizationCrons | None, options: ImportOptions, as_json: bool, now: datetime
) -> bool:
    """Import CronJobs and print what becomes of each; says whether all of them carry over.

    Without `crons` nothing but the CronJobs themselves is looked at. `now` is where the comparison of schedules begins.

    Raises:
        CommandError: the API is not there, or it lets nothing be done, or the default zone is none.

    """
    if options.default_zone not in zone_names():
        raise CommandError(f"--default-zone: {options.default_zone[:64]!a} is no IANA time zone, such as Europe/Paris")
    results = []
    for body in bodies:
        result = import_one(body, crons=crons, options=options, now=now)
        typer.echo(_json(result) if as_json else "\n".join(_lines(result)))
        results.append(result)
    if not as_json:
        typer.echo(_summary(results, is_applied=options.is_applied))
    return all(result.outcome.is_good for result in results)


def import_one(body: Body, *, crons: OrganizationCrons | None, options: ImportOptions, now: datetime) -> Result:
    """Import one CronJob, or say what would become of it."""
    try:
        cronjob = read_cronjob(body)
    except CronJobInvalidError as error:
        remark = Remark(path="", effect=Effect.LOST, message=f"Kubernetes would refuse it: {error}")
        return Result(name=_name_of(body), outcome=Outcome.REFUSED, remarks=(remark,))
    translation = translate(cronjob, default_zone=options.default_zone, is_paused=options.is_paused, now=now)
    losses = () if options.accepted is None else translation.losses(accepted=options.accepted)
    outcome = Outcome.LOSES if losses or translation.cron is None else Outcome.CARRIES_OVER
    result = Result(name=translation.name, outcome=outcome, translation=translation, remarks=translation.remarks)
    if crons is None or translation.cron is None:
        return result
    try:
        return _with_api(result, translation.cron, crons=crons, is_applied=options.is_applied)
    except ApiRefusedError as error:
        if error.status not in _ABOUT_ONE:
            raise
        return replace(result, outcome=Outcome.REFUSED, remarks=(*result.remarks, *_refusals(error)))


def _with_api(result: Result, cron: CronCreation, *, crons: OrganizationCrons, is_applied: bool) -> Result:
    shown = crons.preview(cron)
    there = crons.find(shown["name"])
    if there is None and is_applied and result.outcome is Outcome.CARRIES_OVER:
        return replace(result, outcome=Outcome.REGISTERED, cron_id=crons.register(cron)["id"])
    if there is None:
        return result
    # The preview has the payload as it is kept, with what the entry fills in.
    is_same = _is_part(_body(cron) | {"payload": shown["payload"]}, there)
    return replace(result, outcome=Outcome.EXISTS if is_same else Outcome.DIFFERS, cron_id=there["id"])


def _is_part(asked: object, there: object, *, besides: frozenset[str] = frozenset({"enabled"})) -> bool:
    """Whether everything that was asked for is there; a cron may have been paused or resumed since."""
    if isinstance(asked, dict) and isinstance(there, dict):
        return all(_is_part(value, there.get(name)) for name, value in asked.items() if name not in besides)
    return asked == there


def _body(cron: CronCreation) -> Body:
    body: Body = cron.model_dump(mode="json", exclude_none=True)
    return body


def _refusals(error: ApiRefusedError) -> Iterator[Remark]:
    for path, message in (error.reasons or {"": str(error)}).items():
        yield Remark(path=path, effect=Effect.LOST, message=message)


def _name_of(body: Body) -> str:
    metadata = body.get("metadata")
    parts = [metadata.get(part) for part in ("namespace", "name")] if isinstance(metadata, dict) else []
    return "/".join(part for part in parts if isinstance(part, str)) or "(no name)"


def _lines(result: Result) -> Iterator[str]:
    cron = result.translation.cron if result.translation else None
    when = f": {cron.cron_expr}, {cron.tz}{'' if cron.enabled else ', paused'}" if cron else ""
    yield f"{result.name} {result.outcome}{when}"
    for remark in result.remarks:
        place = f"{remark.path}: " if remark.path else ""
        yield f"  {remark.effect:<6} {place}{remark.message}"
    if result.translation is None:
        return
    comparison = result.translation.comparison
    if comparison.as_written != comparison.remaining:
        yield f"  fires that differ if it were written {result.translation.schedule!r}:"
        yield from (f"    {difference}" for difference in comparison.as_written)
    if comparison.remaining:
        yield f"  fires that differ as {comparison.expression!r}:"
        yield from (f"    {difference}" for difference in comparison.remaining)


def _summary(results: list[Result], *, is_applied: bool) -> str:
    if not results:
        return "No CronJob was found."
    counts = Counter(result.outcome for result in results)
    told = "; ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    return f"CronJobs: {told}.{'' if is_applied else ' Nothing was written: --apply registers.'}"


def _json(result: Result) -> str:
    translation = result.translation
    told: dict[str, Any] = {
        "cronjob": result.name,
        "outcome": result.outcome.name.lower(),
        "cron_id": result.cron_id,
        "remarks": [{"path": each.path, "effect": each.effect, "message": each.message} for each in result.remarks],
        "schedule": None,
    }
    if translation is not None:
        told["schedule"] = {
            "kubernetes": translation.schedule,
            "tz": translation.time_zone,
            "cron_expr": translation.comparison.expression,
            "differences_as_written": _fires(translation.comparison.as_written),
            "differences": _fires(translation.comparison.remaining),
        }
    return json.dumps(told)


def _fires(differences: Iterable[Difference]) -> list[dict[str, str]]:
    return [{"at": each.at.isoformat(), "fires": "cronplane" if each.is_ours else "kubernetes"} for each in differences]
