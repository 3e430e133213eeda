"""The statements of the busiest routes, batched: a key recognized, a cron inserted.

Each costs this process and PostgreSQL about as much for eight requests as for one. What one request asks is answered
as if it had asked alone: a key is looked up after the request came, and a cron that is refused spoils no neighbour's.
"""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core.api_key_repository import AuthenticatedKey, authenticate
from cronplane_core.batcher import Batcher
from cronplane_core.cron_repository import Cron, NewCron
from cronplane_core.database import DatabaseError, DatabaseUnavailableError, autocommit
from cronplane_entries.registration import Registrar

KeyRecognition = Batcher[None, str, AuthenticatedKey | None]
CronInsertion = Batcher[UUID, NewCron, Cron]

_MOST_KEYS = 200
# A payload may have 128 KiB twice over.
_MOST_CRONS = 50


def key_recognition(engine: AsyncEngine) -> KeyRecognition:
    """Recognize keys by their texts."""

    async def recognize(_: None, key_texts: Sequence[str]) -> Sequence[AuthenticatedKey | None]:
        async with autocommit(engine) as connection:
            return await authenticate(connection, key_texts=key_texts)

    return Batcher(recognize, most=_MOST_KEYS)


def cron_insertion(engine: AsyncEngine, registrar: Registrar) -> CronInsertion:
    """Insert crons, those of one organization together: one by one they would wait for its number of crons anyway."""

    async def insert(organization_id: UUID, crons: Sequence[NewCron]) -> list[Cron]:
        async with autocommit(engine) as connection:
            return await registrar.register(connection, organization_id=organization_id, crons=crons)

    async def insert_each(organization_id: UUID, crons: Sequence[NewCron]) -> list[Cron | Exception]:
        outcomes: list[Cron | Exception] = []
        for cron in crons:
            try:
                outcomes.extend(await insert(organization_id, [cron]))
            except (DatabaseError, DBAPIError) as error:
                outcomes.append(error)
        return outcomes

    async def insert_all(organization_id: UUID, crons: Sequence[NewCron]) -> Sequence[Cron | Exception]:
        try:
            return await insert(organization_id, crons)
        except DatabaseUnavailableError:
            # Whether it took effect is unknown, and what did must not be inserted twice.
            raise
        except (DatabaseError, DBAPIError):
            return await insert_each(organization_id, crons)

    return Batcher(insert_all, most=_MOST_CRONS)
