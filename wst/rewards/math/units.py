"""Units of measurement, currencies and degree signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from wst.rewards.math.normalize import LINKS, NAMES, is_text

# Dimension and size. Of a word that only ever stands alone, the size tells it from the others of its kind.
_UNITS: dict[str, tuple[str, Fraction]] = {}
for _dimension, _sizes in {
    "length": "mm=1/1000 millimeter=1/1000 cm=1/100 centimeter=1/100 dm=1/10 m=1 meter=1 km=1000 kilometer=1000",
    "english length": "in=1 inch=1 inche=1 ft=12 foot=12 feet=12 yd=36 yard=36 mi=63360 mile=63360",
    "mass": "mg=1/1000 milligram=1/1000 g=1 gm=1 gram=1 kg=1000 kilogram=1000",
    "english mass": "oz=1 ounce=1 lb=16 pound=16",
    "volume": "ml=1/1000 milliliter=1/1000 l=1 liter=1 litre=1",
    "time": "sec=1 second=1 min=60 minute=60 hr=3600 hour=3600 day=86400 week=604800",
    "long time": "month=1 year=12",
    "dollar": "cent=1/100 dollar=1 usd=1",
    "euro": "euro=1 €=1",
    "sterling": "£=1",
    "angle": "degree=1 deg=1 °=1",
    "radian": "radian=1 rad=1",
    "clock": "am=1 pm=2",
    "compass": "north=1 east=2 south=3 west=4",
    "date": "january=1 february=2 march=3 april=4 june=6 july=7 august=8 september=9 october=10 november=11 "
    "december=12",
}.items():
    for _name, _, _size in (entry.partition("=") for entry in _sizes.split()):
        _UNITS[_name] = (_dimension, Fraction(_size))
_BARE_UNITS = {name for name in _UNITS if len(name) > 1}  # `5m` is a product, `5 \text{m}` a length


_WORD_UNIT = re.compile(r"(.*[\d})!.])\s*\\text\s*\{\s*([^{}]*?)\s*\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S)
_SPOKEN_UNIT = re.compile(r"(.*?[\d})!.])[ -]*([A-Za-z][A-Za-z. /]*?)\s*(?:\^\s*\{?\s*([23])\s*\}?)?", re.S)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts. ``kind`` is None where the unit is not known."""

    kind: tuple[str, int] | None
    size: Fraction = Fraction(1)


def _unit_of(name: str, power: int) -> Unit:
    words = name.lower().replace(".", "").split()
    if words and words[0] in ("square", "sq", "squared", "cubic", "cu"):
        power = 3 if words[0].startswith("cu") else 2
        words = words[1:]
    word = words[0] if len(words) == 1 else ""
    known = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    return Unit(None) if known is None else Unit((known[0], power), known[1] ** power)


def without_unit(text: str) -> tuple[str, Unit | None]:
    """Part a quantity into its measure and its unit."""
    money = re.match(r"([-+]?)\s*(?:\u00a4|([\u20ac\u00a3])|[\u00a5\u20b9])\s*([-+]?)\s*(?=[\d.\\])", text)
    if money:
        rest = money[1] + money[3] + text[money.end() :]
        unit = Unit(("dollar" if money[0].strip("+- ") == "\u00a4" else {"\u20ac": "euro", "\u00a3": "sterling"}.get(
            money[2] or "", "other money"), 1))  # fmt: skip
        return without_unit(rest)[0], unit
    if "\u00a4" in text:
        return text.replace("\u00a4", "").strip(), Unit(("dollar", 1))
    degrees = re.fullmatch(r"(.*?)\s*\^\\circ\s*(?:\\text\s*\{\s*[CFK]\s*\}|[CF])?", text, re.S)
    if degrees and degrees[1]:
        return degrees[1], Unit(("angle", 1))
    if match := _WORD_UNIT.fullmatch(text):
        if match[2].lower() in LINKS:
            return text, None
        return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    if (match := _SPOKEN_UNIT.fullmatch(text)) and not match[1].rstrip().endswith("\\"):
        words = [word for word in re.findall(r"[A-Za-z]+", match[2]) if word.lower() not in ("square", "cubic", "sq")]
        joined = match[2].lower().replace(".", "")
        known = joined in _BARE_UNITS or any(w.lower().removesuffix("s") in _BARE_UNITS for w in words)
        spoken = all(len(word) > 2 or word.lower() in _BARE_UNITS | {"of", "to"} for word in words)
        named = any(word.lower() in NAMES | LINKS for word in words)
        if words and not named and (known or (spoken and is_text(match[2]))):
            return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    return text, None


def bare(text: str) -> str:
    """Leave out a percent sign, or a unit."""
    text = text.removesuffix("%").strip()
    return without_unit(text)[0]
