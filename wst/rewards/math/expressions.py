r"""When two mathematical answers are equal in value; with math-verify and sympy, which are imported when first needed.

What math-verify reads otherwise than a mathematician would is read here first: text, units, lists, intervals, numbers
of many digits. Nothing here is safe against hostile input but in a process that can be killed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from wst.rewards.math.extract import after_hashes, last_boxed
from wst.rewards.text import normalize, numbers

_DEEPEST = 50  # brackets within brackets


def judged(text: str, stated: bool, gold: str) -> bool | None:
    """Tell whether a text's answer equals the gold answer; None where the gold is nothing to compare with.

    Args:
        text: An answer, or a text in which it has yet to be found.
        stated: Whether it is the answer itself.
        gold: The gold answer, or a worked solution.
    """
    gold = _stated(gold)
    if not _weigh(gold):
        return None
    return same_answer(text if stated else _find(text, gold), gold)


def work(job: tuple[str, bool, str] | None) -> bool | None:
    """Do a worker's job: an answer, whether it is stated, and the gold; None: the gold is nothing to compare with."""
    if job is None:  # before the first one
        import logging

        logging.disable()
        same_answer("x+1", r"\frac{x^2-1}{x-1}")
        return None
    return judged(*job)


def holds(text: str, gold: str) -> bool | None:
    """Tell whether a text holds the gold answer, as `MathAnswer` counts leaks; it is quick, whatever the text.

    Returns:
        None where only the words are left to be compared; see `plain`.
    """
    gold = _tidy(gold)
    choice = _choice(gold)
    if choice is not None:
        return set(re.findall(r"\(([A-Za-z])\)", text.upper())) == {choice} or last_boxed(text) == gold
    spoken = [said for said in (last_boxed(text), after_hashes(text)) if said]
    spoken += [match[1] or match[2] or match[3] for match in _FORMULA.finditer(text)]
    value = _number(_bare(gold))
    if value is not None:
        found = [number.value for number in map(_number, map(_bare, map(_tidy, spoken))) if number]
        found += [number.value for number in map(_number, _FRACTION.findall(_tidy(text))) if number]
        found += [_fraction(n) for n in numbers(text) if n.is_finite() and abs(n.adjusted()) < 1000]
        return value.value in found
    return _compact(gold) in [_compact(_tidy(said)) for said in spoken] or None


def same_answer(answer: str, gold: str) -> bool:
    r"""Tell whether two answers are equal in value; `MathAnswer` says what that means.

    It may hang, or exhaust the memory: call it in a process that can be killed.

    Example:
        >>> same_answer(r"\frac{\sqrt{8}}{4}", r"\frac{1}{\sqrt{2}}")
        True
    """
    return _same(_tidy(answer), _tidy(gold), 0)


_NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp",
    "sqrt", "pi", "inf", "infty", "infinity", "det", "gcd", "lcm", "max", "min", "mod",
}  # fmt: skip
_LINKS = {"and", "or"}
_PROSE_WORDS = {
    "a", "an", "answer", "are", "be", "because", "but", "equal", "equals", "final", "finally", "for", "get", "gives",
    "have", "hence", "i", "is", "it", "let", "of", "result", "since", "so", "that", "the", "then", "therefore", "this",
    "thus", "to", "total", "value", "was", "we", "where", "which",
}  # fmt: skip

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

_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00f7": "/", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u00b2": "^2", "\u00b3": "^3", "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2044": "/", "\u2205": r"\emptyset ", "\u2260": r"\ne ",
    "\u03b8": r"\theta ", "\u2248": r"\approx ", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_SYMBOL = re.compile("|".join(_SYMBOLS))
_ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|[a-z]))")

