"""Rewards computed from the text alone, without a model or a network."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, ROUND_UP, Context, Decimal
from typing import Literal

from wst.errors import ConfigError, DataError
from wst.rewards.base import Reward
from wst.settings import check_choice
from wst.types import Rollout

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)

# Every attempt either fails within a few characters or consumes what it read, so the search takes linear time.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}%\-\u2212])[-+\u2212])?"  # after a word, bracket or dash: a hyphen or minus operator
    r"[$€£¥₹]?"
    r"(?P<magnitude>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?P<exponent>[eE][-+\u2212]?\d+)?"
)

# Reads any number of digits without rounding; an exponent beyond 10^18 gives infinity instead of an error.
_READ = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
# The exact difference of 1e999999999 and 1 does not fit into memory. A difference rounded away from zero exceeds a
# tolerance of at most 40 digits if and only if the exact difference does.
_SUBTRACT = Context(prec=40, rounding=ROUND_UP, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


def normalize(text: str, *, lowercase: bool = True, punctuation: bool = True, articles: bool = False) -> str:
    r"""Remove the differences that do not matter when two answers are compared.

    This is the answer normalisation of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250), extended from ASCII to all
    Unicode punctuation. Whitespace is always trimmed and collapsed, and the text is converted to NFC.

    Args:
        text: The text to normalise.
        lowercase: Ignore case.
        punctuation: Remove punctuation, and the ASCII symbols ``$+<=>^`|~``.
        articles: Remove the English articles, as SQuAD does.

    Example:
        >>> normalize("  The Eiffel\n Tower. ", articles=True)
        'eiffel tower'
    """
    if lowercase:
        text = text.casefold()
    text = unicodedata.normalize("NFC", text)
    if punctuation:
        text = "".join(c for c in text if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    if articles:
        text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text in English notation: comma for thousands, point for decimals.

    Currency and percent signs are skipped, so 50% is 50; a fraction such as 3/4 is two numbers.

    Returns:
        Its exact value; infinity if the exponent is beyond 10^18; None if there is no number.

    Example:
        >>> last_number("3 boxes at $1,200 make #### -$3,600.50.")
        Decimal('-3600.50')
    """
    last: re.Match[str] | None = None
    for match in _NUMBER.finditer(text):
        last = match
    return None if last is None else _decimal(last)


def numbers(text: str) -> list[Decimal]:
    """Return all numbers of a text, in order; see `last_number`."""
    return [_decimal(match) for match in _NUMBER.finditer(text)]


def _decimal(match: re.Match[str]) -> Decimal:
    literal = (match["sign"] or "") + match["magnitude"] + (match["exponent"] or "")
    return _READ.create_decimal(literal.replace(",", "").replace("\u2212", "-"))


class ExactMatch(Reward):
    """1.0 if the response equals the target after `normalize`, else 0.0.

    Args:
        lowercase: Ignore case.
        punctuation: Ignore punctuation.
        articles: Ignore the English articles a, an, the.

    Raises:
        DataError: In ``score``, if a query has no target, or normalisation leaves nothing of it.
    """

    def __init__(self, lowercase: bool = True, punctuation: bool = True, articles: bool = False) -> None:
        self.lowercase = lowercase
        self.punctuation = punctuation
        self.articles = articles

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 or 0.0 per rollout."""
        return [float(self._normalize(r.response.text) == self._wanted(r)) for r in rollouts]

    def _leaks(self, instruction: str, target: str) -> bool:
        return super()._leaks(self._normalize(instruction), self._normalize(target))

    def _normalize(self, text: str) -> str:
        return normalize(text, lowercase=self.lowercase, punctuation=self.punctuation, articles=self.articles)

    def _wanted(self, rollout: Rollout) -> str:
        target = target_of(self, rollout)
        wanted = self._normalize(target)
        if not wanted and target.strip():  # every response without letters or digits would match it
            raise DataError(
                f"query {rollout.query.id!r}: normalisation leaves nothing of the target {target!r:.60}; "
                "set punctuation and articles of ExactMatch to false"
            )
        return wanted


class LabelMatch(Reward):
    """1.0 if the response names the target label, else 0.0.

    Labels are found as whole words, ignoring case: no letter, digit or underscore may adjoin them. Of labels that start
    at the same position only the longest counts, and the search continues after it: with the labels "positive" and
    "not positive", "It is not positive" names only the second.

    Args:
        labels: All labels of the task.
        which: "only": the response must name the target and no other label; "first", "last": the first or last label
            that it names must be the target.

    Raises:
        ConfigError: If there are no labels, or one is empty or listed twice.
        DataError: In ``score``, if a query has no target, or its target is not a label.
    """

    def __init__(self, labels: list[str], which: Literal["only", "first", "last"] = "only") -> None:
        check_choice("LabelMatch: which", which, ("only", "first", "last"))
        if not labels:
            raise ConfigError("LabelMatch: labels is empty; list the labels of the task")
        folded = [_fold(label) for label in labels]
        for i, label in enumerate(folded):
            if not label:
                raise ConfigError(f"LabelMatch: label {i} of labels is empty; remove it or give it a name")
            if label in folded[:i]:
                raise ConfigError(
                    f"LabelMatch: labels lists {labels[i]!r} twice (case and spacing are ignored); remove one"
                )
        self.labels = list(labels)
        self.which = which
        self._folded = frozenset(folded)
        longest_first = sorted(folded, key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 or 0.0 per rollout."""
        return [float(self._matches(r.response.text, self._wanted(r))) for r in rollouts]

    def _leaks(self, instruction: str, target: str) -> bool:
        # An instruction that names several labels states the task, not the answer.
        return set(self._pattern.findall(_fold(instruction))) == {_fold(target)}

    def _matches(self, text: str, wanted: str) -> bool:
        found = self._pattern.findall(_fold(text))
        if self.which == "only":
            return set(found) == {wanted}
        return bool(found) and found[0 if self.which == "first" else -1] == wanted

    def _wanted(self, rollout: Rollout) -> str:
        target = target_of(self, rollout)
        wanted = _fold(target)
        if wanted not in self._folded:
            raise DataError(
                f"query {rollout.query.id!r}: the target {target!r:.60} is not one of the labels of LabelMatch "
                f"({', '.join(map(repr, self.labels))}); add it to the labels or correct the target"
            )
        return wanted


class LastNumber(Reward):
    """1.0 if the last number of the response equals the last number of the target, else 0.0.

    `last_number` defines how numbers are read. A response without a number gets 0.0.

    Args:
        tolerance: The largest absolute difference that still counts as equal.

    Raises:
        ConfigError: If the tolerance is negative or not finite.
        DataError: In ``score``, if a query has no target, or its target has no number.

    Example:
        >>> from wst.types import Query, Response
        >>> query = Query("1", "How far?", target="#### 1200")
        >>> LastNumber(tolerance=0.5).score([Rollout(query, None, Response("About 1,200.4 km."))])
        [1.0]
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        if not 0.0 <= tolerance < math.inf:
            raise ConfigError(f"LastNumber: tolerance must be a finite number of at least 0, got {tolerance}")
        self.tolerance = tolerance
        self._tolerance = Decimal(repr(float(tolerance)))  # the decimal as written, not the nearest binary fraction

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 or 0.0 per rollout."""
        return [float(self._matches(r.response.text, self._wanted(r))) for r in rollouts]

    def _leaks(self, instruction: str, target: str) -> bool:
        wanted = last_number(target)
        if wanted is None or not wanted.is_finite():
            return False
        found = [number for number in numbers(instruction) if number.is_finite()]
        return any(_SUBTRACT.subtract(number, wanted).copy_abs() <= self._tolerance for number in found)

    def _matches(self, text: str, wanted: Decimal) -> bool:
        number = last_number(text)
        if number is None or not (number.is_finite() and wanted.is_finite()):
            return False
        return _SUBTRACT.subtract(number, wanted).copy_abs() <= self._tolerance

    def _wanted(self, rollout: Rollout) -> Decimal:
        target = target_of(self, rollout)
        number = last_number(target)
        if number is None:
            raise DataError(
                f"query {rollout.query.id!r}: the target {target!r:.60} contains no number, which LastNumber needs; "
                "correct the target or use ExactMatch"
            )
        return number


class Length(Reward):
    """1.0 up to a length limit, then falling linearly to 0.0 at twice the limit.

    Args:
        limit: The greatest length with reward 1.0, in ``unit``.
        unit: "words" (divided by whitespace) or "characters".
        of: Which text is measured. With "instruction", an unaided response has length 0.

    Raises:
        ConfigError: If the limit is below 1.
    """

    def __init__(
        self,
        limit: int,
        unit: Literal["words", "characters"] = "words",
        of: Literal["response", "instruction"] = "response",
    ) -> None:
        if limit < 1:
            raise ConfigError(f"Length: limit must be at least 1, got {limit}")
        check_choice("Length: unit", unit, ("words", "characters"))
        check_choice("Length: of", of, ("response", "instruction"))
        self.limit = limit
        self.unit = unit
        self.of = of
        self.reads_instruction = of == "instruction"

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return a number from 0.0 to 1.0 per rollout."""
        return [min(1.0, max(0.0, 2.0 - self._length(r) / self.limit)) for r in rollouts]

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return NaN: there is no gold answer that an instruction could contain."""
        return [math.nan] * len(rollouts)

    def _length(self, rollout: Rollout) -> int:
        part = rollout.response if self.of == "response" else rollout.instruction
        text = "" if part is None else part.text
        return len(text.split()) if self.unit == "words" else len(text)


def target_of(reward: Reward, rollout: Rollout) -> str:
    """Return the gold answer of a rollout's query.

    Raises:
        DataError: If the query has none.
    """
    if rollout.query.target is None:
        raise DataError(
            f"query {rollout.query.id!r}: it has no target, which {type(reward).__name__} needs; "
            "map a target field of the data, or use a reward that needs none"
        )
    return rollout.query.target


def _fold(text: str) -> str:
    return normalize(text, punctuation=False)
