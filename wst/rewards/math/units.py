"""Units of measurement, currencies and degree signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from wst.rewards.math.normalize import LINKS, NAMES, is_text

_UNITS: dict[str, tuple[str, Fraction]] = {}  # by name: dimension and size
for _dimension, _sizes in {
    "length": "mm=1/1000 millimeter=1/1000 cm=1/100 centimeter=1/100 dm=1/10 m=1 meter=1 km=1000 kilometer=1000",
    "english length": "in=1 inch=1 inche=1 ft=12 foot=12 feet=12 yd=36 yard=36 mi=63360 mile=63360",
    "mass": "mg=1/1000 milligram=1/1000 g=1 gm=1 gram=1 kg=1000 kilogram=1000",
    "english mass": "oz=1 ounce=1 lb=16 pound=16",
    "volume": "ml=1/1000 milliliter=1/1000 l=1 liter=1 litre=1",
    "time": "s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800",
    "long time": "month=1 year=12",
    "dollar": "cent=1/100 dollar=1 usd=1",
    "euro": "euro=1 €=1",
    "sterling": "£=1",
    "angle": "degree=1 deg=1 °=1",
    "radian": "radian=1 rad=1",
    "force": "n=1 newton=1",
    "energy": "j=1 joule=1",
}.items():
    for _name, _, _size in (entry.partition("=") for entry in _sizes.split()):
        _UNITS[_name] = (_dimension, Fraction(_size))
_BARE_UNITS = {name for name in _UNITS if len(name) > 1}  # `5m` is a product, `5 \text{m}` and `5 m` are lengths
#: Words that make a number another number, or no answer at all.
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|no|is|are|was|wrong|false|incorrect|more|less|fewer|than|at|least|most|maybe|if|when|factorial|squared"
    r"|dozens?|january|february|march|april|may|june|july|august|september|october|november|december|thousands?|hundreds?|[mb]illions?|halves|thirds|quarters?)\b|\d|\w+n't|thousandth|hundredth",
    re.I,
)

_POWERED = r"\s*(?:\^\s*\{?\s*(-?[123])\s*\}?)?"
_WORD_UNIT = re.compile(r"(.*[\w})!.])\s*\\text\s*\{\s*([^{}]*?)\s*\}" + _POWERED + r"\s*", re.S)
_SPOKEN_UNIT = re.compile(r"(.*?(?:[\d})!.]|\\pi))[ -]*([A-Za-z][A-Za-z. /]*?)" + _POWERED, re.S)
_LETTER_UNIT = re.compile(r"(.*[\d})])\s+(mm|cm|m|km|g|kg|s|h|l|L|N|J)" + _POWERED, re.S)


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of a quantity: its dimensions with their powers, None if it is unknown, and its size."""

    kind: tuple[tuple[str, int], ...] | None
    size: Fraction = Fraction(1)


def _unit_of(name: str, power: int) -> Unit:
    """Parse a unit such as ``cm``, ``square inches``, ``km/h``, ``miles per hour`` or ``m s^{-1}``."""
    kinds: dict[str, int] = {}
    size = Fraction(1)
    name = re.sub(
        r"\b(?:square|sq|cubic|cu)\b\.?\s*(\w+)", lambda m: m[1] + ("^3" if m[0][:2] == "cu" else "^2"), name.lower()
    )
    for sign, part in zip([1, -1, -1], re.split(r"/|\bper\b", name.replace(".", "")), strict=False):
        for word, own in re.findall(r"([^\W\d]+|\S)(?:\^\{?(-?\d)\}?)?", part):
            known = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
            if known is None:
                return Unit(None)
            exponent = sign * int(own or 1) * power
            kinds[known[0]] = kinds.get(known[0], 0) + exponent
            size *= known[1] ** exponent
    return Unit(tuple(sorted(kinds.items())) or None, size)


def without_unit(text: str, letters: bool = False) -> tuple[str, Unit | None]:
    r"""Split a quantity into its measure and its unit.

    Args:
        text: A tidy answer.
        letters: Read a single letter after a space as a unit (``5 m``); otherwise it is a factor.
    """
    money = re.match(r"([-+]?)\s*(?:\u00a4|([\u20ac\u00a3])|[\u00a5\u20b9])\s*([-+]?)\s*(?=[\d.\\])", text)
    if money:
        symbol = money[0].strip("+- ")
        kind = {"\u00a4": "dollar", "\u20ac": "euro", "\u00a3": "sterling"}.get(symbol, "other money")
        return without_unit(money[1] + money[3] + text[money.end() :])[0], Unit(((kind, 1),))
    if "\u00a4" in text:
        return text.replace("\u00a4", "").strip(), Unit((("dollar", 1),))
    degrees = re.fullmatch(r"(.*?)\s*\^\\circ\s*(?:\\text\s*\{\s*[CFK]\s*\}|[CF])?", text, re.S)
    if degrees and degrees[1]:
        return degrees[1], Unit((("angle", 1),))
    text = re.sub(
        r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}$", r"\\text{\1/\2}", text
    )
    text = re.sub(r"\\text\s*\{([^{}]*)\^\{([-\d]+)\}\s*\}$", r"\\text{\1}^{\2}", text)
    if match := _WORD_UNIT.fullmatch(text):
        if _NO_UNIT.search(match[2]) or not re.search(r"\w", match[2]) or re.search(r"\\text|[<>=]", match[1]):
            return text, None
        return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    if letters and (match := _LETTER_UNIT.fullmatch(text)):
        return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    if (match := _SPOKEN_UNIT.fullmatch(text)) and not match[1].rstrip().endswith("\\"):
        words = [word for word in re.findall(r"[A-Za-z]+", match[2]) if word.lower() not in ("square", "cubic", "sq")]
        joined = match[2].lower().replace(".", "")
        known = joined in _BARE_UNITS or any(w.lower().removesuffix("s") in _BARE_UNITS for w in words)
        spoken = all(len(word) > 2 or word.lower() in _BARE_UNITS | {"of", "to"} for word in words)
        named = any(word.lower() in NAMES | LINKS for word in words) or _NO_UNIT.search(match[2])
        if words and not named and (known or (spoken and is_text(match[2]))):
            return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    return text, None


def magnitude_of(text: str) -> str:
    """Return a quantity without its percent sign or unit."""
    return without_unit(text.removesuffix("%").strip())[0]