_TIDY: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<!\\)\\\\(?=[A-Za-z])(?![A-Za-z]+\b[^\\]*\\end)"), r"\\"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\.]|$)"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|bf|rm|it)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|operatorname\*?)"
                r"\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:q?quad|hspace\{[^{}]*\}|thinspace|space|phantom\{[^{}]*\})(?![A-Za-z])"), " "),
    (re.compile(r"(?<!\\)\\[,;: >\n]|~"), " "),
    (re.compile(r"\\[(\[]|(?<!\\)\\[)\]]"), ""),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:langle|lparen)(?![A-Za-z])"), "("),
    (re.compile(r"\\(?:rangle|rparen)(?![A-Za-z])"), ")"),
    (re.compile(r"\\lbrack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))"), r"^\\circ"),
    (re.compile(r"\\text\s*\{([^{}A-Za-z]*)\}"), r"\1"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\s*\\text\s*\{\s*%\s*\}"), "%"),
    (re.compile(r"\s*(?:\\text\s*\{\s*(?:percent|pct\.?)\s*\}|(?<![A-Za-z\\])(?:percent|pct)(?![A-Za-z]))", re.I), "%"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\w\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\\(?:c?dots|ldots)(?![A-Za-z])"), r"\\ldots"),
]  # fmt: skip


@lru_cache(maxsize=1000)
def _tidy(text: str) -> str:
    """Write what can be written in several ways in one, and leave out what only sets it."""
    text = text.strip()
    while len(text) > 4 and text[:2] == text[-2:] == "**":  # bold in Markdown
        text = text[2:-2].strip()
    text = text.strip("`").strip()
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    # A dollar before a number is money where it is escaped, or has no partner to make it a formula.
    text = re.sub(r"\\\$", "\u00a4", text)
    text = text.replace("$", "" if text.count("$") % 2 == 0 else "\u00a4")
    for pattern, by in _TIDY:
        text = pattern.sub(by, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;: ").strip()


_SPACE = re.compile(r"(?<=[^\w,]) | (?=\W)|(?<=,) (?!\d)")


def _compact(text: str) -> str:
    """Leave out the spaces that part nothing: ``1, 200`` has two numbers."""
    return _SPACE.sub("", text)


def plain(text: str) -> str:
    """Give a text without what only typesets it, for comparing words."""
    return normalize(_unwrapped(_tidy(text)), articles=True)


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def _unwrapped(text: str) -> str:
    return _TEXT.sub(r"\1", text)


def _words(text: str) -> list[str]:
    r"""Find the words of more than one letter, also those in ``\text{...}``; commands and environments are none."""
    text = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\text(?=\s*\{)", " ", text)
    return re.findall(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?![A-Za-z])", re.sub(r"\\[A-Za-z]+", r" ", text))


def _is_text(text: str) -> bool:
    """Whether it is words rather than mathematics. Words must not become products: east is not seat."""
    if re.search(r"\\text\s*\{[^{}]*[A-Za-z]{2}", re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", "", text)):
        return True
    words = [word for word in _words(text) if word.lower() not in _NAMES | _LINKS]
    return any((len(word) > 2 and not set(word) <= set("abcxyz")) or word.lower() == "no" for word in words)


_CHOICE = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-Z]))")
_CHOSEN = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-J])[.):])(?:\s|$)")


def _choice(gold: str) -> str | None:
    """Read a gold answer that is the letter of a choice."""
    match = _CHOICE.fullmatch(_unwrapped(gold).strip().rstrip(".)") + (")" if "(" in gold else ""))
    return (match[1] or match[2]).upper() if match else None


def _chosen(answer: str) -> str | None:
    answer = _unwrapped(answer).strip()
    match = _CHOSEN.match(answer) or _CHOICE.fullmatch(answer) or re.fullmatch(r"([A-Za-z])()", answer)
    return (match[1] or match[2]).upper() if match else None


@dataclass(frozen=True, slots=True)
class _Number:
    value: Fraction
    places: int | None = None  # after the point; None: not written as a decimal
    digits: int = 0  # significant ones


