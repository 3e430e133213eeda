"""Quantities, read exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronplane_entries.resource_quantities import (
    RESOURCES,
    QuantityError,
    larger,
    parse_amount,
    parse_quantity,
    smaller,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", Fraction(1)),
        ("0.1", Fraction(1, 10)),
        ("500m", Fraction(1, 2)),
        ("100u", Fraction(1, 10_000)),
        ("1.5Gi", Fraction(3 * 2**29)),
        ("2k", Fraction(2000)),
        ("1M", Fraction(10**6)),
        ("3Ei", Fraction(3 * 2**60)),
        ("3E", Fraction(3 * 10**18)),
        ("2e9", Fraction(2 * 10**9)),
        ("2E9", Fraction(2 * 10**9)),
        ("25e-1", Fraction(5, 2)),
    ],
)
def test_a_quantity_is_exactly_what_kubernetes_takes_it_for(text: str, number: Fraction) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "-1", "+1", ".5", "1.", "1Kb", "1ki", "1mi", "1e", "1e999", "0x1", "1_0", "\u0661", "inf"]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(QuantityError):
        parse_quantity(text)


@given(milli=st.integers(min_value=1, max_value=10**9))
def test_thousandths_are_thousandths(milli: int) -> None:
    assert parse_quantity(f"{milli}m") * 1000 == milli


@pytest.mark.parametrize("resource", RESOURCES)
def test_none_of_a_resource_is_no_amount(resource: str) -> None:
    with pytest.raises(QuantityError, match="more than none"):
        parse_amount(resource, "0")


@pytest.mark.parametrize(("resource", "text"), [("memory", "500m"), ("ephemeral-storage", "0.5"), ("cpu", "1u")])
def test_less_than_the_smallest_part_is_refused(resource: str, text: str) -> None:
    with pytest.raises(QuantityError, match="whole"):
        parse_amount(resource, text)


def test_amounts_are_compared_by_what_they_mean() -> None:
    assert larger("900Mi", "1Gi") == "1Gi"
    assert smaller("1000m", "1.5") == "1000m"
