"""When the leader last said that it is there, so that everybody can tell for how long there has been none."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    # Null as long as the leader is of an older version, which does not write it.
    "ALTER TABLE scheduler.leases ADD COLUMN renewed_at timestamptz",
    "COMMENT ON COLUMN scheduler.leases.renewed_at IS 'when the holder took or renewed it last'",
)


def upgrade() -> None:
    """Add the column."""
    for statement in STATEMENTS:
        op.execute(statement)
