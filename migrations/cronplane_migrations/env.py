"""Alembic's entry point: runs the revisions on the connection that `migrate` hands over, and on no other."""

from alembic import context

from cronplane_core.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
