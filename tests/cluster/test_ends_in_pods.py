"""Entries end in real pods as they end in the runner, and have there what their profiles bring."""

import json
import secrets
from typing import Any

FINISHED = "SELECT count(*) = %s FROM scheduler.cron_runs WHERE finished_at IS NOT NULL"
RUNS = """
    SELECT cron.name, run.status, run.reason FROM scheduler.cron_runs run
    JOIN scheduler.cron_jobs cron ON cron.id = run.cron_id
"""
PROFILE_ENTRIES = ("hungry", "homeless", "trusted")


async def test_every_entry_ends_alike_in_a_real_pod(
    *, ends: Any, queue: Any, start_with_pods: Any, database: Any, until: Any
) -> None:
    for number, end in enumerate(ends):
        await queue(end.entrypoint, end.payload, name=f"{number} {end.entrypoint}")
    start_with_pods(*{end.entrypoint for end in ends})
    await until(FINISHED, [len(ends)])
    expected = {(f"{number} {end.entrypoint}", end.status, end.reason) for number, end in enumerate(ends)}
    assert set(database.execute(RUNS)) == expected
    assert database.execute("SELECT DISTINCT execution FROM scheduler.cron_attempts") == [("pod",)]


async def test_a_profile_limits_a_pods_memory_chooses_its_node_and_brings_it_secrets_that_no_resource_shows(
    *, queue: Any, start_with_pods: Any, database: Any, until: Any, kubectl: Any, installation: Any
) -> None:
    here = ("--namespace", installation.runs)
    in_environment, in_file = secrets.token_hex(16), secrets.token_hex(16)
    kubectl(
        "create",
        "secret",
        "generic",
        "settings",
        f"--from-literal=CRONPLANE_ENTRY_TRUSTED_WORD={in_environment}",
        *here,
    )
    kubectl("create", "secret", "generic", "files", f"--from-literal=word={in_file}", *here)
    profiles = {
        "small": {"limits": {"memory": "192Mi"}, "requests": {"memory": "64Mi", "cpu": "10m"}},
        "elsewhere": {"node_selector": {"cronplane.dev/nowhere": "true"}},
        "with-secrets": {"environment_secrets": ["settings"], "secret_files": {"files": "/etc/secrets/files"}},
    }
    for entrypoint in PROFILE_ENTRIES:
        await queue(entrypoint, {}, name=entrypoint)
    operator = start_with_pods(*PROFILE_ENTRIES, pod_profiles=json.dumps(profiles), pod_start_timeout=15)
    await until(FINISHED, [len(PROFILE_ENTRIES)])
    assert set(database.execute(RUNS)) == {
        ("hungry", "error", "OutOfMemory"),
        ("homeless", "error", "Unschedulable"),
        ("trusted", "completed", "Completed"),
    }
    [[result]] = database.execute("SELECT result FROM scheduler.cron_runs WHERE status = 'completed'")
    assert result == {"word": in_environment, "file": in_file}
    shown = json.dumps(kubectl.read("jobs,pods,events", *here))
    assert [word in shown for word in (in_environment, in_file)] == [False, False]
    assert [operator.log.count(word) for word in (in_environment, in_file)] == [0, 0]
