"""Which crons are not deleted though their resources are gone, so that the next leader does not delete them either."""

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    "ALTER TABLE scheduler.cron_jobs ADD COLUMN deletion_held boolean NOT NULL DEFAULT false",
    """
    COMMENT ON COLUMN scheduler.cron_jobs.deletion_held IS
        'its resource went together with too many others, and nobody has confirmed that it is to be deleted'
    """,
)


def upgrade() -> None:
    """Add the column."""
    for statement in STATEMENTS:
        op.execute(statement)
