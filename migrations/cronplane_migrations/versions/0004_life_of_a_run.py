"""Retries, deadlines, cancellation and completion by others: what a run and its attempts have to remember for them."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = (
    """
    ALTER TABLE scheduler.cron_jobs
        ADD COLUMN run_timeout interval
            CONSTRAINT cron_jobs_run_timeout_bounded
            CHECK (run_timeout > interval '0' AND run_timeout <= interval '1 year')
    """,
    "ALTER TABLE scheduler.cron_job_versions ADD COLUMN run_timeout interval",
    """
    ALTER TABLE scheduler.cron_runs
        ADD COLUMN not_before timestamptz,
        ADD COLUMN deadline timestamptz,
        ADD COLUMN cancel_requested_at timestamptz,
        ADD COLUMN cancel_requested_by text,
        ADD COLUMN rerun_of uuid
    """,
    "COMMENT ON COLUMN scheduler.cron_runs.not_before IS 'when a retry may begin'",
    "COMMENT ON COLUMN scheduler.cron_runs.deadline IS 'no attempt begins or goes on after it'",
    "COMMENT ON COLUMN scheduler.cron_runs.rerun_of IS 'the run that was run again by this one'",
    """
    ALTER TABLE scheduler.cron_attempts
        ADD COLUMN execution text DEFAULT 'in_process' NOT NULL
            CONSTRAINT cron_attempts_execution_known CHECK (execution IN ('in_process', 'pod')),
        ADD COLUMN deadline timestamptz,
        ADD COLUMN callback_hash bytea
    """,
    """
    COMMENT ON COLUMN scheduler.cron_attempts.execution
    IS 'who keeps its lease: the runner, or heartbeats of its own'
    """,
    """
    COMMENT ON COLUMN scheduler.cron_attempts.callback_hash
    IS 'SHA-256 of the token by which somebody else may tell its end; null once it was used'
    """,
)


def upgrade() -> None:
    """Add the columns."""
    for statement in STATEMENTS:
        op.execute(statement)