_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_SCIENTIFIC = re.compile(
    r"([-+]?(?:\d+\.?\d*|\.\d+))\s*(?:[eE]|(?:\\times|\\cdot|\*)\s*10\s*\^)\s*\{?\s*([-+]?\d{1,3})\s*\}?"
)
_RATIO = re.compile(r"([-+]?)\s*(?:\\frac\s*\{\s*([-+]?\d+)\s*\}\s*\{\s*([-+]?\d+)\s*\}|(\d+)\s*/\s*(\d+))")
_MIXED = re.compile(r"([-+]?)\s*(\d+)\s*(?:\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s(\d+)\s*/\s*(\d+))")
_FRACTION = re.compile(r"(?<![\w}])-?(?:\\frac\s*\{\s*\d+\s*\}\s*\{\s*\d+\s*\}|\d+\s*/\s*\d+)")
_THOUSANDS = re.compile(r"(?<![\d.])(\d{1,3}(?:,\d{3})+)(?!\d)")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")


def _number(text: str) -> _Number | None:
    r"""Read a number that is written out: 1,200.50, -1/2, 2 1/2, 3 \times 10^5."""
    text = text.strip()
    text = _THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    text = re.sub(r"^([-+])\s+(?=[\d.\\])", r"\1", text)
    if _DECIMAL.fullmatch(text):
        whole, point, places = text.partition(".")
        digits = len((whole.lstrip("+-") + places).lstrip("0"))
        return _Number(_fraction(Decimal(text)), len(places) if point and places else None, digits)
    if match := _SCIENTIFIC.fullmatch(text):
        return _Number(_fraction(Decimal(match[1])) * Fraction(10) ** int(match[2]))
    if match := _RATIO.fullmatch(text):
        over, under = int(match[2] or match[4]), int(match[3] or match[5])
        return _Number(Fraction(over, under) * (-1 if match[1] == "-" else 1)) if under else None
    if match := _MIXED.fullmatch(text):
        over, under = int(match[3] or match[5]), int(match[4] or match[6])
        return _Number((int(match[2]) + Fraction(over, under)) * (-1 if match[1] == "-" else 1)) if under else None
    return None


def _fraction(number: Decimal) -> Fraction:
    return Fraction(number)


_BASED = re.compile(r"\(?\s*([0-9A-Z]+)\s*\)?\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))")


def _based(text: str) -> _Number | None:
    """Read a number in a base: 2516_8."""
    match = _BASED.fullmatch(text)
    if match is None or not 2 <= int(match[2] or match[3]) <= 36 or not re.search(r"\d|..", match[1]):
        return None
    try:
        return _Number(Fraction(int(match[1], int(match[2] or match[3]))))
    except ValueError:
        return None


_WORD_UNIT = re.compile(r"(.*[\d})!.])\s*\\text\s*\{\s*([^{}]*?)\s*\}\s*(?:\^\s*\{?\s*([23])\s*\}?)?\s*", re.S)
_SPOKEN_UNIT = re.compile(r"(.*?[\d})!.])[ -]*([A-Za-z][A-Za-z. /]*?)\s*(?:\^\s*\{?\s*([23])\s*\}?)?", re.S)


@dataclass(frozen=True, slots=True)
class _Unit:
    """What a number counts. ``kind`` is None where the unit is not known."""

    kind: tuple[str, int] | None
    size: Fraction = Fraction(1)


def _unit_of(name: str, power: int) -> _Unit:
    words = name.lower().replace(".", "").split()
    if words and words[0] in ("square", "sq", "squared", "cubic", "cu"):
        power = 3 if words[0].startswith("cu") else 2
        words = words[1:]
    word = words[0] if len(words) == 1 else ""
    known = _UNITS.get(word) or _UNITS.get(word.removesuffix("s"))
    return _Unit(None) if known is None else _Unit((known[0], power), known[1] ** power)


