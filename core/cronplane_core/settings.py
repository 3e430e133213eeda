"""What an administrator sets, by environment variables that begin with `CRONPLANE_`.

Each role reads only the class it needs, so that a missing setting of another role stops nobody.
"""

import enum
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _seconds(written: object) -> object:
    """Read a plain number as seconds; anything else is for pydantic to read."""
    if isinstance(written, str) and _NUMBER.fullmatch(written):
        return timedelta(seconds=float(written))
    return written


_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?", re.ASCII)
# In the environment a number of seconds, such as 20 or 0.5, or a duration as ISO 8601 writes it, such as PT20S.
Duration = Annotated[timedelta, BeforeValidator(_seconds)]
_CONFIG = SettingsConfigDict(env_prefix="CRONPLANE_", extra="ignore", frozen=True)


class LogFormat(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    CONSOLE = "console"


class LogSettings(BaseSettings):
    """Settings of every process."""

    model_config = _CONFIG

    log_format: LogFormat = Field(default=LogFormat.JSON, description="json for machines, console for people")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")


class DatabaseSettings(BaseSettings):
    """Where PostgreSQL is, for the service's role."""

    model_config = _CONFIG

    database_url: SecretStr = Field(description="postgresql://user:password@host:5432/name, as the service's role")


class DeclaredOrganization(BaseModel):
    """What an organization may use, and how much of it; what is left out stays as it is, and null is the default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    entrypoints: list[str] | None = Field(default=None, description="the entries that it may use; null for every one")
    cron_quota: int | None = Field(default=None, ge=0, le=2**31 - 1)
    triggers_per_minute: int | None = Field(default=None, ge=0, le=2**31 - 1)


class MigrationSettings(BaseSettings):
    """Where PostgreSQL is, for the owner of the schema, whom the owner lets in, and which organizations there are."""

    model_config = _CONFIG

    owner_database_url: SecretStr = Field(description="postgresql://…, as the role that owns the schema")
    service_role: str = Field(
        default="cronplane_service",
        pattern="^[a-z_][a-z0-9_]{0,62}$",
        description="the role that API and runner use; made without a password if it is absent",
    )
    organizations: dict[str, DeclaredOrganization] = Field(
        default={}, description="organizations that there have to be, by name, as a JSON object; no other is touched"
    )


class PostgresSettings(BaseSettings):
    """Settings of the PostgreSQL that serves for trying an installation out."""

    model_config = _CONFIG

    postgres_directory: Path = Field(
        default=Path("/var/lib/cronplane"), description="where its data is kept, in a folder of its own"
    )
    postgres_port: int = Field(default=5432, ge=1, le=65535, description="port to listen on")
    postgres_owner_password: SecretStr = Field(
        min_length=16, description="of the role cronplane, which owns the schema; taken over at each start"
    )
    postgres_service_password: SecretStr = Field(
        min_length=16, description="of the role cronplane_service, which API and runner use; taken over at each start"
    )


class TokenSettings(DatabaseSettings):
    """Settings of a role that makes or recognizes tokens of runs."""

    token_keys: SecretStr | None = Field(
        default=None,
        description="id:secret, with commas between several; the first signs tokens of runs, all are recognized. "
        "API and runner need the same; without any, no run can be completed by somebody else",
    )


class RegistrationSettings(BaseSettings):
    """What is allowed by default to whoever registers a cron, over the API or by a resource."""

    model_config = _CONFIG

    minimum_interval: Annotated[Duration, Field(ge=timedelta(seconds=60))] = Field(
        default=timedelta(seconds=60), description="shortest gap allowed between two fires of a cron"
    )
    cron_quota: int = Field(
        default=10_000, ge=0, le=2**31 - 1, description="crons of an organization that has no quota of its own"
    )


class ApiSettings(TokenSettings, RegistrationSettings):
    """Settings of the API."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    installation_key: SecretStr = Field(
        min_length=32, description="the secret that may create organizations and keys, and that signs cursors"
    )
    body_limit: int = Field(default=64 * 1024, ge=1024, le=16 * 1024 * 1024, description="bytes of a request's body")
    body_timeout: Duration = Field(
        default=timedelta(seconds=20),
        gt=timedelta(0),
        description="how long a request's body may take to arrive, whole",
    )
    head_timeout: Duration = Field(
        default=timedelta(seconds=20), gt=timedelta(0), description="how long a connection may stay without a request"
    )
    connection_limit: int = Field(
        default=1000, ge=1, description="connections at once; a request on one more is answered with 503"
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=25), ge=timedelta(seconds=1), description="how long requests may finish after SIGTERM"
    )
    triggers_per_minute: int = Field(
        default=600, ge=0, le=2**31 - 1, description="triggers of an organization that has no quota of its own"
    )
    pod_attempts: bool = Field(
        default=False, description="whether pods prove which attempt they are by tokens that Kubernetes has issued"
    )
    kubeconfig: Path | None = Field(
        default=None, description="how to reach the cluster; left out, by the service account of the pod"
    )
    api_pool_size: int = Field(default=10, ge=1, le=200, description="connections to PostgreSQL at most")


