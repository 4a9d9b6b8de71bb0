"""Where a text without a box or ``####`` states its final answer."""

from __future__ import annotations

import re

from wst.rewards.math.normalize import CHOSEN, LINKS, NAMES, PROSE_WORDS, choice_of, is_text, tidy, words_of
from wst.rewards.math.units import bare, without_unit

FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_ANSWER = re.compile(r"answer\b[\s*_]*(?:[^\n.:=$\\]{0,60}?\b(?:is|are|be)\b|[:=])[\s*_]*:?\s*([^\n]+)", re.I)


def find_answer(text: str, gold: str | None) -> str:
    """Find the final answer in a text that has neither box nor ####; where there is none, give its last line."""
    if _is_bare(text):
        return text
    found = [match[1] for match in _ANSWER.finditer(text)]
    phrase = re.split(r"(?<![pa]\.m)\.(?:\s|$)", found[-1])[0].strip().rstrip("*_") if found else None
    if phrase and _is_bare(phrase):
        return phrase
    if gold is not None and (choice := _last_choice(text, gold)):
        return choice
    if gold is not None and is_text(bare(gold)) and phrase:
        return phrase
    return _extract(text) or (phrase or text.splitlines()[-1].strip())


def _last_choice(text: str, gold: str) -> str | None:
    if choice_of(gold) is None:
        return None
    letters = re.findall(r"\(([A-Za-z])\)", text) or re.findall(r"(?<![\w'])([B-HJ]|A(?!\s+[a-z]))(?![\w'])", text)
    return f"({letters[-1]})" if letters else None


def _is_bare(text: str) -> bool:
    """Whether a text is nothing but an answer."""
    text = tidy(text) if "\n" not in text.strip() or r"\begin" in text else ""
    if not text or len(text) > 400:
        return False
    if choice_of(text) is not None or CHOSEN.match(text):
        return True
    words = [word.lower() for word in words_of(text) if word.lower() not in NAMES | LINKS]
    if any(word in PROSE_WORDS for word in words):
        return False
    measure, unit = without_unit(text)
    return len(words) <= 3 or (unit is not None and not is_text(measure))


def _extract(text: str) -> str | None:
    """Give the last expression that math-verify finds, as it is written."""
    import sympy  # type: ignore[import-untyped]
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse  # type: ignore[import-untyped]

    text = re.sub(r"\\\$(?=\s*[\d.])", "", text)  # which it overlooks
    found = parse(text, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
    written = next((one for one in found if isinstance(one, str)), None)
    if written is None:
        return None
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    percent = isinstance(found[0], sympy.Mul) and hundredth in found[0].args and "%" not in written
    return f"{written}%" if percent else written
