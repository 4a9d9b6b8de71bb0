"""The job of a worker process: find the answer in a response and compare it with the gold answer."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from wst.rewards.math.compare import parse_formula, same_answer, sides
from wst.rewards.math.extract import after_hashes, last_boxed
from wst.rewards.math.normalize import choice_of, compact, is_text, plain, tidy
from wst.rewards.math.numerals import FRACTION, read_based, read_number
from wst.rewards.math.parts import parse_compound
from wst.rewards.math.prose import FORMULA, find_answer
from wst.rewards.math.units import magnitude_of
from wst.rewards.text import numbers

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_LONGEST_SENTENCE = 300  #: characters of a sentence that may state a compound answer and nothing else


def is_correct(text: str, stated: bool, gold: str) -> bool | None:
    """Return whether a text's answer equals the gold answer; None if the gold answer cannot be compared.

    Args:
        text: An answer, or a text that contains it.
        stated: Whether the text is the answer itself.
        gold: The gold answer, or a worked solution.
    """
    gold = tidy(find_answer(gold, None) or gold)  # a target may state it in prose
    if not is_comparable(gold):
        return None
    answer = text if stated else find_answer(text, gold)
    return answer is not None and same_answer(answer, gold)


def work(job: tuple[str, bool, str] | None) -> bool | None:
    """Run a worker's job: the arguments of `is_correct`, or None before the first one, to load the libraries."""
    if job is None:  # before the first one
        import logging

        logging.disable()
        same_answer("x+1", r"\frac{x^2-1}{x-1}")
        return None
    return is_correct(*job)


def contains_answer(text: str, gold: str) -> bool | None:
    """Return whether a text contains the gold answer, for counting leaks; fast for any text.

    Returns:
        None if the caller must compare the words (`plain`).
    """
    gold = tidy(gold)
    choice = choice_of(gold)
    if choice is not None:
        return set(re.findall(r"\(([A-Za-z])\)", text.upper())) == {choice} or last_boxed(text) == gold
    spoken = [said for said in (last_boxed(text), after_hashes(text)) if said]
    spoken += [match[1] or match[2] or match[3] for match in FORMULA.finditer(text)]
    value = read_number(magnitude_of(gold))
    if value is not None:
        found = [number.value for number in map(read_number, map(magnitude_of, map(tidy, spoken))) if number]
        found += [number.value for number in map(read_number, FRACTION.findall(tidy(text))) if number]
        found += [Fraction(n) for n in numbers(text) if n.is_finite() and abs(n.adjusted()) < 1000]
        return value.value in found
    said = [compact(tidy(one)) for one in spoken]
    if (wanted := _elements(gold)) is not None:
        said += [compact(tidy(one)) for one in _SENTENCE.split(text) if len(one) <= _LONGEST_SENTENCE]
        return any(_elements(one) == wanted for one in said) or None
    return compact(gold) in said or None


def _elements(text: str) -> tuple[Any, ...] | None:
    """Return the kind, brackets and elements of a compound answer, comparable without sympy; None for others."""
    whole = parse_compound(text)
    if whole is None:
        return None
    parts = [number.value if (number := read_number(part)) else compact(part) for part in whole.parts]
    if whole.kind in ("list", "set", "union"):  # without order
        return "list", "", frozenset(parts)
    return whole.kind, whole.form, tuple(parts)


@lru_cache(maxsize=1000)
def is_comparable(gold: str) -> bool:
    """Return whether a gold answer can be compared; evaluating it alone fails here if it is the cause of a failure."""
    many = parse_compound(gold)
    if many is not None and many.parts:
        return all([is_comparable(part) for part in many.parts])
    measure = magnitude_of(gold)
    if is_text(measure) or read_number(measure) or read_based(measure):
        return bool(plain(gold))
    return parse_formula(sides(measure)[-1]) is not None or bool(plain(gold))
