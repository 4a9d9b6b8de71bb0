"""Compound answers: lists, sets, tuples, intervals, unions and matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from wst.rewards.math.numerals import THOUSANDS, read_number

_OPEN = re.compile(r"\\begin\s*\{[^{}]*\}|\\\{|[({\[]")
_CLOSE = re.compile(r"\\end\s*\{[^{}]*\}|\\\}|[)}\]]")
_SEPARATOR = re.compile(
    r"\s*(?:[,;]\s*)?\\text\s*\{\s*(?:and|or)\s*\}\s*|\s*(?:[,;]\s*)?(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])\s*|\s*[,;]\s*"
)
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_CUP = re.compile(r"\s*\\cup(?![A-Za-z])\s*")
_RELATION = re.compile(r"\s*(?:(<)|(>)|(\\le)(?![A-Za-z])|(\\ge)(?![A-Za-z]))\s*")
EQUALS = re.compile(r"\s*(?<![<>!\\:])=\s*")
APPROXIMATELY = re.compile(r"\s*\\approx(?![A-Za-z])\s*")


def depth_of(text: str) -> int:
    """Return how deeply brackets are nested."""
    depth = deepest = 0
    for char in text:
        depth += (char in "{([") - (char in "})]")
        deepest = max(deepest, depth)
    return deepest


def split_outside(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split at separators outside all brackets; if brackets are unbalanced, return the text as one piece."""
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


def items_of(text: str, bracketed: bool = False) -> list[str]:
    """Split at commas, except thousands separators: ``1,000, 2,000`` has two items, ``x = 1,000`` one.

    Args:
        text: A list.
        bracketed: The text stands in brackets, where ``1,234`` is two numbers.
    """
    joined = THOUSANDS.sub(lambda match: match[1].replace(",", ""), text)
    if ", " in text or ("," not in joined and not bracketed):
        text = joined
    return [piece.strip() for piece in split_outside(text, _SEPARATOR) if piece.strip()]


@dataclass(frozen=True, slots=True)
class Compound:
    """A compound answer.

    Attributes:
        kind: "list", "set", "union", "tuple" (also intervals, with their brackets), "matrix" (with its columns).
        parts: The elements.
        form: Brackets of a tuple, row lengths of a matrix; must be equal too.
    """

    kind: str
    parts: tuple[str, ...]
    form: str = ""


_MATRIX = re.compile(
    r"\(?\s*\\begin\s*\{([pbBvV]?(?:small)?matrix|array)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}\s*\)?", re.S
)
_DESCRIBED = re.compile(r"\\\{\s*[a-z]\s*(?:\\in\s*\S+\s*)?(?:\\mid(?![A-Za-z])|\||:)(.*)\\\}", re.S)
_MEMBER = re.compile(r"\s*[A-Za-z]\w?\s*\\in(?![A-Za-z])\s*")


@lru_cache(maxsize=1000)
def parse_compound(text: str) -> Compound | None:
    """Parse a compound answer; None if it is a single value."""
    if match := _MATRIX.fullmatch(text):
        rows = [re.split(r"(?<!\\)&", row) for row in re.split(r"\\\\", match[2]) if row.strip()]
        cells = tuple(cell.strip() for row in rows for cell in row)
        return Compound("matrix", cells, str([len(row) for row in rows]))
    while match := _MEMBER.match(text):
        text = text[match.end() :].strip()
    if interval := _interval(text):
        return interval
    pieces = split_outside(text, _CUP)
    if len(pieces) > 1:
        return Compound("union", tuple(pieces))
    if labelled := _labelled(text):
        return labelled
    number = read_number(text)
    if number is None and len(items := items_of(text)) > 1:
        return Compound("list", tuple(_expand_signs(items)))
    if text[:2] == r"\{" and text[-2:] == r"\}" and _wraps(text, 2):
        if match := _DESCRIBED.fullmatch(text):
            return _interval(match[1])
        if re.search(r"\\mid(?![A-Za-z])|\||:", text):
            return None
        return Compound("set", tuple(_expand_signs(items_of(text[2:-2], bracketed=True))))
    if (
        text[:1] in ("(", "[")
        and text[-1:] in (")", "]")
        and _wraps(text, 1)
        and len(items := items_of(text[1:-1], bracketed=True)) > 1
    ):
        return Compound("tuple", tuple(items), text[0] + text[-1])
    return Compound("list", tuple(both)) if len(both := list(_expand_signs([text]))) > 1 else None


_LABELLED = re.compile(r"([A-Za-z](?:_\{?\w\}?)?)\s*=([^=]*)")


def _labelled(text: str) -> Compound | None:
    """Parse ``y = 2, x = 1`` as the tuple (1, 2), in the order of the labels."""
    found = [_LABELLED.fullmatch(item) for item in items_of(text)]
    pairs = {match[1]: match[2].strip() for match in found if match}
    if len(pairs) < 2 or len(pairs) < len(found):
        return None
    return Compound("labelled", tuple(value for _, value in sorted(pairs.items())), "()")


def _expand_signs(items: Sequence[str]) -> Iterator[str]:
    for item in items:
        if _SIGNS.search(item):
            for plus, minus in (("+", "-"), ("-", "+")):
                one = re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, item))
                yield one.strip().removeprefix("+").strip()
        else:
            yield item


def _wraps(text: str, width: int) -> bool:
    """Return whether the first bracket is closed by the last one."""
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


def _interval(text: str) -> Compound | None:
    r"""Parse an inequality in one variable, such as ``1 < x \le 2``, as an interval."""
    both = re.split(r"\s*,?\s*(?:\band\b|\\text\s*\{\s*and\s*\})\s*", text)
    if len(both) == 2:  # an interval is an intersection
        halves = [half for half in map(_interval, both) if half is not None and half.kind == "tuple"]
        lower = [half for half in halves if half.parts[1] == r"\infty"]
        upper = [half for half in halves if half.parts[0] == r"-\infty"]
        if len(lower) == len(upper) == 1:
            return Compound("tuple", (lower[0].parts[0], upper[0].parts[1]), lower[0].form[0] + upper[0].form[1])
        return None
    pieces = split_outside(text, _RELATION)
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
    return Compound("tuple", (low, high), left + right)
