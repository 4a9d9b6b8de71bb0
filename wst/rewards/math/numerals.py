"""Parse decimals, fractions and numbers in other bases exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    """The exact value of a number, and the precision it was written with."""

    value: Fraction
    places: int | None = None  # after the point; None: not written as a decimal
    digits: int = 0  # significant ones


_DECIMAL = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_SCIENTIFIC = re.compile(
    r"([-+]?(?:\d+(?:\.\d*)?|\.\d+))\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{?\s*([-+]?\d{1,3})\s*\}?"
)
_RATIO = re.compile(r"([-+]?)\s*(?:\\frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*([-+]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+))")
FRACTION = re.compile(r"(?<![\w}])-?(?:\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)")
THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?!\d)")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")


def read_number(text: str) -> Number | None:
    r"""Parse a decimal, fraction, mixed number or power of ten: 1,200.50, -1/2, 2 1/2, 3 \times 10^5."""
    text = text.strip()
    text = THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    text = re.sub(r"^([-+])\s+(?=[\d.\\])", r"\1", text)
    if _DECIMAL.fullmatch(text):
        whole, point, places = text.partition(".")
        digits = len((whole.lstrip("+-") + places).lstrip("0"))
        return Number(Fraction(Decimal(text)), len(places) if point and places else None, digits)
    if match := _SCIENTIFIC.fullmatch(text):
        return Number(Fraction(Decimal(match[1])) * Fraction(10) ** int(match[2]))
    if match := _RATIO.fullmatch(text):
        over, under = int(match[2] or match[4]), int(match[3] or match[5])
        return Number(Fraction(over, under) * (-1 if match[1] == "-" else 1)) if under else None
    if match := _MIXED.fullmatch(text):
        over, under = int(match[3] or match[5]), int(match[4] or match[6])
        return Number((int(match[2]) + Fraction(over, under)) * (-1 if match[1] == "-" else 1)) if under else None
    return None


_BASED = re.compile(r"(-?)\s*\(?\s*([0-9A-Z]+)\s*\)?\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))")


def read_based(text: str) -> Number | None:
    """Parse a number in another base: 2516_8."""
    match = _BASED.fullmatch(text)
    if match is None or not 2 <= int(match[3] or match[4]) <= 36 or not re.search(r"\d|..", match[2]):
        return None
    try:
        return Number(Fraction(int(match[1] + match[2], int(match[3] or match[4]))))
    except ValueError:
        return None
