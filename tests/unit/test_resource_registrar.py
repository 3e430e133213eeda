"""How a resource that is refused is told of it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from cronplane_core.cron_repository import DefiningResource
from cronplane_core.organization_repository import Organization
from cronplane_core.tables import OrganizationState
from cronplane_entries.invocation import MOST_ERRORS, FieldError
from cronplane_entries.registration import RegistrationError
from cronplane_operator.cron_resource import Condition
from cronplane_operator.resource_registrar import ResourceRegistrar
from cronplane_operator.resource_registration_plan import Registering

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
ACME = Organization(
    id=uuid4(),
    name="acme",
    state=OrganizationState.ACTIVE,
    created_at=NOW,
    entrypoints=None,
    cron_quota=None,
    triggers_per_minute=None,
    crons=0,
)
SPEC = {"cron_expr": "0 3 * * *", "tz": "UTC", "entrypoint": "dummy_print", "payload": {}}


@dataclass(frozen=True)
class Refusing:
    errors: list[FieldError]

    async def check(self, *_: object, **__: object) -> None:
        raise RegistrationError(self.errors)


async def refusal(registrar: Any, **spec: Any) -> Any:
    resource = DefiningResource(namespace="acme", name="nightly", uid="uid", generation=1, scope="scope")
    body = {"metadata": {"name": "nightly", "namespace": "acme"}, "spec": SPEC | spec}
    asked = Registering(body=body, resource=resource, organization=ACME, cron=None)
    nobody: Any = None
    return await ResourceRegistrar(term=nobody, registrar=registrar).register(asked, now=NOW)


async def test_the_longest_refusal_has_room_in_a_condition() -> None:
    path = ("payload", *("a long name" * 100 for _ in range(60)))
    wrong = FieldError(path=path, message="no, because " + "x" * 100_000, type="refused")
    refused = await refusal(Refusing([wrong] * MOST_ERRORS))
    longest = f"{refused.message} What was registered before stays in force."
    Condition(type="Ready", status="False", reason=refused.reason, message=longest, lastTransitionTime=NOW)
    assert "because x" in refused.message


async def test_what_the_request_itself_is_refused_for_repeats_no_value_of_it() -> None:
    secret = "nobody is to read this"
    refused = await refusal(Refusing([]), payload=secret, overlap=secret, starts_at=secret, timeout=secret)
    assert all(f"/{name}: " in refused.message for name in ("payload", "overlap", "starts_at", "timeout"))
    assert secret not in refused.message
