"""The runner's own server, asked over real connections of this machine."""

import socket
from http import HTTPStatus

import httpx2
import pytest

from cronplane_operator.pulse import Pulse
from cronplane_operator.status_server import Page, StatusServerError, probe, status_server


def test_each_path_is_answered_by_its_page_and_any_other_is_not_there() -> None:
    pages = {
        "/metrics": lambda: Page(HTTPStatus.OK, "text/plain; version=0.0.4", b"a_metric 1\n"),
        "/livez": probe(lambda: True, otherwise="never said"),
        "/readyz": probe(lambda: False, otherwise="not migrated"),
    }
    with status_server(host="127.0.0.1", port=0, pages=pages) as address, httpx2.Client(base_url=address) as client:
        metrics = client.get("/metrics?name=x")
        assert (metrics.status_code, metrics.text) == (200, "a_metric 1\n")
        assert metrics.headers["content-type"] == "text/plain; version=0.0.4"
        assert "Python" not in metrics.headers["server"]
        assert client.get("/livez").text == "ok\n"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.text) == (503, "not migrated\n")
        assert client.get("/").status_code == 404
        assert client.post("/metrics").status_code == 501


def test_a_client_that_says_nothing_keeps_nobody_else_waiting() -> None:
    pages = {"/livez": probe(lambda: True, otherwise="")}
    with status_server(host="127.0.0.1", port=0, pages=pages) as address:
        url = httpx2.URL(address)
        with socket.create_connection((url.host, url.port or 0)):
            assert httpx2.get(f"{address}/livez").status_code == 200


def test_an_address_of_the_sixth_version_is_written_as_one() -> None:
    pages = {"/livez": probe(lambda: True, otherwise="")}
    with status_server(host="::1", port=0, pages=pages) as address:
        assert address.startswith("http://[::1]:")
        assert httpx2.get(f"{address}/livez").status_code == 200


def test_a_port_that_is_taken_is_said_with_what_to_set() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StatusServerError, match="CRONPLANE_METRICS_PORT"),
        status_server(host="127.0.0.1", port=taken.getsockname()[1], pages={}),
    ):
        raise AssertionError("it cannot listen there")


def test_a_loop_that_does_not_come_round_is_not_alive() -> None:
    seconds = [100.0]
    pulse = Pulse(monotonic=lambda: seconds[0])
    seconds[0] += 29
    assert pulse.is_alive
    pulse.beat()
    seconds[0] += 31
    assert not pulse.is_alive
