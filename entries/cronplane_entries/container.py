"""The entry that runs an image of the tenant's in a pod, as a CronJob would; no code of ours runs in it.

Which images an organization may run, and how much a pod may take, is the administrator's to say, and looked at again
before each run. The payload stands in the Job for whoever can read Jobs, so it takes no secret and refers to none.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from cronplane_entries.core import (
    BaseExecutionPayload,
    BaseUserPayload,
    CronEntrySpec,
    ExecutionContext,
    ExecutionMode,
    PermanentError,
    PodContainer,
    RegistrationContext,
    RegistrationRefusedError,
)
from cronplane_entries.image_reference import ImageReference, ImageRule
from cronplane_entries.resource_quantities import (
    CPU,
    MEMORY,
    RESOURCES,
    STORAGE,
    larger,
    parse_amount,
    parse_quantity,
    smaller,
)

OURS = "CRONPLANE_"
MOST_WORDS = 256
MOST_VARIABLES = 256
_LONGEST_TEXT = 32 * 1024
_DEFAULT_CEILING = {CPU: "1", MEMORY: "1Gi", STORAGE: "2Gi"}
# What a pod may take whose payload does not say, if that is not above the ceiling.
_DEFAULT_LIMITS = {CPU: "500m", MEMORY: "512Mi", STORAGE: "1Gi"}
_SETTINGS = frozenset({"images", "limits"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,252}", re.ASCII)


def _image(text: str) -> str:
    """Write an image's reference whole, so that what was judged is what a node pulls."""
    return str(ImageReference.parse(text))


def _amount(resource: str, text: str) -> str:
    parse_amount(resource, text)
    return text


def _variable_name(name: str) -> str:
    if not _VARIABLE.fullmatch(name):
        raise ValueError("a variable's name has letters, digits, '_', '.' and '-', and begins with a letter or '_'")
    if name.startswith(OURS):
        raise ValueError(f"variables that begin with {OURS} are set by Cronplane")
    return name


class _Part(BaseModel):
    """A part of the payload: strict and closed, as the whole is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Variable(_Part):
    """A variable of the environment, which is not secret: it can be read in the cluster."""

    name: Annotated[str, AfterValidator(_variable_name)]
    value: str = Field(default="", max_length=_LONGEST_TEXT)


class Amounts(_Part):
    """Quantities as Kubernetes writes them."""

    cpu: Annotated[str, AfterValidator(partial(_amount, CPU))] | None = Field(default=None, examples=["500m"])
    memory: Annotated[str, AfterValidator(partial(_amount, MEMORY))] | None = Field(default=None, examples=["512Mi"])
    ephemeral_storage: Annotated[str, AfterValidator(partial(_amount, STORAGE))] | None = Field(
        default=None, alias=STORAGE, examples=["1Gi"]
    )

    @model_serializer
    def by_resource(self) -> dict[str, str]:
        """Give what is said, by Kubernetes' names."""
        said = {CPU: self.cpu, MEMORY: self.memory, STORAGE: self.ephemeral_storage}
        return {resource: amount for resource, amount in said.items() if amount is not None}


class Resources(_Part):
    """What a pod is given, and what it may take at most."""

    requests: Amounts = Amounts()
    limits: Amounts = Amounts()

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        limits = self.limits.by_resource()
        for resource, amount in self.requests.by_resource().items():
            if parse_quantity(amount) > parse_quantity(limits.get(resource, amount)):
                raise ValueError(f"{resource}: more is requested than the limit")
        return self


Word = Annotated[str, Field(max_length=_LONGEST_TEXT)]


class UserPayload(BaseUserPayload):
    """A container, in Kubernetes' words."""

    image: Annotated[str, Field(max_length=1024), AfterValidator(_image)] = Field(
        description="such as registry.example/team/report:1.4; the administrator says which may be run"
    )
    command: list[Word] = Field(default=[], max_length=MOST_WORDS, description="in place of the image's entrypoint")
    args: list[Word] = Field(default=[], max_length=MOST_WORDS, description="in place of the image's arguments")
    env: list[Variable] = Field(default=[], max_length=MOST_VARIABLES, description="nothing secret: it is seen")
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [variable.name for variable in self.env]
        if len(set(names)) < len(names):
            raise ValueError("env: a variable is there twice")
        return self