def _without_unit(text: str) -> tuple[str, _Unit | None]:
    """Part a quantity into its measure and its unit."""
    money = re.match(r"([-+]?)\s*(?:\u00a4|([\u20ac\u00a3])|[\u00a5\u20b9])\s*([-+]?)\s*(?=[\d.\\])", text)
    if money:
        rest = money[1] + money[3] + text[money.end() :]
        unit = _Unit(("dollar" if money[0].strip("+- ") == "\u00a4" else {"\u20ac": "euro", "\u00a3": "sterling"}.get(
            money[2] or "", "other money"), 1))  # fmt: skip
        return _without_unit(rest)[0], unit
    if "\u00a4" in text:
        return text.replace("\u00a4", "").strip(), _Unit(("dollar", 1))
    degrees = re.fullmatch(r"(.*?)\s*\^\\circ\s*(?:\\text\s*\{\s*[CFK]\s*\}|[CF])?", text, re.S)
    if degrees and degrees[1]:
        return degrees[1], _Unit(("angle", 1))
    if match := _WORD_UNIT.fullmatch(text):
        if match[2].lower() in _LINKS:
            return text, None
        return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    if (match := _SPOKEN_UNIT.fullmatch(text)) and not match[1].rstrip().endswith("\\"):
        words = [word for word in re.findall(r"[A-Za-z]+", match[2]) if word.lower() not in ("square", "cubic", "sq")]
        joined = match[2].lower().replace(".", "")
        known = joined in _BARE_UNITS or any(w.lower().removesuffix("s") in _BARE_UNITS for w in words)
        spoken = all(len(word) > 2 or word.lower() in _BARE_UNITS | {"of", "to"} for word in words)
        named = any(word.lower() in _NAMES | _LINKS for word in words)
        if words and not named and (known or (spoken and _is_text(match[2]))):
            return match[1].rstrip(), _unit_of(match[2], int(match[3] or 1))
    return text, None


def _bare(text: str) -> str:
    """Leave out a percent sign, or a unit."""
    text = text.removesuffix("%").strip()
    return _without_unit(text)[0]


