"""API and runner as processes beside a schema that is missing, newer or too new, and the migration that waits."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from cronplane_core.database import connection_string
from cronplane_core.schema_revision import REVISION

COMMAND = Path(sys.executable).with_name("cronplane")
NEWER = "UPDATE scheduler.alembic_version SET version_num = '9999'"
TOO_NEW = "UPDATE scheduler.schema_compatibility SET oldest_code_revision = '9998'"
AS_BEFORE = f"UPDATE scheduler.schema_compatibility SET oldest_code_revision = '{REVISION}'"
HANG_GUARD = 30.0


def migrate(*arguments: str, url: str, **settings: str) -> subprocess.CompletedProcess[str]:
    given = {f"CRONPLANE_{name.upper()}": value for name, value in settings.items()}
    environment = {"PATH": os.defpath, "CRONPLANE_OWNER_DATABASE_URL": url, **given}
    command = [str(COMMAND), "migrate", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG_GUARD)


@pytest.fixture
def empty(create_database: Callable[[str], Any]) -> Any:
    return create_database("template0")


def test_api_and_runner_wait_for_their_schema_and_serve_with_a_newer_one(empty: Any, start_process: Any) -> None:
    url = connection_string(empty.url)
    api = start_process("api", database_url=url, distributions="")
    runner = start_process("runner", database_url=url, distributions="")
    for role in (api, runner):
        assert "cronplane migrate" in role.log.wait_for("not ready")
    address = json.loads(runner.log.wait_for("metrics and probes are served"))["address"]
    probes = [f"{api.address}/healthz", f"{api.address}/readyz", f"{address}/livez", f"{address}/readyz"]
    assert [httpx2.get(probe).status_code for probe in probes] == [200, 503, 200, 503]

    migrated = migrate(url=connection_string(empty.owner_url))
    assert migrated.returncode == 0, migrated.stderr
    runner.log.wait_for("became leader")
    api.log.wait_for('"event": "ready"')
    assert [httpx2.get(probe).status_code for probe in probes] == [200, 200, 200, 200]
    assert runner.log.count("not ready") == 1, "it must not say the same again and again"
    runner.stop()

    empty.execute(NEWER)
    older = start_process("runner", database_url=url, distributions="")
    assert "9999" in older.log.wait_for("serves with a newer schema")
    older.log.wait_for("became leader")
    assert httpx2.get(f"{api.address}/readyz").status_code == 200
    assert older.log.count("serves with a newer schema") == 1

    empty.execute(TOO_NEW)
    assert "install a newer version" in older.log.wait_for("stepped down")
    assert "install a newer version" in httpx2.get(f"{api.address}/readyz").json()["detail"]
    empty.execute(AS_BEFORE)
    older.log.wait_for("became leader", times=2)
    older.stop()


def test_the_api_ends_well_when_it_is_told_to(database: Any, start_process: Any) -> None:
    api = start_process("api")
    assert httpx2.get(f"{api.address}/readyz").status_code == 200
    api.stop()


def test_a_migration_of_older_code_leaves_a_newer_schema_and_says_so(empty: Any) -> None:
    url = connection_string(empty.owner_url)
    assert f"to {REVISION}" in migrate(url=url).stdout
    empty.execute(NEWER)
    left = migrate(url=url)
    assert (left.returncode, "newer than this version" in left.stdout) == (0, True)
    empty.execute(TOO_NEW)
    refused = migrate(url=url)
    assert (refused.returncode, "install a newer version" in refused.stderr) == (1, True)


def test_declared_organizations_are_made_changed_and_else_left_alone(empty: Any) -> None:
    url = connection_string(empty.owner_url)
    declared = {"acme": {"cron_quota": 5, "entrypoints": ["dummy_print"]}, "beta": {}}
    made = migrate(url=url, organizations=json.dumps(declared))
    assert made.stdout.count(": made.") == 2, made.stderr
    empty.execute("INSERT INTO scheduler.organizations (name) VALUES ('made over REST')")
    empty.execute("UPDATE scheduler.organizations SET triggers_per_minute = 7")
    kept = migrate(url=url, organizations=json.dumps(declared))
    assert kept.stdout.count(": as declared.") == 2
    changed = migrate(url=url, organizations='{"acme": {"entrypoints": null}}')
    assert changed.stdout.count(": changed.") == 1
    limits = "SELECT name, cron_quota, entrypoints, triggers_per_minute FROM scheduler.organizations ORDER BY name"
    assert empty.execute(limits) == [("acme", 5, None, 7), ("beta", None, None, 7), ("made over REST", None, None, 7)]


@pytest.mark.parametrize(
    ("declared", "word"),
    [
        ('{"acme": {"cron_quota": -1}}', "CRON_QUOTA"),
        ('{"acme": {"crons": 5}}', "CRONS"),
        ('{"acme": {"entrypoints": ["os.system"]}}', "os.system"),
        ('{"  ": {}}', "CRONPLANE_ORGANIZATIONS"),
        ("[]", "CRONPLANE_ORGANIZATIONS"),
        ("{", "CRONPLANE_ORGANIZATIONS"),
    ],
)
def test_a_declaration_that_is_wrong_changes_nothing(empty: Any, declared: str, word: str) -> None:
    refused = migrate(url=connection_string(empty.owner_url), organizations=declared)
    assert refused.returncode == 1
    assert word in refused.stderr
    assert "Traceback" not in refused.stderr
    assert empty.execute("SELECT to_regnamespace('scheduler') IS NULL") == [(True,)]


def test_two_migrations_at_once_do_each_thing_once(empty: Any) -> None:
    environment = {
        "PATH": os.defpath,
        "CRONPLANE_OWNER_DATABASE_URL": connection_string(empty.owner_url),
        "CRONPLANE_ORGANIZATIONS": '{"beta": {"cron_quota": 1}, "acme": {"cron_quota": 2}}',
    }
    jobs = [subprocess.Popen([COMMAND, "migrate"], env=environment, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    told = [job.communicate(timeout=HANG_GUARD)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert sorted(text.count("an empty database") for text in told) == [0, 1]
    assert "".join(told).count(": made.") == 2


def test_a_migration_waits_for_its_database(own_server: Any, entries: Any) -> None:
    url = own_server.url()
    own_server.stop()
    environment = {"PATH": os.defpath, "CRONPLANE_OWNER_DATABASE_URL": url}
    waiting = subprocess.Popen([COMMAND, "migrate", "--wait", "60"], env=environment, stdout=subprocess.PIPE, text=True)
    in_vain = migrate("--wait", "1", url=url)
    assert (in_vain.returncode, "does not let the owner in" in in_vain.stderr) == (1, True)
    own_server.start()
    told, _ = waiting.communicate(timeout=HANG_GUARD)
    assert "an empty database" in told
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM scheduler.alembic_version").fetchone() == (1,)


def test_a_password_is_not_in_what_a_migration_says() -> None:
    password = secrets.token_urlsafe(16)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    refused = migrate(url=f"postgresql://owner:{password}@127.0.0.1:{port}/cronplane")
    assert refused.returncode == 1
    assert password not in refused.stdout + refused.stderr


def test_a_migration_that_waits_ends_when_it_is_told_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://owner@127.0.0.1:{silent.getsockname()[1]}/cronplane"
        environment = {"PATH": os.defpath, "CRONPLANE_OWNER_DATABASE_URL": url}
        waiting = subprocess.Popen([COMMAND, "migrate", "--wait", "600"], env=environment)
        silent.settimeout(HANG_GUARD)
        connection, _ = silent.accept()
        with connection:
            waiting.terminate()
            assert waiting.wait(HANG_GUARD) == 128 + signal.SIGTERM
