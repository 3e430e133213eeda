"""Makes the passwords and keys of an installation, once, into Secrets.

A template that made them would make others at each upgrade, or would have to look into the cluster, where tools that
render manifests elsewhere cannot. A value that is there is never changed and never printed; what is missing is added
under the resource version that was read, so that of two that do this at once one finds and keeps the other's values.
"""

import asyncio
import re
import secrets
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from cronplane_cli.environment import read_settings
from cronplane_cli.errors import CommandError
from cronplane_core.kubernetes_client import (
    SECRETS,
    Body,
    KubernetesClient,
    ResourceConflictError,
    ResourceNotFoundError,
)
from cronplane_core.log import configure_logging
from cronplane_core.settings import (
    CredentialsSettings,
    DeclaredSecret,
    GeneratedKey,
    LogSettings,
    TemplatedKey,
)

# Bytes of randomness: a password of 43 characters, all of which stand for themselves in an address.
_RANDOMNESS = 32
_FIRST_KEY_ID = "1"
_PLACE = re.compile(r"\{([-._a-zA-Z0-9]+)\}")
# Whoever loses a race finds the other's values; many that race here are none of ours.
_TRIES = 10


def run() -> list[str]:
    """Let there be the Secrets that the environment declares; tells of each what was done, in a sentence.

    Raises:
        CronplaneError: one could not be made; those before it are.

    """
    configure_logging(read_settings(LogSettings))
    settings = read_settings(CredentialsSettings)
    for declared in settings.credentials:
        _check_templates(declared)
    return asyncio.run(_run(settings))


async def _run(settings: CredentialsSettings) -> list[str]:
    async with KubernetesClient.connected(kubeconfig=settings.kubeconfig) as client:
        return [
            await keep_secret(client, declared, namespace=settings.release_namespace)
            for declared in settings.credentials
        ]


async def keep_secret(client: KubernetesClient, declared: DeclaredSecret, *, namespace: str) -> str:
    """Let there be a Secret with all its keys, and say what was done for it."""
    for _ in range(_TRIES):
        try:
            return await _keep_secret(client, declared, namespace=namespace)
        except ResourceConflictError:
            continue
    raise CommandError(f"Secret {declared.name} is changed by others all the time; try again")


async def _keep_secret(client: KubernetesClient, declared: DeclaredSecret, *, namespace: str) -> str:
    try:
        found = await client.get(SECRETS, name=declared.name, namespace=namespace)
    except ResourceNotFoundError:
        await client.create(SECRETS, _new_secret(declared), namespace=namespace)
        return f"Secret {declared.name}: made."
    missing = missing_keys(declared, found.get("data") or {})
    if not missing:
        return f"Secret {declared.name}: nothing is missing."
    change = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "data": missing}
    await client.patch(SECRETS, change, name=declared.name, namespace=namespace)
    return f"Secret {declared.name}: added {', '.join(missing)}."


def missing_keys(declared: DeclaredSecret, data: Mapping[str, str]) -> dict[str, str]:
    """Give what a Secret lacks; `data` is what it has, and both are in Base64 as Kubernetes keeps them."""
    values = {key: b64decode(value).decode(errors="replace") for key, value in data.items()}
    missing = {key: how for key, how in declared.keys.items() if key not in data}
    generated = {key: _generated(how) for key, how in missing.items() if isinstance(how, GeneratedKey)}
    known = values | generated
    templated = {key: _filled(how, known) for key, how in missing.items() if isinstance(how, TemplatedKey)}
    return {key: b64encode(value.encode()).decode() for key, value in (generated | templated).items()}


def _new_secret(declared: DeclaredSecret) -> Body:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": declared.name, "labels": declared.labels},
        "data": missing_keys(declared, {}),
    }


def _generated(how: GeneratedKey) -> str:
    secret = secrets.token_urlsafe(_RANDOMNESS)
    return f"{_FIRST_KEY_ID}:{secret}" if how.generate == "token-keys" else secret


def _filled(how: TemplatedKey, values: Mapping[str, str]) -> str:
    return _PLACE.sub(lambda found: quote(values[found[1]], safe=""), how.template)


def _check_templates(declared: DeclaredSecret) -> None:
    """Refuse a template that names what is not made at random, which would depend on the order of keys.

    Raises:
        CommandError: there is one.

    """
    for key, name in _named(declared):
        if not isinstance(declared.keys.get(name), GeneratedKey):
            raise CommandError(
                f"Set CRONPLANE_CREDENTIALS right: {key} of {declared.name} names {name}, "
                "which is none of its generated keys"
            )


def _named(declared: DeclaredSecret) -> Iterator[tuple[str, str]]:
    for key, how in declared.keys.items():
        if isinstance(how, TemplatedKey):
            for name in _PLACE.findall(how.template):
                yield key, name