_OPEN = re.compile(r"\\begin\s*\{[^{}]*\}|\\\{|[({\[]")
_CLOSE = re.compile(r"\\end\s*\{[^{}]*\}|\\\}|[)}\]]")
_SEPARATOR = re.compile(
    r"\s*(?:[,;]\s*)?\\text\s*\{\s*(?:and|or)\s*\}\s*|\s*(?:[,;]\s*)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*|\s*[,;]\s*"
)
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_CUP = re.compile(r"\s*\\cup(?![A-Za-z])\s*")
_RELATION = re.compile(r"\s*(?:(<)|(>)|(\\le)(?![A-Za-z])|(\\ge)(?![A-Za-z]))\s*")
_EQUALS = re.compile(r"\s*(?<![<>!\\:])=\s*")
_APPROXIMATELY = re.compile(r"\s*\\approx(?![A-Za-z])\s*")


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split where the separator stands outside all brackets; one piece alone where brackets are unbalanced."""
    pieces = []
    depth = start = position = 0
    while position < len(text):
        if depth == 0 and (match := separator.match(text, position)) and match.end() > position:
            pieces.append(text[start : match.start()])
            start = position = match.end()
        elif match := _OPEN.match(text, position):
            depth += 1
            position = match.end()
        elif match := _CLOSE.match(text, position):
            depth -= 1
            position = match.end()
            if depth < 0:
                return [text]
        else:
            position += 2 if text[position] == "\\" and not separator.match(text, position) else 1
    return [*pieces, text[start:]] if depth == 0 else [text]


def _list(text: str) -> list[str]:
    """Split at commas, but not at those that part thousands: ``1,000, 2,000`` has two items, ``x = 1,000`` one."""
    joined = _THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)
    if ", " in text or "," not in joined:
        text = joined
    return [piece.strip() for piece in _split(text, _SEPARATOR) if piece.strip()]


@dataclass(frozen=True, slots=True)
class _Many:
    """An answer with several parts.

    Attributes:
        kind: "list", "set", "union", "tuple" (also intervals, with their brackets), "matrix" (with its columns).
        parts: What it is made of.
        form: What must be the same too.
    """

    kind: str
    parts: tuple[str, ...]
    form: str = ""


_MATRIX = re.compile(r"\(?\s*\\begin\s*\{([pbB]?matrix|array)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}\s*\)?", re.S)
_MEMBER = re.compile(r"\s*[A-Za-z]\w?\s*\\in(?![A-Za-z])\s*")


@lru_cache(maxsize=1000)
def _parts(text: str) -> _Many | None:
    """Read an answer with several parts; None: it has one."""
    if match := _MATRIX.fullmatch(text):
        rows = [re.split(r"(?<!\\)&", row) for row in re.split(r"\\\\", match[2]) if row.strip()]
        cells = tuple(cell.strip() for row in rows for cell in row)
        return _Many("matrix", cells, str([len(row) for row in rows]))
    if match := _MEMBER.match(text):
        return _parts(text[match.end() :].strip())
    if interval := _interval(text):
        return interval
    pieces = _split(text, _CUP)
    if len(pieces) > 1:
        return _Many("union", tuple(pieces))
    number = _number(text)
    if number is None and len(items := _list(text)) > 1:
        return _Many("list", tuple(_signs(items)))
    if text[:2] == r"\{" and text[-2:] == r"\}" and _wraps(text, 2):
        if re.search(r"\\mid(?![A-Za-z])|\||:", text):
            return None  # described rather than listed
        return _Many("set", tuple(_signs(_items(text[2:-2]))))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _wraps(text, 1) and len(items := _items(text[1:-1])) > 1:
        return _Many("tuple", tuple(items), text[0] + text[-1])
    return _Many("list", tuple(both)) if len(both := list(_signs([text]))) > 1 else None


def _items(text: str) -> list[str]:
    """Split what stands in brackets: there ``1,234`` are two numbers, unless other commas are followed by a space."""
    if ", " in text:
        return _list(text)
    return [piece.strip() for piece in _split(text, _SEPARATOR) if piece.strip()]


def _signs(items: Sequence[str]) -> Iterator[str]:
    for item in items:
        if len(_split(item, _SIGNS)) > 1:
            for plus, minus in (("+", "-"), ("-", "+")):
                one = re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, item))
                yield one.strip().removeprefix("+").strip()
        else:
            yield item


def _wraps(text: str, width: int) -> bool:
    """Whether the first bracket is closed by the last one."""
    depth = position = 0
    while position < len(text):
        if match := _OPEN.match(text, position):
            depth += 1
        elif match := _CLOSE.match(text, position):
            depth -= 1
            if depth == 0:
                return match.end() == len(text)
        position = match.end() if match else position + 1
    return False


def _interval(text: str) -> _Many | None:
    r"""Read an inequality in one variable, such as ``1 < x \le 2``, as an interval."""
    pieces = _split(text, _RELATION)
    if not 2 <= len(pieces) <= 3 or not all(piece.strip() for piece in pieces):
        return None
    signs = [match[0].strip() for match in _RELATION.finditer(text)]
    if len(signs) != len(pieces) - 1:
        return None
    if all(sign in (">", r"\ge") for sign in signs):
        pieces.reverse()
        signs = [{">": "<", r"\ge": r"\le"}[sign] for sign in reversed(signs)]
    elif not all(sign in ("<", r"\le") for sign in signs):
        return None
    variables = [
        i for i, piece in enumerate(pieces) if re.fullmatch(r"[A-Za-z](?:\([A-Za-z]\))?|\\[a-z]+", piece.strip())
    ]
    variables = [i for i in variables if pieces[i].strip() not in ("e", "i", r"\pi", r"\infty")]
    if len(variables) != 1 or (len(pieces) == 3 and variables[0] != 1):
        return None
    place = variables[0]
    low, left = (pieces[place - 1].strip(), "[" if signs[place - 1] == r"\le" else "(") if place else (r"-\infty", "(")
    after = place + 1 < len(pieces)
    high, right = (pieces[place + 1].strip(), "]" if signs[place] == r"\le" else ")") if after else (r"\infty", ")")
    return _Many("tuple", (low, high), left + right)


def _same_parts(answer: _Many, gold: _Many, depth: int) -> bool:
    def one_to_one(pairs: Sequence[tuple[str, str]]) -> bool:
        return all(_same(a, g, depth + 1) for a, g in pairs)

    kinds = {answer.kind, gold.kind}
    alike = len(answer.parts) == len(gold.parts)
    if "set" in kinds and kinds <= {"set", "list"}:  # a set holds nothing twice
        return all(any(_same(a, g, depth + 1) for g in gold.parts) for a in answer.parts) and all(
            any(_same(a, g, depth + 1) for a in answer.parts) for g in gold.parts
        )
    if kinds <= {"list", "union"}:
        left = list(gold.parts)
        for a in answer.parts:
            found = next((i for i, g in enumerate(left) if _same(a, g, depth + 1)), None)
            if found is None:
                return False
            del left[found]
        return not left
    if kinds in ({"tuple"}, {"matrix"}):
        return alike and answer.form == gold.form and one_to_one(list(zip(answer.parts, gold.parts, strict=True)))
    if kinds == {"tuple", "list"} and "()" in (answer.form, gold.form):
        return alike and one_to_one(list(zip(answer.parts, gold.parts, strict=True)))
    return False


_NAMED = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?'?(?:\s*\([A-Za-z]\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\)")


def _sides(text: str) -> list[str]:
    """Split an equation; a chain is cut to its ends."""
    sides = [side.strip() for side in _split(text, _EQUALS)]
    return sides if len(sides) < 3 or not all(sides) else [sides[0], sides[-1]]


def _exact(text: str) -> str:
    r"""Leave out the approximation of a value: ``\frac{10}{3} \approx 3.33``."""
    sides = [side.strip() for side in _split(text, _APPROXIMATELY)]
    if len(sides) == 2 and not sides[0]:
        return sides[1]
    if len(sides) < 2 or not all(sides):
        return text
    return sides[-1] if len(sides) == 2 and _NAMED.fullmatch(sides[0]) else sides[0]


def _function(name: str) -> str:
    return "y" if re.fullmatch(r"[a-z]\s*\([a-z]\)", name) else _compact(name)


def _same(answer: str, gold: str, depth: int) -> bool:
    """Compare two tidy answers: by form, by their parts, then by value."""
    if not answer or not gold or depth > 20:
        return False
    if _compact(answer) == _compact(gold):
        return True
    choice = _choice(gold) if depth == 0 else None
    if choice is not None and (chosen := _chosen(answer)) is not None:
        return chosen == choice
    answer, gold = _exact(answer), _exact(gold)

    if answer[-1:] == "%" or gold[-1:] == "%":
        a, g = answer.removesuffix("%").strip(), gold.removesuffix("%").strip()
        if answer[-1:] == gold[-1:]:
            return _same(a, g, depth + 1)
        if _same(a, g, depth + 1):
            return True
        percentage, other = (a, gold) if answer[-1:] == "%" else (g, answer)
        part = _number(percentage)
        hundredth = (
            f"({percentage})/100"
            if part is None
            else rf"\frac{{{part.value.numerator}}}{{{part.value.denominator * 100}}}"
        )
        return _same(hundredth, other, depth + 1)

    if len(_list(answer)) == 1 == len(_list(gold)):
        left, right = _sides(answer), _sides(gold)
        if len(left) == len(right) == 2 and _NAMED.fullmatch(left[0]) and _NAMED.fullmatch(right[0]):
            return _function(left[0]) == _function(right[0]) and _same(left[1], right[1], depth + 1)
        if len(left) == 2 and len(right) == 1:
            return _same(left[1], gold, depth + 1)
        if len(left) == 1 and len(right) == 2 and _NAMED.fullmatch(right[0]):
            return _same(answer, right[1], depth + 1)

    ours, theirs = _parts(answer), _parts(gold)
    if ours is not None and theirs is not None:
        return _same_parts(ours, theirs, depth)
    if (ours is None) != (theirs is None):
        # A set of one, or `x \in \{5\}`, has the value of its element.
        many, other = (ours, gold) if ours is not None else (theirs, answer)
        if many is not None and many.kind in ("set", "list") and len(many.parts) == 1:
            return _same(many.parts[0], other, depth + 1)

    (a, counted), (g, wanted) = _without_unit(answer), _without_unit(gold)
    if counted is not None or wanted is not None:
        kinds = [unit.kind for unit in (counted, wanted) if unit is not None and unit.kind is not None]
        if len(kinds) == 2 and counted is not None and wanted is not None:
            if kinds[0] != kinds[1]:
                return False
            if counted.size != wanted.size:
                size = counted.size / wanted.size
                a = rf"({a}) \cdot \frac{{{size.numerator}}}{{{size.denominator}}}"
        return _same(a, g, depth + 1)
    if ours is not None or theirs is not None:
        # Such as an interval and a set that is described; words are no mathematics.
        return not _is_text(answer) and not _is_text(gold) and _same_value(answer, gold)
    return _same_value(answer, gold)


def _same_value(answer: str, gold: str) -> bool:
    if _is_text(answer) or _is_text(gold):
        return _same_text(answer, gold)
    a, g = _based(answer) or _number(answer), _based(gold) or _number(gold)
    if a is not None and g is not None and (a.value == g.value or (a.places is None) == (g.places is None)):
        return a.value == g.value
    if a is not None and g is not None:
        return _approximates(a, g.value) if a.places is not None else _approximates(g, a.value)
    ours, theirs = _value(answer), _value(gold)
    if ours is None or theirs is None:
        return _same_text(answer, gold)
    for number, other in ((a, theirs), (g, ours)):
        if number is not None and number.places is not None and number.digits >= 6:
            import sympy  # type: ignore[import-untyped]

            if getattr(other, "is_number", False) and other.is_real:
                precise = sympy.N(other, number.digits + 20)
                if precise.is_Float and _approximates(number, Fraction(sympy.Rational(precise))):
                    return True
    return _equal(ours, theirs)


def _approximates(decimal: _Number, value: Fraction) -> bool:
    return (
        decimal.places is not None
        and decimal.digits >= 6
        and abs(decimal.value - value) < Fraction(1, 10**decimal.places)
    )


def _same_text(answer: str, gold: str) -> bool:
    ours, theirs = plain(answer), plain(gold)
    if ours and theirs:
        # Symbols of a formula that cannot be read are no punctuation.
        return ours == theirs and (_is_text(gold) or _compact(answer) == _compact(gold))
    return _compact(answer) == _compact(gold)


@lru_cache(maxsize=1000)
def _value(text: str) -> Any:  # noqa: ANN401
    """Parse a formula by math-verify's grammar, exactly, and evaluate it if it is a number; None: not readable."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex  # type: ignore[import-untyped]

    if _depth(text) > _DEEPEST:
        raise RecursionError  # as the parser would, after many seconds
    # Units are ours to treat: the library takes the t of 3t for one.
    style = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none", units=False)
    try:
        latex = normalize_latex(text, style)
        value = latex2sympy(latex, is_real=True, convert_degrees=False, normalization_config=None)
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return None
    try:
        if hasattr(value, "xreplace"):
            exact = {f: sympy.Rational(str(f)) for f in value.atoms(sympy.Float) if f.is_finite}
            value = value.xreplace({**exact, sympy.Symbol("i", real=True): sympy.I})
        if isinstance(value, sympy.Expr):
            value = value.doit()
            if value.is_number:
                value.evalf()
    except (RecursionError, MemoryError):
        raise
    except Exception:
        return None if value is sympy.nan else value
    return value


