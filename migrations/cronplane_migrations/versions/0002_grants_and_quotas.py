"""What each organization may use and how much of it; a count of its crons, so that a quota costs no counting."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    # First, since it takes the longest: while organizations are locked, no key is recognized.
    """
    CREATE INDEX cron_runs_triggered ON scheduler.cron_runs (organization_id, created_at)
    WHERE trigger_kind = 'manual'
    """,
    """
    ALTER TABLE scheduler.organizations
        ADD COLUMN entrypoints text[],
        ADD COLUMN cron_quota integer
            CONSTRAINT organizations_cron_quota_not_negative CHECK (cron_quota >= 0),
        ADD COLUMN triggers_per_minute integer
            CONSTRAINT organizations_triggers_per_minute_not_negative CHECK (triggers_per_minute >= 0),
        ADD COLUMN crons bigint DEFAULT 0 NOT NULL
    """,
    "COMMENT ON COLUMN scheduler.organizations.entrypoints IS 'the entries it may use; null for every one'",
    "COMMENT ON COLUMN scheduler.organizations.cron_quota IS 'null for the installation''s default'",
    "COMMENT ON COLUMN scheduler.organizations.triggers_per_minute IS 'null for the installation''s default'",
    """
    COMMENT ON COLUMN scheduler.organizations.crons
    IS 'how many crons it has; counted again before a quota refuses one'
    """,
    """
    UPDATE scheduler.organizations organization SET crons = (
        SELECT count(*) FROM scheduler.cron_jobs cron
        WHERE cron.organization_id = organization.id AND cron.deleted_at IS NULL
    )
    """,
)


def upgrade() -> None:
    """Add the columns and the index."""
    for statement in STATEMENTS:
        op.execute(statement)
