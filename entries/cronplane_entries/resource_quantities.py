"""Amounts of CPU, memory and storage as Kubernetes writes them, read exactly (Kubernetes API reference, "Quantity").

A float would take `0.1` for a little more than a tenth, and so a request at its ceiling for one above it.
"""

import re
from fractions import Fraction

from cronplane_entries.core import EntryError

CPU = "cpu"
MEMORY = "memory"
STORAGE = "ephemeral-storage"
RESOURCES = (CPU, MEMORY, STORAGE)
_QUANTITY = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))?(?:([numkMGTPE]|[KMGTPE]i)|[eE]([+-]?[0-9]{1,2}))?", re.ASCII)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
# Kubernetes takes CPU in thousandths of a core, and bytes as wholes.
_SMALLEST = {CPU: Fraction(1, 1000), MEMORY: Fraction(1), STORAGE: Fraction(1)}


class QuantityError(EntryError, ValueError):
    """This is no amount of the resource; the message says what one is."""


def parse_quantity(text: str) -> Fraction:
    """Read an amount, such as `500m`, `1.5Gi` or `2e9`, as a number of cores or bytes.

    Raises:
        QuantityError: it is none.

    """
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise QuantityError("a quantity is a number with a unit of Kubernetes or without one, such as 500m or 1.5Gi")
    whole, part, unit, exponent = found.groups()
    number = Fraction(int(whole + (part or "")), 10 ** len(part or ""))
    if unit in _BINARY:
        return number * (1 << _BINARY[unit])
    return number * Fraction(f"1e{_DECIMAL[unit] if unit else exponent or 0}")


def parse_amount(resource: str, text: str) -> Fraction:
    """Read an amount of a resource that a container can be given.

    Raises:
        QuantityError: it is none, or there is no such amount, such as half a byte.

    """
    amount, smallest = parse_quantity(text), _SMALLEST[resource]
    if amount <= 0 or amount % smallest:
        what = "thousandths of a core" if resource == CPU else "bytes"
        raise QuantityError(f"{resource} is given in whole {what}, and more than none")
    return amount


def larger(one: str, other: str) -> str:
    """Give the larger of two amounts of one resource."""
    return one if parse_quantity(one) >= parse_quantity(other) else other


def smaller(one: str, other: str) -> str:
    """Give the smaller of two amounts of one resource."""
    return one if parse_quantity(one) <= parse_quantity(other) else other
