r"""Compare mathematical answers by value; math-verify and sympy are imported when first needed.

Text, units, lists, intervals and long numbers are handled here, because math-verify reads them differently from a
mathematician. Hostile input can hang the comparison or exhaust the memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from wst.rewards.math.normalize import choice_of, compact, is_text, plain, tidy
from wst.rewards.math.numerals import Number, read_based, read_number
from wst.rewards.math.parts import APPROXIMATELY, EQUALS, Compound, depth_of, items_of, parse_compound, split_outside
from wst.rewards.math.prose import chosen_letter
from wst.rewards.math.units import magnitude_of, without_unit

_DEEPEST = 50  # brackets within brackets


def same_answer(answer: str, gold: str) -> bool:
    r"""Return whether two answers are equal in value, as defined in `MathAnswer`.

    It may hang or exhaust the memory; call it only in a process that can be killed.

    Examples:
        >>> same_answer(r"\frac{\sqrt{8}}{4}", r"\frac{1}{\sqrt{2}}")
        True
    """
    return _equal(tidy(answer), tidy(gold), 0)


def _equal_parts(answer: Compound, gold: Compound, depth: int) -> bool:
    def one_to_one(pairs: Sequence[tuple[str, str]]) -> bool:
        return all(_equal(a, g, depth + 1) for a, g in pairs)

    kinds = {answer.kind, gold.kind}
    alike = len(answer.parts) == len(gold.parts)
    if "set" in kinds and kinds <= {"set", "list"}:  # a set holds nothing twice
        return all(any(_equal(a, g, depth + 1) for g in gold.parts) for a in answer.parts) and all(
            any(_equal(a, g, depth + 1) for a in answer.parts) for g in gold.parts
        )
    if kinds <= {"list", "union"}:
        left = list(gold.parts)
        for a in answer.parts:
            found = next((i for i, g in enumerate(left) if _equal(a, g, depth + 1)), None)
            if found is None:
                return False
            del left[found]
        return not left
    if kinds in ({"tuple"}, {"matrix"}):
        return alike and answer.form == gold.form and one_to_one(list(zip(answer.parts, gold.parts, strict=True)))
    ordered = list(zip(answer.parts, gold.parts, strict=False))
    if "labelled" in kinds:  # in the order of the labels
        return (
            alike
            and kinds <= {"labelled", "tuple", "list"}
            and "[" not in gold.form + answer.form
            and one_to_one(ordered)
        )
    if kinds == {"tuple", "list"} and "()" in (answer.form, gold.form):  # unless the tuple may be an interval
        values = [read_number(part) for part in gold.parts]
        interval = len(values) == 2 and values[0] and values[1] and values[0].value < values[1].value
        return alike and not interval and one_to_one(ordered)
    if kinds == {"tuple", "matrix"}:  # a vector
        column = gold.form if gold.kind == "matrix" else answer.form
        return alike and set(column) <= set("[1], ") and one_to_one(ordered)
    return False


def _vector(text: str) -> str:
    r"""Write other forms of a vector as a tuple: ``\mathbf{i} - 2\mathbf{j}``, ``[1, 2]^T``, ``\binom{1}{2}``."""
    if match := re.fullmatch(r"\\d?binom\s*\{([^{}]*)\}\s*\{([^{}]*)\}", text):
        return f"({match[1]}, {match[2]})"
    if match := re.fullmatch(r"[\[(](.*)[\])](?:\s*\^\s*\{?\s*(?:\\text\s*\{)?(?:T|\\top)\}?\}?)?", text, re.S):
        return f"({match[1]})"
    terms = re.findall(r"([-+]?)\s*([^-+]*?)\s*(?:\\text|\\hat|\\vec)\s*\{\\?([ijk])(?:math)?\}", text)
    found = {name: sign + (size or "1") for sign, size, name in terms}
    if not found:
        return text
    return "(" + ", ".join(found.get(name, "0") for name in "ijk"[: 3 if "k" in found else 2]) + ")"


_OR = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![A-Za-z]))\s*")
_TIME = re.compile(r"(\d{1,2})(?:\s*:\s*(\d\d))?\s*(?:\\text\s*\{)?\s*(?:([ap])\.?\s*m\.?)?\s*\}?", re.I)


def _time(text: str) -> tuple[int, bool] | None:
    """Read a time of day: the minutes since midnight, and whether it says a.m. or p.m."""
    match = _TIME.fullmatch(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text))
    if match is None or not (match[2] or match[3]) or int(match[1]) > 24 or int(match[2] or 0) > 59:
        return None
    hours = int(match[1])
    if match[3]:
        hours = hours % 12 + (12 if match[3].lower() == "p" else 0)
    return 60 * hours + int(match[2] or 0), bool(match[3])


def _is_time(text: str) -> bool:
    """Return whether ``a:b`` is a time, not a ratio: with a.m. or p.m., a leading zero, or not in lowest terms."""
    if (time := _time(text)) is None or time[1]:
        return time is not None
    first, second = text.split(":")
    return second.strip()[0] == "0" or math.gcd(int(first), int(second)) > 1


_NAMED = re.compile(r"(?:[A-Za-z]|\\[a-z]+)(?:_\{?\w+\}?)?'?(?:\s*\([A-Za-z]\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\)")


def sides(text: str) -> list[str]:
    """Split an equation at its equals signs; of a chain, return the first and the last side."""
    sides = [side.strip() for side in split_outside(text, EQUALS)]
    return sides if len(sides) < 3 or not all(sides) else [sides[0], sides[-1]]


def _drop_approximation(text: str) -> str:
    r"""Return the exact side of an approximation: ``\frac{10}{3}`` of ``\frac{10}{3} \approx 3.33``."""
    sides = [side.strip() for side in split_outside(text, APPROXIMATELY)]
    if len(sides) == 2 and not sides[0]:
        return sides[1]
    if len(sides) < 2 or not all(sides):
        return text
    rounded = _NAMED.fullmatch(sides[0]) or ((number := read_number(sides[0])) and number.places is not None)
    return sides[-1] if len(sides) == 2 and rounded else sides[0]


def _states_value(side: str) -> bool:
    """Return whether ``side = 5`` states the value of an unknown; ``x^2 = 5`` and ``3x = 5`` do not."""
    if _NAMED.fullmatch(side) or re.fullmatch(r"[A-Za-z]'*\s*\([^()]*\)", side) or is_text(side):
        return True
    letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|(?<=\d)[a-z]", side)) - {"e", "i"}
    return len(letters) != 1


def _function_name(name: str) -> str:
    return "y" if re.fullmatch(r"[a-z]\s*\([a-z]\)", name) else compact(name)


def _equal(answer: str, gold: str, depth: int) -> bool:
    """Compare two normalized answers: first by form, then by parts, then by value."""
    if not answer or not gold or depth > 20:
        return False
    if compact(answer) == compact(gold):
        return True
    choice = choice_of(gold) if depth == 0 else None
    if choice is not None and (letter := chosen_letter(answer)) is not None:
        return letter == choice
    if choice is not None and "(" in gold:
        return False
    if depth == 0 and "," in gold and re.sub(r"\s", "", answer) == gold:  # 100,200 may be a list
        return True
    times = _time(answer), _time(gold)
    if _is_time(gold) or (times[0] is not None and times[0][1]):
        if times[0] is None or times[1] is None:
            return False
        (ours_at, ours_said), (theirs_at, theirs_said) = times[0], times[1]
        return ours_at == theirs_at or (ours_said != theirs_said and (ours_at - theirs_at) % 720 == 0)
    answer, gold = _drop_approximation(answer), _drop_approximation(gold)
    alternatives = split_outside(answer, _OR) if not split_outside(gold, _OR)[1:] else []
    if len(alternatives) > 1 and parse_compound(gold) is None:  # 0.75 or 75%
        return all(_equal(part.strip(), gold, depth + 1) for part in alternatives)

    if answer[-1:] == "%" or gold[-1:] == "%":
        a, g = answer.removesuffix("%").strip(), gold.removesuffix("%").strip()
        if answer[-1:] == gold[-1:]:
            return _equal(a, g, depth + 1)
        percentage, other = (a, gold) if answer[-1:] == "%" else (g, answer)
        plain_number = read_number(magnitude_of(other))
        # The plain number of a percentage is above 1, that of a hundredth at most 1.
        if (plain_number is None or abs(plain_number.value) >= 1) and _equal(a, g, depth + 1):
            return True
        if plain_number is not None and abs(plain_number.value) > 1:
            return False
        part = read_number(percentage)
        hundredth = (
            f"({percentage})/100"
            if part is None
            else rf"\frac{{{part.value.numerator}}}{{{part.value.denominator * 100}}}"
        )
        return _equal(hundredth, other, depth + 1)

    if len(items_of(answer)) == 1 == len(items_of(gold)):
        left, right = sides(answer), sides(gold)
        if len(left) == 2 and _NAMED.fullmatch(left[1]) and not _NAMED.fullmatch(left[0]):
            left.reverse()
        if len(left) == len(right) == 2 and _NAMED.fullmatch(left[0]) and _NAMED.fullmatch(right[0]):
            return _function_name(left[0]) == _function_name(right[0]) and _equal(left[1], right[1], depth + 1)
        if len(left) == 2 and len(right) == 1:
            return _states_value(left[0]) and _equal(left[1], gold, depth + 1)
        if len(left) == 1 and len(right) == 2 and _NAMED.fullmatch(right[0]):
            return _equal(answer, right[1], depth + 1)

    ours, theirs = parse_compound(answer), parse_compound(gold)
    if theirs is not None and theirs.kind == "matrix" and (ours is None or ours.kind == "tuple"):
        ours = parse_compound(_vector(answer)) or ours
    if ours is not None and theirs is not None:
        return _equal_parts(ours, theirs, depth)
    if (ours is None) != (theirs is None):
        # A set of one, or `x \in \{5\}`, has the value of its element.
        many, other = (ours, gold) if ours is not None else (theirs, answer)
        if many is not None and many.kind in ("set", "list") and len(many.parts) == 1:
            return _equal(many.parts[0], other, depth + 1)

    letters = [without_unit(text)[1] is not None or not re.search(r"[a-zA-Z]", text) for text in (gold, answer)]
    (a, counted), (g, wanted) = without_unit(answer, letters[0]), without_unit(gold, letters[1])
    if counted is not None or wanted is not None:
        kinds = [unit.kind for unit in (counted, wanted) if unit is not None and unit.kind is not None]
        if len(kinds) == 2 and counted is not None and wanted is not None:
            if kinds[0] != kinds[1]:
                return False
            if counted.size != wanted.size:
                size = counted.size / wanted.size
                a = rf"({a}) \cdot \frac{{{size.numerator}}}{{{size.denominator}}}"
        return _equal(a, g, depth + 1)
    if ours is not None or theirs is not None:
        if theirs is None and is_text(gold):
            return _equal_texts(answer, gold)
        # For example an interval and a set in set-builder notation; words have no value.
        return not is_text(answer) and not is_text(gold) and _equal_values(answer, gold)
    return _equal_values(answer, gold)


def _equal_values(answer: str, gold: str) -> bool:
    if is_text(answer) or is_text(gold):
        return _equal_texts(answer, gold)
    a, g = read_based(answer) or read_number(answer), read_based(gold) or read_number(gold)
    if a is not None and g is not None and (a.value == g.value or (a.places is None) == (g.places is None)):
        return a.value == g.value
    if a is not None and g is not None:
        return _approximates(a, g.value) if a.places is not None else _approximates(g, a.value)
    if _letters(answer) & {letter.swapcase() for letter in _letters(gold)} - _letters(gold):
        return False  # the parser folds case
    if "i" in _letters(gold) and "j" in _letters(answer) and "i" not in _letters(answer):
        answer = re.sub(r"(?<![A-Za-z\\])j(?![A-Za-z])", "i", answer)
    ours, theirs = parse_formula(answer), parse_formula(gold)
    if ours is None or theirs is None:
        return _equal_texts(answer, gold)
    for number, other in ((a, theirs), (g, ours)):
        if number is not None and number.places is not None and number.digits >= 6:
            import sympy  # type: ignore[import-untyped]

            if getattr(other, "is_number", False) and other.is_real:
                precise = sympy.N(other, number.digits + 20)
                if precise.is_Float and _approximates(number, Fraction(sympy.Rational(precise))):
                    return True
    return _equal_expressions(ours, theirs)


def _approximates(decimal: Number, value: Fraction) -> bool:
    return (
        decimal.places is not None
        and decimal.digits >= 6
        and abs(decimal.value - value) < Fraction(1, 10**decimal.places)
    )


def _letters(text: str) -> set[str]:
    return set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", text))


_EXCLUDES = {
    "and", "but", "either", "except", "false", "if", "incorrect", "maybe", "neither", "never", "no", "non", "nor",
    "not", "or", "perhaps", "unless", "wrong",
}  # fmt: skip


_NEGATED = re.compile(r"(?:is|are|was|were|do|does|did|ca|could|wo|would|should|has|have)nt")  # without apostrophe


def _equal_texts(answer: str, gold: str) -> bool:
    """Compare words. The answer may surround the gold answer with text, but not deny it or name alternatives."""
    ours, theirs = plain(answer), plain(gold)
    if not ours or not theirs or not is_text(gold):
        # The symbols of an unreadable formula are not punctuation.
        return compact(answer) == compact(gold)
    if ours == theirs:
        return True
    said, wanted, pieces = ours.split(), theirs.split(), re.split(r"[,/;]", answer)
    if len(pieces) == len(said):  # Monday, Tuesday
        return False
    if said[-len(wanted) :] == wanted:
        rest = said[: -len(wanted)]
    elif said[: len(wanted)] == wanted and (len(said) <= len(wanted) + 3 or plain(pieces[0]) == theirs):
        rest = said[len(wanted) :]
    else:
        return False
    return len(rest) <= 30 and not set(rest) & _EXCLUDES and not any(map(_NEGATED.fullmatch, rest))


@lru_cache(maxsize=1000)
def parse_formula(text: str) -> Any:  # noqa: ANN401
    """Parse a formula with math-verify's grammar, exactly, and evaluate it if it is a number; None if unreadable."""
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex  # type: ignore[import-untyped]

    if depth_of(text) > _DEEPEST:
        raise RecursionError  # as the parser would, after many seconds
    # Units are handled here: the library takes the t of 3t for one.
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


def _equal_expressions(answer: Any, gold: Any) -> bool:  # noqa: ANN401
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
            # An exact zero comes out as a tiny number without a significant digit; another form of 1/0 has no parts.
            parts = sympy.N(difference, 30).as_real_imag()
            if all(part.is_Float or part.is_zero for part in parts):
                return all(part == 0 or not part.is_comparable for part in parts)
        return not _differ(answer, gold) and bool(sympy.expand(difference) == 0 or sympy.simplify(difference) == 0)
    return bool(verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None))


def _differ(answer: Any, gold: Any) -> bool:  # noqa: ANN401
    """Return whether two expressions differ at a sample point; this is quicker than simplifying the difference."""
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
    except Exception:  # for example functions without a value
        return False
