"""What the tests of the API share: the real application on a fresh database, and a key of each role."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_api.application import create_application
from cronplane_core.api_key_repository import create_api_key
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization, create_organization
from cronplane_core.settings import ApiSettings
from cronplane_core.tables import Role
from cronplane_entries.registry import CronRegistry

TOKEN_KEYS = f"tests:{secrets.token_urlsafe(32)}"
INSTALLATION_KEY = "the-installation-key-of-these-tests-0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """The application, and who calls it: `keys` has one per role, `installation`, and another tenant's `stranger`."""

    application: FastAPI
    client: httpx2.AsyncClient
    organization_id: UUID
    stranger_id: UUID
    keys: Mapping[str, str]

    async def call(self, method: str, path: str, *, key: str | None = "admin", **options: Any) -> httpx2.Response:
        """Send a request; a `path` that does not begin with a slash lies below the organization's crons."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {self.keys[key]}")
        return await self.client.request(method, self.path(path), headers=headers, **options)

    def path(self, path: str) -> str:
        return path if path.startswith("/") else f"/crons/{self.organization_id}{'/' if path else ''}{path}"

    async def register(self, name: str = "my job", **changes: Any) -> dict[str, Any]:
        """Register a cron and give it as it was answered."""
        body = {
            "name": name,
            "cron_expr": "0 9 * * 1-5",
            "tz": "UTC",
            "entrypoint": "dummy_print",
            "payload": {"message": "hello"},
        }
        answer = await self.call("POST", "", json=body | changes)
        assert answer.status_code == 201, answer.text
        cron: dict[str, Any] = answer.json()
        return cron


@pytest.fixture
def token_keys() -> str:
    """The keys that the API of these tests signs and recognizes tokens of runs with."""
    return TOKEN_KEYS


@pytest.fixture
def api_settings(database: Any) -> Callable[..., ApiSettings]:
    """Settings of an API on the test's database, or on another one."""

    def settings(url: URL = database.url, **others: Any) -> ApiSettings:
        return ApiSettings(
            database_url=SecretStr(url.render_as_string(hide_password=False)),
            installation_key=SecretStr(INSTALLATION_KEY),
            token_keys=SecretStr(TOKEN_KEYS),
            **others,
        )

    return settings


@pytest.fixture
async def start_api(api_settings: Callable[..., ApiSettings], entries: CronRegistry) -> AsyncIterator[Any]:
    """Start applications and give each with a client; they stop with the test."""
    async with AsyncExitStack() as stack:

        async def start(
            settings: ApiSettings | None = None, *, registry: CronRegistry = entries
        ) -> tuple[FastAPI, httpx2.AsyncClient]:
            application = create_application(settings or api_settings(), registry=registry)
            await stack.enter_async_context(application.router.lifespan_context(application))
            transport = httpx2.ASGITransport(application, raise_app_exceptions=False)
            client = await stack.enter_async_context(httpx2.AsyncClient(transport=transport, base_url="http://api"))
            return application, client

        yield start


@pytest.fixture
async def api(start_api: Any, engine: AsyncEngine, organization: Organization) -> Api:
    application, client = await start_api()
    keys = {"installation": INSTALLATION_KEY}
    async with transaction(engine) as connection:
        stranger = await create_organization(connection, name="somebody else")
        for name, owner in [*((role.value, organization) for role in Role), ("stranger", stranger)]:
            role = Role.ADMIN if name == "stranger" else Role(name)
            _, keys[name] = await create_api_key(
                connection, organization_id=owner.id, name=name, role=role, created_by="test"
            )
    return Api(
        application=application,
        client=client,
        organization_id=organization.id,
        stranger_id=stranger.id,
        keys=keys,
    )
