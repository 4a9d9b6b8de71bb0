"""Numbers in words, and numbers followed by a word that changes their value."""

from __future__ import annotations

import re
from fractions import Fraction

from wst.rewards.words import NUMBER_WORDS, SCALES

_SCALES = {"dozen": 12} | SCALES
_PARTS = {"half": 2, "halve": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8, "ninth": 9,
          "tenth": 10, "hundredth": 100, "thousandth": 1000}  # fmt: skip
_WORD = "|".join(sorted([*NUMBER_WORDS, *_SCALES, *_PARTS], key=len, reverse=True))
_RUN = re.compile(
    rf"(negative |minus )?(\d[\d,]*(?:\.\d+)?|(?:{'|'.join(NUMBER_WORDS)})(?![a-z]))"
    rf"((?:[ -]+(?:and +)?(?:a +)?(?:{_WORD})s?(?![a-z])){{0,20}})(?:[ ]+(squared|cubed|factorial)(?![a-z]))?",
    re.I,
)


def spoken_number(text: str) -> str:
    r"""Replace the number in words that a text begins with by digits.

    Examples:
        >>> spoken_number("twenty-five percent"), spoken_number("5 thousand"), spoken_number("two and a half")
        ('25 percent', '5000', '\\frac{5}{2}')
    """
    inside = re.match(r"([-+]?\d[\d,.]*)?\s*\\text\s*\{([^{}]*)\}(?!\s*\^)", text)
    plain = f"{inside[1] or ''} {inside[2]}".strip() + text[inside.end() :] if inside else text
    match = _RUN.match(plain)
    if match is None:
        return text
    words = re.findall(_WORD, match[3].lower())
    gloss = re.fullmatch(r"\s*\(([\w ,.-]+)\)\.?", plain[match.end() :])  # five (5)
    if not (match[1] or words or match[4] or match[2].isalpha() or gloss):
        mixed = re.fullmatch(r"(\d+) and (\d+)\s*/\s*(\d+)", plain)
        return f"{mixed[1]} {mixed[2]}/{mixed[3]}" if mixed else text
    first = match[2].lower()
    if first not in NUMBER_WORDS and not first[0].isdecimal():
        return text  # ignoring case, a long s is an s as well
    whole, part = (
        Fraction(0),
        Fraction(NUMBER_WORDS[first]) if first in NUMBER_WORDS else Fraction(first.replace(",", "")),
    )
    for word in words:
        if word in NUMBER_WORDS:
            part += NUMBER_WORDS[word]
        elif word == "hundred" or (word in _SCALES and not whole and len(words) == 1):
            part *= _SCALES[word]
        elif word in _SCALES:
            whole, part = whole + part * _SCALES[word], Fraction(0)
        elif re.search(rf"\b(?:and )?a +{word}", match[3].lower()):
            part += Fraction(1, _PARTS[word])
        else:
            part /= _PARTS[word]
    value = (whole + part) * (-1 if match[1] else 1)
    digits = str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    digits += {"squared": "^2", "cubed": "^3", "factorial": "!"}.get((match[4] or "").lower(), "")
    if gloss:
        other = spoken_number(gloss[1])
        return digits if other.replace(",", "") == digits else text
    return digits + plain[match.end() :]


def digits_for_words(text: str) -> str:
    """Replace all numbers in words by digits, except articles such as "one of them"."""
    return re.sub(rf"(?<![a-z]){_RUN.pattern}(?!\s+of\b)", lambda match: spoken_number(match[0]), text, flags=re.I)
