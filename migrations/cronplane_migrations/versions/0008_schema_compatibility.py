"""Which code may serve with the schema: a revision that older code cannot live with says so here."""

from alembic import op
from sqlalchemy import text

revision = "0008"
down_revision = "0007"

STATEMENTS = (
    """
    CREATE TABLE scheduler.schema_compatibility (
        only_row boolean DEFAULT true CONSTRAINT schema_compatibility_pkey PRIMARY KEY
            CONSTRAINT schema_compatibility_only_row CHECK (only_row),
        oldest_code_revision text NOT NULL
    )
    """,
    """
    COMMENT ON COLUMN scheduler.schema_compatibility.oldest_code_revision
    IS 'code whose newest revision is older than this one must not serve'
    """,
)
# Code that is older than the table does not ask it.
OLDEST_CODE = text("INSERT INTO scheduler.schema_compatibility (oldest_code_revision) VALUES (:revision)")


def upgrade() -> None:
    """Add the table with its one row."""
    for statement in STATEMENTS:
        op.execute(statement)
    op.execute(OLDEST_CODE.bindparams(revision=revision))
