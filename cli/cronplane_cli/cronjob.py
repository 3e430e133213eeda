"""What is read of a CronJob (batch/v1): the fields that a cron can carry, by their types.

Every other field stays where pydantic keeps what it does not know, `model_extra`, so that nothing is overlooked:
`cronjob_remainder` says what becomes of it. Values never reach an error's message, since those of variables may be
secrets.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from cronplane_cli.errors import CommandError

Body = dict[str, Any]
Count = Annotated[int, Field(ge=0)]
# Kubernetes takes a quantity as text and as a number.
Quantity = Annotated[str, Field(strict=False, coerce_numbers_to_str=True)]


class CronJobInvalidError(CommandError):
    """Kubernetes would refuse this object as a CronJob; the message says where and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, strict=True, alias_generator=to_camel)

    @property
    def remainder(self) -> Body:
        """The fields that a cron has not, as Kubernetes names them."""
        return self.model_extra or {}


class Metadata(_Part):
    """Whose CronJob it is, and what it is called."""

    name: str
    namespace: str | None = None


class Variable(_Part):
    """An environment variable; one that takes its value from elsewhere has that in its remainder."""

    name: str
    value: str | None = None


class Resources(_Part):
    """What a container is given, and what it may take at most."""

    requests: dict[str, Quantity] | None = None
    limits: dict[str, Quantity] | None = None


class Container(_Part):
    """The container that does the work."""

    name: str | None = None
    image: str
    image_pull_policy: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[Variable] | None = None
    resources: Resources | None = None
    security_context: Body | None = None


class PodSpec(_Part):
    """The pod of a Job."""

    containers: list[Container] = Field(min_length=1)
    restart_policy: Literal["Never", "OnFailure"]
    active_deadline_seconds: Count | None = None
    security_context: Body | None = None


class PodTemplate(_Part):
    """What the pods of a Job are made from."""

    metadata: Body | None = None
    spec: PodSpec


class JobSpec(_Part):
    """A Job: what it does, how often it is tried and how long it may take."""

    template: PodTemplate
    backoff_limit: Count | None = None
    active_deadline_seconds: Count | None = None


class JobTemplate(_Part):
    """What the Jobs of a CronJob are made from."""

    metadata: Body | None = None
    spec: JobSpec


class CronJobSpec(_Part):
    """When Jobs are made, and from what."""

    schedule: str
    time_zone: str | None = None
    starting_deadline_seconds: Count | None = None
    concurrency_policy: Literal["Allow", "Forbid", "Replace"] = "Allow"
    suspend: bool | None = None
    job_template: JobTemplate


class CronJob(_Part):
    """A CronJob as it is stored or written in a manifest."""

    metadata: Metadata
    spec: CronJobSpec

    @property
    def name(self) -> str:
        """What the cron is called: `namespace/name`, since crons of several namespaces may share an organization."""
        namespace = self.metadata.namespace
        return self.metadata.name if namespace is None else f"{namespace}/{self.metadata.name}"


def read_cronjob(body: Body) -> CronJob:
    """Read a CronJob.

    Raises:
        CronJobInvalidError: it lacks something, or has something that is of another type.

    """
    try:
        return CronJob.model_validate(body)
    except ValidationError as error:
        raise CronJobInvalidError("; ".join(_sentences(error))) from None


def _sentences(error: ValidationError) -> Iterator[str]:
    for found in error.errors(include_input=False, include_context=False, include_url=False):
        yield f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
