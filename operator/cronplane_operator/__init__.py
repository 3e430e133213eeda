"""The runner and its reconciler: keeps APScheduler equal to the table, claims fires, runs them, records outcomes."""
