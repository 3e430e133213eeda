"""When something is wrong on our side: the database, the migration, an entry. What clients and logs are told then."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from structlog.testing import capture_logs

from cronplane_core.database import parse_url
from cronplane_core.embedded_postgresql import EmbeddedPostgresql
from cronplane_entries.core import CronEntrySpec
from cronplane_entries.registry import CronEntrypoint, CronRegistry
from cronplane_migrations.migrate import migrate

UNAVAILABLE = "https://cronplane.dev/problems/database-unavailable"
BODY = {
    "name": "my job",
    "cron_expr": "0 9 * * 1-5",
    "tz": "UTC",
    "entrypoint": "dummy_print",
    "payload": {"message": "hello"},
}
# Runs the real server, with the real log, and does to it what was asked on the command line.
SERVER = dedent(
    """
    import asyncio, json, socket, sys
    import httpx2, uvicorn
    from cronplane_api.application import create_application
    from cronplane_core.log import configure_logging
    from cronplane_core.settings import ApiSettings, LogSettings
    from cronplane_entries.registry import CRON_REGISTRY, load_entries

    async def main(log_format, organization_id, key, body):
        configure_logging(LogSettings(log_format=log_format, log_level="debug"))
        load_entries()
        listener = socket.create_server(("127.0.0.1", 0))
        application = create_application(ApiSettings(), registry=CRON_REGISTRY)
        server = uvicorn.Server(uvicorn.Config(application, log_config=None, access_log=False))
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]))
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/crons/{organization_id}"
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx2.AsyncClient(headers=headers) as client:
                for name in ("fine", "boom"):
                    answer = await client.post(url, json=json.loads(body) | {"name": name}, params={})
                    print(answer.status_code, answer.text)
                await client.get(url, params={"name": "secret-query", "limit": 1})
                await client.get(f"{url}/secret-path")
            server.should_exit = True

    asyncio.run(main(*sys.argv[1:]))
    """
)


async def test_without_a_database_the_answer_is_to_try_again(start_api: Any, api_settings: Any) -> None:
    nowhere = parse_url("postgresql://nobody@/nothing?host=/nonexistent")
    _, client = await start_api(api_settings(nowhere))
    headers = {"Authorization": f"Bearer cronplane_{'0' * 32}_{'a' * 43}"}
    organization = "/crons/00000000-0000-0000-0000-000000000000"
    for method, path in [("POST", organization), ("GET", organization), ("GET", "/entrypoints"), ("GET", "/readyz")]:
        answer = await client.request(method, path, headers=headers, **({"json": BODY} if method == "POST" else {}))
        assert (answer.status_code, answer.json()["type"]) == (503, UNAVAILABLE)
        assert int(answer.headers["retry-after"]) > 0
    assert (await client.get("/healthz")).status_code == 200


async def test_the_api_comes_back_with_its_database(
    start_api: Any, api_settings: Any, entries: CronRegistry, own_server: EmbeddedPostgresql
) -> None:
    url = parse_url(own_server.url())
    migrate(url, entries=[str(entry) for entry in entries], service_role="cronplane_service")
    _, client = await start_api(api_settings(url.set(username="cronplane_service")))
    assert (await client.get("/readyz")).status_code == 200
    own_server.stop()
    assert (await client.get("/readyz")).status_code == 503
    own_server.start()
    # The pool may have kept a connection to the server that is gone, and finds out by using it.
    await client.get("/readyz")
    assert (await client.get("/readyz")).status_code == 200


async def test_a_server_with_an_empty_database_is_not_ready_and_says_what_to_do(
    start_api: Any, api_settings: Any, create_database: Any
) -> None:
    _, client = await start_api(api_settings(create_database("template0").owner_url))
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["type"]) == (503, "https://cronplane.dev/problems/not-ready")
    assert "cronplane migrate" in answer.json()["detail"]
    assert (await client.get("/healthz")).status_code == 200


async def test_a_server_with_an_entry_that_the_database_lacks_is_not_ready_and_names_it(
    start_api: Any, entries: CronRegistry
) -> None:
    registry = CronRegistry()
    registry.load()
    registry[CronEntrypoint.add("brand_new")] = next(iter(entries.values()))
    _, client = await start_api(registry=registry)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "brand_new" in answer.json()["detail"]
    assert "cronplane migrate" in answer.json()["detail"]


async def test_what_an_entry_raises_by_mistake_is_told_to_its_author_and_not_to_clients(
    start_api: Any, api: Any, entries: CronRegistry, database: Any
) -> None:
    def validate(payload: Any, **_: object) -> Any:
        raise KeyError(f"secret {payload.message}")

    printing = entries[CronEntrypoint("dummy_print")]
    registry = CronRegistry()
    registry[CronEntrypoint("dummy_print")] = CronEntrySpec(
        user_payload_model=printing.user_payload_model,
        execution_payload_model=printing.execution_payload_model,
        registration_validator=validate,
        execution_validator=printing.execution_validator,
        executor=printing.executor,
    )
    _, client = await start_api(registry=registry)
    headers = {"Authorization": f"Bearer {api.keys['editor']}"}
    with capture_logs() as logged:
        answer = await client.post(f"/crons/{api.organization_id}", json=BODY, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    [error] = answer.json()["errors"]
    assert (error["pointer"], error["type"]) == ("/payload", "entry_failed")
    assert "tell its author" in error["message"]
    assert not {"secret", "hello", "Traceback"} & set(answer.text.replace('"', " ").split())
    assert database.execute("SELECT count(*) FROM scheduler.cron_jobs") == [(0,)]
    [failure] = [line for line in logged if line["event"] == "entry failed"]
    assert (failure["entrypoint"], failure["log_level"]) == ("dummy_print", "error")
    assert isinstance(failure["exc_info"].__cause__, KeyError)
    assert "secret" not in str({**failure, "exc_info": None})


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_payload_key_query_or_id_reaches_the_log_even_when_all_fails(
    api: Any, api_settings: Any, database: Any, log_format: str
) -> None:
    # PostgreSQL's own words for this failure repeat the row, payload included.
    database.execute("ALTER TABLE scheduler.cron_jobs ADD CONSTRAINT no_boom CHECK (name <> 'boom')")
    secret = "payload-that-no-log-repeats"
    settings = api_settings()
    process = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable, "-c", SERVER, log_format, str(api.organization_id), api.keys["editor"],
            json.dumps(BODY | {"payload": {"message": secret}}),
        ],
        env={
            "CRONPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
            "CRONPLANE_INSTALLATION_KEY": settings.installation_key.get_secret_value(),
        },
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )  # fmt: skip
    created, failed = process.stdout.splitlines()
    assert created.startswith("201")
    assert failed.startswith("500")
    log = process.stderr
    assert "/crons/{organization_id}/{cron_id}" in log
    assert "psycopg.errors.CheckViolation" in log
    assert "cron_repository.py" in log
    assert log.count("request failed") == 1
    assert "Exception in ASGI application" not in log
    for unwanted in (secret, "boom", "secret-query", "secret-path", str(api.organization_id), *api.keys.values()):
        assert unwanted not in log
        assert unwanted == "boom" or unwanted not in failed
    if log_format == "json":
        lines = [line for line in map(json.loads, log.splitlines()) if line["logger"] != "uvicorn.error"]
        assert {line["event"] for line in lines} == {"ready", "request", "request failed"}
        requests = [line for line in lines if line["event"] == "request"]
        assert [line["status"] for line in requests] == [201, 500, 200, 422]
        assert all(line["method"] and line["milliseconds"] > 0 for line in requests)
