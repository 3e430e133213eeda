"""Settings as an administrator writes them into the environment."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from cronplane_core.settings import ApiSettings

GOOD = {"20": 20.0, "0.5": 0.5, "PT20S": 20.0, "00:01:00": 60.0}


@pytest.fixture(autouse=True)
def required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONPLANE_DATABASE_URL", "postgresql://nobody@/nothing")
    monkeypatch.setenv("CRONPLANE_INSTALLATION_KEY", "k" * 32)


@pytest.mark.parametrize("written", GOOD)
def test_a_duration_is_a_number_of_seconds_or_iso_8601(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("CRONPLANE_BODY_TIMEOUT", written)
    assert ApiSettings().body_timeout == timedelta(seconds=GOOD[written])


@pytest.mark.parametrize("written", ["", "0", "-1", "soon", "nan", "inf", "1e9", "9" * 400, "20 s"])
def test_a_duration_that_is_none_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, written: str) -> None:
    monkeypatch.setenv("CRONPLANE_BODY_TIMEOUT", written)
    with pytest.raises(ValidationError, match="body_timeout"):
        ApiSettings()


def test_a_bound_holds_for_a_plain_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONPLANE_MINIMUM_INTERVAL", "59")
    with pytest.raises(ValidationError, match="minimum_interval"):
        ApiSettings()
