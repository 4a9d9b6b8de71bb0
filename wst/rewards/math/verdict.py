"""The job of a worker process: find the answer in a response and compare it with the gold answer."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from wst.rewards.math.compare import same_answer, sides, value_of
from wst.rewards.math.extract import after_hashes, last_boxed
from wst.rewards.math.normalize import choice_of, compact, is_text, plain, tidy
from wst.rewards.math.numerals import FRACTION, read_based, read_number
from wst.rewards.math.parts import parts_of
from wst.rewards.math.prose import FORMULA, find_answer
from wst.rewards.math.units import bare
from wst.rewards.text import numbers


def judged(text: str, stated: bool, gold: str) -> bool | None:
    """Tell whether a text's answer equals the gold answer; None where the gold is nothing to compare with.

    Args:
        text: An answer, or a text in which it has yet to be found.
        stated: Whether it is the answer itself.
        gold: The gold answer, or a worked solution.
    """
    gold = _stated(gold)
    if not weigh(gold):
        return None
    answer = text if stated else find_answer(text, gold)
    return answer is not None and same_answer(answer, gold)


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
    gold = tidy(gold)
    choice = choice_of(gold)
    if choice is not None:
        return set(re.findall(r"\(([A-Za-z])\)", text.upper())) == {choice} or last_boxed(text) == gold
    spoken = [said for said in (last_boxed(text), after_hashes(text)) if said]
    spoken += [match[1] or match[2] or match[3] for match in FORMULA.finditer(text)]
    value = read_number(bare(gold))
    if value is not None:
        found = [number.value for number in map(read_number, map(bare, map(tidy, spoken))) if number]
        found += [number.value for number in map(read_number, FRACTION.findall(tidy(text))) if number]
        found += [Fraction(n) for n in numbers(text) if n.is_finite() and abs(n.adjusted()) < 1000]
        return value.value in found
    return compact(gold) in [compact(tidy(said)) for said in spoken] or None


@lru_cache(maxsize=1000)
def weigh(gold: str) -> bool:
    """Evaluate a gold answer by itself, which fails where it is to blame; whether there is anything to compare with."""
    many = parts_of(gold)
    if many is not None and many.parts:
        return all([weigh(part) for part in many.parts])
    measure = bare(gold)
    if is_text(measure) or read_number(measure) or read_based(measure):
        return bool(plain(gold))
    return value_of(sides(measure)[-1]) is not None or bool(plain(gold))


def _stated(gold: str) -> str:
    """Find the gold answer in a target that states it in prose."""
    return tidy(find_answer(gold, None) or gold)