_DNS_LABEL = "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Namespace = Annotated[str, Field(pattern=_DNS_LABEL)]
# An organization by its id, or by its name if it is none.
OrganizationReference = Annotated[UUID | str, Field(union_mode="left_to_right")]


class KubernetesSettings(BaseSettings):
    """Settings of a role that works with a cluster."""

    model_config = _CONFIG

    kubeconfig: Path | None = Field(
        default=None, description="how to reach the cluster; left out, by the service account of the pod"
    )
    installation: Namespace = Field(
        description="what this installation is called in the cluster; no other one may have the name"
    )
    release_namespace: Namespace = Field(description="the namespace of the installation itself")
    namespaces: dict[Namespace, OrganizationReference] = Field(
        default={},
        description="namespaces with Cron resources, and the id or name of the organization of each, as a JSON object; "
        "several may map to one organization",
    )
    watch_probe_url: str | None = Field(
        default=None,
        pattern="^http://",
        description="where kopf answers while it watches, in seconds since runner and reconciler came round last, such "
        "as http://0.0.0.0:8082/healthz; left out, nowhere",
    )
    mirror_writes_per_second: float = Field(
        default=100.0, gt=0, le=1000, description="writes of Cron resources in a second, at most"
    )


class GeneratedKey(BaseModel):
    """A key of a Secret that is made at random: a password, or keys that sign tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    generate: Literal["password", "token-keys"]


class TemplatedKey(BaseModel):
    """A key of a Secret that is put together of others: each of their names, in braces, becomes their value.

    Values are written as the parts of an address are (RFC 3986, section 2.1).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = Field(min_length=1)


class DeclaredSecret(BaseModel):
    """A Secret that there has to be, with the keys that it has to have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern="^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
    keys: dict[Annotated[str, Field(pattern="^[-._a-zA-Z0-9]{1,253}$")], GeneratedKey | TemplatedKey] = Field(
        min_length=1
    )
    labels: dict[str, str] = {}


class CredentialsSettings(BaseSettings):
    """Which Secrets there have to be in the namespace of the installation."""

    model_config = _CONFIG

    kubeconfig: Path | None = Field(
        default=None, description="how to reach the cluster; left out, by the service account of the pod"
    )
    release_namespace: Namespace = Field(description="the namespace of the installation itself")
    credentials: list[DeclaredSecret] = Field(description="Secrets and their keys, as a JSON list")


class SelftestSettings(BaseSettings):
    """What a trial of an installation has to know of it."""

    model_config = _CONFIG

    url: str = Field(pattern="^https?://", description="where the API is")
    installation_key: SecretStr = Field(description="that of the API")
    selftest_organization: str = Field(min_length=1, description="the name of the organization that it is tried with")
    selftest_patience: Duration = Field(
        default=timedelta(minutes=5), gt=timedelta(0), description="how long all of it may take"
    )
    kubeconfig: Path | None = Field(
        default=None, description="how to reach the cluster; left out, by the service account of the pod"
    )
    release_namespace: Namespace = Field(description="the namespace of the installation itself")
    namespaces: dict[Namespace, OrganizationReference] = Field(
        default={}, description="as the operator has them: namespaces and the id or name of the organization of each"
    )


class PodProfile(BaseModel):
    """How the pods of an entry are made; what is left out is Kubernetes' own default, or the installation's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str | None = Field(default=None, min_length=1, description="with Cronplane and the entry inside")
    service_account: Namespace | None = Field(default=None, description="left out, the one of all runs")
    requests: dict[str, str] = Field(default={}, description="resources that a pod is given, as Kubernetes names them")
    limits: dict[str, str] = Field(default={}, description="resources that a pod may take at most")
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, str | int]] = []
    environment: dict[str, str] = Field(default={}, description="nothing secret: it is seen in the Job")
    environment_secrets: list[str] = Field(default=[], description="names of Secrets whose keys become variables")
    secret_files: dict[str, str] = Field(default={}, description="names of Secrets, and where their files are mounted")
    image_pull_secrets: list[str] = []
    run_as_user: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="user and group of the processes; left out, our image's or the image's own",
    )
    runtime_class: str | None = None
    priority_class: str | None = None


