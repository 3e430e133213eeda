"""Where the mirror of a cron is in a cluster: a name that stays for the cron's life, whatever it is called later."""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = (
    """
    CREATE TABLE scheduler.cron_mirrors (
        cron_id uuid PRIMARY KEY REFERENCES scheduler.cron_jobs ON DELETE CASCADE,
        namespace text NOT NULL,
        name text NOT NULL,
        uid text,
        CONSTRAINT cron_mirrors_namespace_name_key UNIQUE (namespace, name)
    )
    """,
    "COMMENT ON COLUMN scheduler.cron_mirrors.uid IS 'of the resource that was made there'",
)


def upgrade() -> None:
    """Add the table."""
    for statement in STATEMENTS:
        op.execute(statement)
