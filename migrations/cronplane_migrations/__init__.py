"""The schema's history (Alembic) and the command that brings a database up to it."""
