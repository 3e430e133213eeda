"""Organizations and their keys, as the service's role reads and writes them."""

import hashlib
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import api_key_repository, organization_repository
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization, OrganizationNameTakenError
from cronplane_core.tables import OrganizationState, Role

NOON = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)


async def make_key(engine: AsyncEngine, organization: Organization, role: Role = Role.EDITOR) -> tuple[Any, str]:
    async with transaction(engine) as connection:
        return await api_key_repository.create_api_key(
            connection, organization_id=organization.id, name="laptop", role=role, created_by="installation"
        )


async def recognize(engine: AsyncEngine, key_text: str) -> api_key_repository.AuthenticatedKey | None:
    async with transaction(engine) as connection:
        [key] = await api_key_repository.authenticate(connection, key_texts=[key_text])
        return key


async def test_an_organization_is_found_as_it_was_made(engine: AsyncEngine, database: Any) -> None:
    database.set_clock(NOON, speed=0)
    async with transaction(engine) as connection:
        made = await organization_repository.create_organization(connection, name="acme 🚀")
        found = await organization_repository.get_organization(connection, organization_id=made.id)
        absent = await organization_repository.get_organization(connection, organization_id=uuid4())
    assert found == made
    assert (made.name, made.state, made.created_at) == ("acme 🚀", OrganizationState.ACTIVE, NOON)
    assert absent is None


async def test_the_name_of_an_organization_is_taken_once(engine: AsyncEngine, organization: Organization) -> None:
    with pytest.raises(OrganizationNameTakenError, match="acme"):
        async with transaction(engine) as connection:
            await organization_repository.create_organization(connection, name=organization.name)


async def test_pages_of_organizations_hold_each_once_and_in_order(engine: AsyncEngine, database: Any) -> None:
    database.set_clock(NOON, speed=0)
    async with transaction(engine) as connection:
        made = [await organization_repository.create_organization(connection, name=f"{n}") for n in range(5)]
        listed: list[Organization] = []
        while page := await organization_repository.list_organizations(
            connection, after=(listed[-1].created_at, listed[-1].id) if listed else None, limit=2
        ):
            assert len(page) <= 2
            listed.extend(page)
    assert listed == sorted(made, key=lambda organization: organization.id)


async def test_a_key_is_recognized_by_its_text(engine: AsyncEngine, organization: Organization, database: Any) -> None:
    api_key, text = await make_key(engine, organization)
    database.set_clock(NOON, speed=0)
    recognized = await recognize(engine, text)
    assert recognized == api_key_repository.AuthenticatedKey(
        id=api_key.id,
        name="laptop",
        role=Role.EDITOR,
        organization_id=organization.id,
        organization_name="acme",
        granted_entrypoints=None,
        now=NOON,
    )


async def test_the_table_holds_the_hash_of_a_keys_secret_and_not_the_secret(
    engine: AsyncEngine, organization: Organization, database: Any
) -> None:
    api_key, text = await make_key(engine, organization)
    head, key_id, secret = text.split("_", 2)
    row = database.execute("SELECT secret_hash, api_keys::text FROM scheduler.api_keys")[0]
    assert (head, key_id, len(secret)) == ("cronplane", api_key.id.hex, 43)
    assert row[0] == hashlib.sha256(secret.encode()).digest()
    assert secret not in row[1]


async def test_a_key_costs_one_query_to_recognize(
    engine: AsyncEngine, organization: Organization, statements: list[Any]
) -> None:
    _, text = await make_key(engine, organization)
    statements.clear()
    assert await recognize(engine, text) is not None
    assert len(statements) == 1


async def test_a_key_with_another_secret_is_not_recognized(engine: AsyncEngine, organization: Organization) -> None:
    (_, text), (_, other) = await make_key(engine, organization), await make_key(engine, organization)
    assert await recognize(engine, text[:-43] + other[-43:]) is None
    assert await recognize(engine, f"cronplane_{uuid4().hex}_{text[-43:]}") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cronplane_",
        "cronplane_0123_abc",
        f"cronplane_{'g' * 32}_{'a' * 43}",
        f"cronplane_{'A' * 32}_{'a' * 43}",
        f"cronplane_{'0' * 32}_{'a' * 42}",
        f"cronplane_{'0' * 32}_{'a' * 44}",
        f"cronplane_{'0' * 32}_{'a' * 42}\n",
        f"cronplane_{'0' * 32}_{'a' * 43}\n",
        f"cronplane_{'0' * 32}_{'a' * 42}\0",
        f"cronplane_{'0' * 32}_{'é' * 43}",
        f"cronplane_{chr(0x660) * 32}_{'a' * 43}",
        f" cronplane_{'0' * 32}_{'a' * 43}",
    ],
)
async def test_what_does_not_look_like_a_key_is_refused_without_a_query(
    engine: AsyncEngine, statements: list[Any], text: str
) -> None:
    assert await recognize(engine, text) is None
    assert statements == []


async def test_a_revoked_key_is_not_recognized_and_is_revoked_once(
    engine: AsyncEngine, organization: Organization
) -> None:
    api_key, text = await make_key(engine, organization)
    revocation = {"organization_id": organization.id, "key_id": api_key.id}
    async with transaction(engine) as connection:
        assert await api_key_repository.revoke_api_key(connection, **revocation)
        assert not await api_key_repository.revoke_api_key(connection, **revocation)
        listed = await api_key_repository.list_api_keys(connection, organization_id=organization.id)
    assert await recognize(engine, text) is None
    assert [key.id for key in listed if key.revoked_at is not None] == [api_key.id]


async def test_an_organization_neither_sees_nor_revokes_anothers_key(
    engine: AsyncEngine, organization: Organization, other_organization: Organization
) -> None:
    api_key, text = await make_key(engine, organization)
    async with transaction(engine) as connection:
        seen = await api_key_repository.list_api_keys(connection, organization_id=other_organization.id)
        revoked = await api_key_repository.revoke_api_key(
            connection, organization_id=other_organization.id, key_id=api_key.id
        )
    assert (seen, revoked) == ([], False)
    assert await recognize(engine, text) is not None


async def test_keys_are_listed_in_the_order_in_which_they_were_made(
    engine: AsyncEngine, organization: Organization
) -> None:
    made = [(await make_key(engine, organization, role))[0] for role in Role]
    async with transaction(engine) as connection:
        assert await api_key_repository.list_api_keys(connection, organization_id=organization.id) == made


async def test_keys_of_a_suspended_organization_are_not_recognized(
    engine: AsyncEngine, organization: Organization, database: Any
) -> None:
    _, text = await make_key(engine, organization)
    database.execute("UPDATE scheduler.organizations SET state = 'suspended'")
    assert await recognize(engine, text) is None
