"""What a cron is, for everybody: settings, tables, schedule, repositories and the leader's lease.

This package knows nothing of HTTP, of APScheduler or of Kubernetes; everything else builds on it.
"""

__version__ = "0.1.0"
