"""The `cronplane` command: the only place that composes API and runner."""