def _equal(answer: Any, gold: Any) -> bool:  # noqa: ANN401
    """Compare two parsed answers."""
    import sympy
    from math_verify import verify  # type: ignore[import-untyped]

    if isinstance(answer, sympy.Expr) and isinstance(gold, sympy.Expr):
        if sympy.nan in (answer, gold) or sympy.zoo in (answer, gold):
            return False
        if answer == gold:
            return True
        if answer.is_Rational and gold.is_Rational:
            return False
        difference = answer - gold
        if answer.is_number and gold.is_number:
            # An exact zero may come out as 1e-125. Rational numbers, however small, were compared above.
            sizes = [abs(sympy.N(number, 30)) for number in (answer, gold, difference)]
            if all(size.is_Float or size.is_zero for size in sizes):
                return bool(sizes[2] <= max(min(max(sizes[:2]), 1) * 1e-20, 1e-70))
        return not _differ(answer, gold) and bool(sympy.expand(difference) == 0 or sympy.simplify(difference) == 0)
    return bool(verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None))


def _differ(answer: Any, gold: Any) -> bool:  # noqa: ANN401
    """Whether two expressions differ for certain, since they do at a point: much quicker than simplifying them."""
    import sympy

    free = sorted(answer.free_symbols | gold.free_symbols, key=str)
    point = {symbol: sympy.Float(0.61 + 0.37 * place) for place, symbol in enumerate(free)}
    try:
        ours, theirs = (sympy.N(side.subs(point), 15) for side in (answer, gold))
        if not (ours.is_finite and theirs.is_finite):
            return False
        return bool(abs(ours - theirs) > 1e-6 * (1 + abs(ours) + abs(theirs)))
    except (RecursionError, MemoryError):
        raise
    except Exception:  # such as functions that have no value
        return False


