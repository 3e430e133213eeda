"""Which crons resources show, found by where the resources are."""

from datetime import timedelta
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from cronplane_core import cron_mirror_repository as mirrors
from cronplane_core.cron_repository import (
    DefiningResource,
    Definition,
    NewCron,
    Policy,
    delete_cron,
    insert_crons,
    lock_cron,
)
from cronplane_core.database import transaction
from cronplane_core.organization_repository import Organization


def defined(name: str, /, *, by: str | None) -> NewCron:
    resource = None
    if by is not None:
        resource = DefiningResource(namespace="acme", name=by, uid=str(uuid4()), generation=1, scope="scope")
    definition = Definition(
        name=name,
        cron_expr="0 3 * * *",
        tz="UTC",
        entrypoint="dummy_print",
        user_payload={},
        execution_payload={},
        policy=Policy(timeout=timedelta(minutes=1)),
        enabled=True,
    )
    return NewCron(id=uuid4(), definition=definition, created_by="test", resource=resource)


async def test_crons_are_found_by_the_places_of_the_resources_that_mirror_or_define_them(
    engine: AsyncEngine, organization: Organization
) -> None:
    new = [defined("mirrored", by=None), defined("applied", by="a-name"), defined("deleted", by="another")]
    async with transaction(engine) as connection:
        mirrored, applied, deleted = await insert_crons(connection, organization_id=organization.id, crons=new)
        await mirrors.take_place(connection, cron_id=mirrored.id, namespace="acme", name="its-mirror")
        locked = await lock_cron(connection, organization_id=organization.id, cron_id=deleted.id)
        assert locked is not None
        await delete_cron(connection, cron=locked, deleted_by="test")
        places = {("acme", "its-mirror"), ("acme", "a-name"), ("acme", "another"), ("acme", 'no"body, {}')}
        assert await mirrors.read_shown_at(connection, places=places) == {mirrored.id, applied.id}
        assert await mirrors.read_shown_at(connection, places={("elsewhere", "a-name")}) == set()
        assert await mirrors.read_shown_at(connection, places=set()) == set()