class PodSettings(BaseSettings):
    """How attempts run in pods; without an image, none do."""

    model_config = _CONFIG

    run_image: str | None = Field(
        default=None,
        min_length=1,
        description="the image of runs whose profile names none; left out, nothing runs in pods",
    )
    run_namespace: Namespace | None = Field(
        default=None, description="where the Jobs of runs are made; left out, in the namespace of the installation"
    )
    run_service_account: Namespace = Field(
        default="cronplane-run", description="the account of runs whose profile names none; it needs no rights"
    )
    run_api_url: str = Field(
        default="http://cronplane-api:8080", pattern="^https?://", description="where the API is for pods of runs"
    )
    pod_profiles: dict[str, PodProfile] = Field(
        default={}, description="profiles by name, as a JSON object; an entry that names none has `default`"
    )
    pod_start_timeout: Duration = Field(
        default=timedelta(minutes=10),
        ge=timedelta(seconds=10),
        description="how long a pod may take until its attempt begins: pulling its image, finding a node",
    )
    pod_launches: int = Field(default=32, ge=1, le=200, description="Jobs that are made at once, at most")


class AttemptSettings(BaseSettings):
    """What the process of a pod is told of the attempt that it is."""

    model_config = _CONFIG

    run_api_url: str = Field(pattern="^https?://", description="where the API is")
    run_id: UUID
    attempt: int = Field(ge=1)
    attempt_token_file: Path = Field(description="the token that proves it, which may be renewed at any time")
    attempt_location: str = Field(min_length=1, description="where it runs: the pod's name")
    attempt_entrypoint: str = Field(min_length=1, description="the entry that it runs")


class RunnerSettings(TokenSettings):
    """Settings of the runner."""

    workers: int = Field(default=2, ge=1, le=256, description="worker processes kept ready for in-process entries")
    max_workers: int = Field(default=16, ge=1, le=1024, description="worker processes at most, while some are blocked")
    worker_memory: int = Field(
        default=2**30,
        ge=0,
        description="bytes that a worker may take for an entry, with what it starts; 0 for no limit",
    )
    lease_duration: Duration = Field(
        default=timedelta(seconds=15), ge=timedelta(seconds=3), description="how long a silent leader stays leader"
    )
    resync_interval: Duration = Field(
        default=timedelta(seconds=1), description="how often the runner reads what changed in the table"
    )
    comparison_interval: Duration = Field(
        default=timedelta(minutes=5), description="how often the runner compares the whole table"
    )
    scan_interval: Duration = Field(
        default=timedelta(minutes=5),
        gt=timedelta(0),
        description="how often the leader checks the record of every cron, as `cronplane check` does",
    )
    metrics_host: str = Field(default="127.0.0.1", description="address that serves the runner's metrics and probes")
    metrics_port: int = Field(
        default=8081, ge=0, le=65535, description="port of the runner's metrics and probes; 0 takes a free one"
    )
    drain_grace: Duration = Field(
        default=timedelta(seconds=25), description="how long running entries may finish after SIGTERM"
    )
    runner_pool_size: int = Field(default=6, ge=4, le=50, description="connections to PostgreSQL at most")
