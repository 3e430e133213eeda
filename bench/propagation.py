"""From a change over the API to the runner that knows it: with NOTIFY, and with NOTIFY cut off.

A change is a PATCH of a cron's expression over HTTP. The runner knows it when it has stored the job of that generation,
which it does in the step in which it gives it to APScheduler; a trigger notes when. Time is taken from the sending of
the request, so the API's own work is in it. NOTIFY is cut off by taking the right to call it from everybody.
"""

import http.client
import json
import time
from statistics import quantiles
from uuid import UUID

from psycopg import Connection
from sqlalchemy import URL

from bench.role import HOST, SCHEDULED, api_settings, running, wait_for, wait_until_listening
from bench.server import add_crons, connect, fresh_database, make_key, running_server

CRONS = 1_000
CHANGES = 300
HINTED_AIM, CUT_OFF_AIM = 0.25, 2.0
# Multiples of the golden ratio spread the pauses evenly, so that changes fall anywhere between two resyncs.
_GOLDEN = (5**0.5 - 1) / 2
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.08
_NOTE_WHAT_IS_KNOWN = """
    CREATE TABLE public.known (id uuid, generation bigint, at timestamptz DEFAULT clock_timestamp());
    GRANT INSERT ON public.known TO cronplane_service;
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.known VALUES (NEW.id, NEW.generation); RETURN NULL; END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OF generation ON scheduler.apscheduler_jobs
    FOR EACH ROW EXECUTE FUNCTION public.note();
"""
_KNOWN = "SELECT count(*) FROM public.known WHERE generation > 1"


def measure(url: URL, *, is_hinted: bool) -> list[float]:
    """Give the seconds of each change until the runner knew it."""
    with connect(url) as connection:
        add_crons(connection, count=CRONS, cron_expr="0 0 1 1 *")
        connection.execute(_NOTE_WHAT_IS_KNOWN)
        if not is_hinted:
            connection.execute("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_notify(text, text) FROM PUBLIC")
        settings = api_settings()
        with running("runner", url), running("api", url, settings):
            wait_for(connection, SCHEDULED, CRONS)
            sent = _change_crons(connection, url, int(settings["CRONPLANE_PORT"]))
            wait_for(connection, _KNOWN, CHANGES)
        known = connection.execute(
            "SELECT id, extract(epoch FROM at) FROM public.known WHERE generation > 1"
        ).fetchall()
    return [float(str(at)) - sent[UUID(str(cron_id))] for cron_id, at in known]


def _change_crons(connection: Connection[tuple[object, ...]], url: URL, port: int) -> dict[UUID, float]:
    """Change crons one after the other; gives when each request was sent (seconds since the epoch)."""
    sent = {}
    crons = connection.execute("SELECT id FROM scheduler.cron_jobs LIMIT %s", (CHANGES,)).fetchall()
    organization_id, key = make_key(url)
    wait_until_listening(port)
    client = http.client.HTTPConnection(HOST, port)
    for number, (cron_id,) in enumerate(crons):
        sent[UUID(str(cron_id))] = time.time()
        client.request(
            "PATCH",
            f"/crons/{organization_id}/{cron_id}",
            json.dumps({"cron_expr": "30 6 2 1 *"}),
            {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        )
        answer = client.getresponse()
        assert answer.status == http.HTTPStatus.OK, answer.read()
        answer.read()
        time.sleep(_SHORTEST_PAUSE + number * _GOLDEN % 1 * (_LONGEST_PAUSE - _SHORTEST_PAUSE))
    return sent


def report() -> None:
    """Print the 99th percentile with hints and without."""
    print(f"From sending a PATCH to the runner that knows it, {CHANGES} changes one after the other")
    with running_server() as server:
        for name, is_hinted, aim in (("with NOTIFY", True, HINTED_AIM), ("with NOTIFY cut off", False, CUT_OFF_AIM)):
            seconds = measure(fresh_database(server, f"hinted_{is_hinted}".lower()), is_hinted=is_hinted)
            p50, p99 = quantiles(seconds, n=100)[49], quantiles(seconds, n=100)[98]
            print(
                f"  {name:<37} {1000 * p99:>9.0f} ms p99   at most {1000 * aim:.0f} ms is the aim"
                f" (p50 {1000 * p50:.0f} ms, longest {1000 * max(seconds):.0f} ms)"
            )
