"""Benchmarks: each prints our figure beside a baseline of the same run, on the same server."""