@lru_cache(maxsize=1000)
def _weigh(gold: str) -> bool:
    """Evaluate a gold answer by itself, which fails where it is to blame; whether there is anything to compare with."""
    many = _parts(gold)
    if many is not None and many.parts:
        return all([_weigh(part) for part in many.parts])
    measure = _bare(gold)
    if _is_text(measure) or _number(measure) or _based(measure):
        return bool(plain(gold))
    return _value(_sides(measure)[-1]) is not None or bool(plain(gold))


def _stated(gold: str) -> str:
    """Find the gold answer in a target that states it in prose."""
    return _tidy(_find(gold, None))


_FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_ANSWER = re.compile(r"answer\b[\s*_]*(?:[^\n.:=$\\]{0,60}?\b(?:is|are|be)\b|[:=])[\s*_]*:?\s*([^\n]+)", re.I)


def _find(text: str, gold: str | None) -> str:
    """Find the final answer in a text that has neither box nor ####; where there is none, give its last line."""
    if _is_bare(text):
        return text
    found = [match[1] for match in _ANSWER.finditer(text)]
    phrase = re.split(r"(?<![pa]\.m)\.(?:\s|$)", found[-1])[0].strip().rstrip("*_") if found else None
    if phrase and _is_bare(phrase):
        return phrase
    if gold is not None and (choice := _last_choice(text, gold)):
        return choice
    if gold is not None and _is_text(_bare(gold)) and phrase:
        return phrase
    return _extract(text) or (phrase or text.splitlines()[-1].strip())


