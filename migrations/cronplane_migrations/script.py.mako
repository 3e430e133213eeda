"""${message}."""

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply the change; older code must go on working beside it (expand first, contract a release later)."""
    ${upgrades if upgrades else ""}
