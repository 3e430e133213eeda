"""The Kubernetes Job that may run an attempt, and what its pod wrote."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = (
    """
    CREATE TABLE scheduler.attempt_jobs (
        run_id uuid NOT NULL REFERENCES scheduler.cron_runs ON DELETE CASCADE,
        number integer NOT NULL,
        namespace text NOT NULL,
        name text NOT NULL,
        uid text NOT NULL,
        service_account text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT scheduler.now(),
        settled_at timestamptz,
        log text,
        CONSTRAINT attempt_jobs_pkey PRIMARY KEY (run_id, number)
    )
    """,
    "COMMENT ON COLUMN scheduler.attempt_jobs.uid IS 'of the Job; a pod that it does not control is not the attempt'",
    "COMMENT ON COLUMN scheduler.attempt_jobs.settled_at IS 'when nothing was left to do for it'",
    "COMMENT ON COLUMN scheduler.attempt_jobs.log IS 'the end of what its pod wrote, bounded'",
    "CREATE INDEX attempt_jobs_unsettled ON scheduler.attempt_jobs (run_id) WHERE settled_at IS NULL",
)


def upgrade() -> None:
    """Add the table."""
    for statement in STATEMENTS:
        op.execute(statement)
