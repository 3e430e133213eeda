"""Which resource in a cluster defines a cron, and with what that resource may go without having been deleted."""

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS = (
    """
    ALTER TABLE scheduler.cron_jobs
        ADD COLUMN source_namespace text,
        ADD COLUMN source_name text,
        ADD COLUMN source_scope text
    """,
    "COMMENT ON COLUMN scheduler.cron_jobs.source_namespace IS 'namespace of that resource'",
    "COMMENT ON COLUMN scheduler.cron_jobs.source_name IS 'name of that resource'",
    """
    COMMENT ON COLUMN scheduler.cron_jobs.source_scope IS
        'with what that resource goes without anybody having deleted it'
    """,
    """
    CREATE UNIQUE INDEX cron_jobs_one_per_resource ON scheduler.cron_jobs (source_namespace, source_name)
        WHERE deleted_at IS NULL AND source = 'kubernetes'
    """,
)


def upgrade() -> None:
    """Add the columns."""
    for statement in STATEMENTS:
        op.execute(statement)