def _last_choice(text: str, gold: str) -> str | None:
    if _choice(gold) is None:
        return None
    letters = re.findall(r"\(([A-Za-z])\)", text) or re.findall(r"(?<![\w'])([B-HJ]|A(?!\s+[a-z]))(?![\w'])", text)
    return f"({letters[-1]})" if letters else None


def _is_bare(text: str) -> bool:
    """Whether a text is nothing but an answer."""
    text = _tidy(text) if "\n" not in text.strip() or r"\begin" in text else ""
    if not text or len(text) > 400:
        return False
    if _choice(text) is not None or _CHOSEN.match(text):
        return True
    words = [word.lower() for word in _words(text) if word.lower() not in _NAMES | _LINKS]
    if any(word in _PROSE_WORDS for word in words):
        return False
    measure, unit = _without_unit(text)
    return len(words) <= 3 or (unit is not None and not _is_text(measure))


def _extract(text: str) -> str | None:
    """Give the last expression that math-verify finds, as it is written."""
    import sympy
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    text = re.sub(r"\\\$(?=\s*[\d.])", "", text)  # which it overlooks
    found = parse(text, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
    written = next((one for one in found if isinstance(one, str)), None)
    if written is None:
        return None
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    percent = isinstance(found[0], sympy.Mul) and hundredth in found[0].args and "%" not in written
    return f"{written}%" if percent else written