class ExecutionPayload(BaseExecutionPayload):
    """The same: what is left out is filled in when it runs, by the settings of then."""

    container: UserPayload


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a container may not be run, and where that stands in the payload."""

    message: str
    field: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRules:
    """What the administrator lets tenants run: images, each for some organizations or all (None), and how much."""

    images: tuple[tuple[ImageRule, frozenset[UUID] | None], ...]
    ceiling: Mapping[str, str]

    def refusals(self, container: UserPayload, *, organization_id: UUID) -> Iterator[Refusal]:
        """Find what an organization may not run of a container."""
        if not self._allows(ImageReference.parse(container.image), organization_id):
            yield Refusal(
                message="this image is not allowed for your organization; the administrator allows images with "
                "CRONPLANE_ENTRY_CONTAINER_IMAGES",
                field=("image",),
            )
        for what, amounts in (("requests", container.resources.requests), ("limits", container.resources.limits)):
            for resource, amount in amounts.by_resource().items():
                if parse_quantity(amount) > parse_quantity(self.ceiling[resource]):
                    yield Refusal(
                        message=f"a pod may take {self.ceiling[resource]} of {resource} at most",
                        field=("resources", what, resource),
                    )

    def limits(self, resources: Resources) -> dict[str, str]:
        """Give the limit of every resource: what is asked for, else what is usual, and no less than is requested."""
        asked, requests = resources.limits.by_resource(), resources.requests.by_resource()
        usual = {each: smaller(_DEFAULT_LIMITS[each], self.ceiling[each]) for each in RESOURCES}
        return {each: asked.get(each) or larger(usual[each], requests.get(each, usual[each])) for each in RESOURCES}

    def _allows(self, image: ImageReference, organization_id: UUID) -> bool:
        return any(
            rule.allows(image)
            for rule, organizations in self.images
            if organizations is None or organization_id in organizations
        )


def _rule(text: str) -> str:
    ImageRule.parse(text)
    return text


_IMAGES = TypeAdapter(dict[Annotated[str, AfterValidator(_rule)], list[UUID] | Literal["*"]])
_CEILING = TypeAdapter(Amounts)


def read_settings(settings: Mapping[str, str]) -> ContainerRules:
    """Read the administrator's settings.

    Raises:
        ValueError: one of them is wrong or unknown; the message says which.

    """
    if unknown := sorted(settings.keys() - _SETTINGS):
        raise ValueError(f"there is no setting {', '.join(unknown).upper()}")
    return _rules(settings.get("images", "{}"), settings.get("limits", "{}"))


@lru_cache(maxsize=8)
def _rules(images: str, limits: str) -> ContainerRules:
    try:
        allowed = _IMAGES.validate_json(images)
    except ValidationError as error:
        raise ValueError(f"IMAGES is not a JSON object of images and organizations ({_places(error)})") from error
    try:
        ceiling = _CEILING.validate_json(limits)
    except ValidationError as error:
        raise ValueError(f"LIMITS is not a JSON object of quantities by resource ({_places(error)})") from error
    return ContainerRules(
        images=tuple(
            (ImageRule.parse(rule), None if organizations == "*" else frozenset(organizations))
            for rule, organizations in allowed.items()
        ),
        ceiling={**_DEFAULT_CEILING, **ceiling.by_resource()},
    )


def _places(error: ValidationError) -> str:
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in found)


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse settings that are wrong, when a process starts."""
    read_settings(settings)


async def validate_registration(payload: UserPayload, *, context: RegistrationContext) -> ExecutionPayload:
    """Refuse an image that is not allowed, and what is above the ceiling."""
    rules = read_settings(context.services.settings)
    for refusal in rules.refusals(payload, organization_id=context.organization.id):
        raise RegistrationRefusedError(refusal.message, field=refusal.field)
    return ExecutionPayload(container=payload)


def validate_execution(payload: ExecutionPayload, *, context: ExecutionContext) -> None:
    """Find out whether the container may still be run; what was taken back is not tried again."""
    rules = read_settings(context.services.settings)
    for refusal in rules.refusals(payload.container, organization_id=context.cron.organization_id):
        raise PermanentError(f"{'.'.join(refusal.field)}: {refusal.message}")


def make_container(payload: ExecutionPayload, *, context: ExecutionContext) -> PodContainer:
    """Give the container as it is to run."""
    asked = payload.container
    return PodContainer(
        image=asked.image,
        command=tuple(asked.command),
        args=tuple(asked.args),
        env=tuple((variable.name, variable.value) for variable in asked.env),
        requests=asked.resources.requests.by_resource(),
        limits=read_settings(context.services.settings).limits(asked.resources),
    )


def execute(_: ExecutionPayload, *, context: ExecutionContext) -> None:
    """Say that a container cannot run here."""
    raise PermanentError(
        f"Run {context.run.id} wants a pod, and whoever leads has no cluster for it: run `cronplane operator`, with "
        "CRONPLANE_ENTRY_CONTAINER_IMAGES"
    )


spec = CronEntrySpec(
    user_payload_model=UserPayload,
    execution_payload_model=ExecutionPayload,
    registration_validator=validate_registration,
    execution_validator=validate_execution,
    executor=execute,
    execution=ExecutionMode.POD,
    pod_profile="container",
    container=make_container,
    check_settings=check_settings,
)
