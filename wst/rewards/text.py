"""Rewards computed from the text alone, without a model or a network."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from abc import abstractmethod
from collections.abc import Sequence
from decimal import MAX_EMAX, MIN_EMIN, ROUND_UP, Context, Decimal
from typing import Literal

from wst.errors import ConfigError, DataError
from wst.rewards.base import Reward
from wst.rewards.labels import Labels, fold
from wst.rewards.numbers import last_number
from wst.rewards.numbers import numbers as numbers
from wst.rewards.words import comparable, count_words
from wst.settings import check_arguments
from wst.types import Rollout

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)

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

    Examples:
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


class _TargetReward(Reward):
    """1.0 if the response matches the target, or one of several acceptable ones, else 0.0. Subclasses read both."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 or 0.0 per rollout."""
        return [
            # A list, not a generator: every target is checked, whichever matches.
            float(any([self._matches(r.response.text, target, r.query.id) for target in targets_of(self, r)]))
            for r in rollouts
        ]

    @abstractmethod
    def _matches(self, text: str, target: str, query: str) -> bool: ...


class ExactMatch(_TargetReward):
    """1.0 if the response equals the target after `wst.rewards.words.comparable`, else 0.0.

    Numbers are compared by value (``51`` equals ``51.0``). Signs, decimal points, slashes and symbols count: ``-5``,
    ``1.5``, ``10:30``, ``C++``, ``5%`` and ``$5`` each equal only themselves. Hyphens within words do not.

    Args:
        lowercase: Ignore case.
        punctuation: Ignore the punctuation, quotes, brackets and emphasis around and between words.
        articles: Ignore the English articles a, an, the.

    Raises:
        DataError: In ``score``, if a query has no target, an empty one, or normalisation leaves nothing of it.
    """

    def __init__(self, lowercase: bool = True, punctuation: bool = True, articles: bool = False) -> None:
        check_arguments(ExactMatch, locals())
        self.lowercase = lowercase
        self.punctuation = punctuation
        self.articles = articles

    def _matches(self, text: str, target: str, query: str) -> bool:
        wanted = self._forms(target)
        if not all(wanted):  # an empty response would match it
            what = (
                f"normalisation leaves nothing of the target {target!r:.60}"
                if target.strip()
                else "the target is empty"
            )
            remedy = (
                "set punctuation and articles of ExactMatch to false"
                if target.strip()
                else "give an answer or drop the row"
            )
            raise DataError(f"query {query!r}: {what}; {remedy}")
        return not wanted.isdisjoint(self._forms(text))

    def _forms(self, text: str) -> set[str]:
        if not self.punctuation:
            return {normalize(text, lowercase=self.lowercase, punctuation=False, articles=self.articles)}
        return {
            comparable(text, lowercase=self.lowercase, articles=self.articles, hyphen=hyphen) for hyphen in ("", " ")
        }


class LabelMatch(_TargetReward):
    """1.0 if the response names the target label, else 0.0.

    `wst.rewards.labels.Labels` defines what names a label. A label that its clause denies ("not positive", "far from
    positive", "positive? No") is not named; a response that both names and denies the target is wrong in mode "only".
    Of labels that start at the same position only the longest counts: with the labels "positive" and "not positive",
    "It is not positive" names only the second.

    Args:
        labels: All labels of the task.
        which: "only": the response must name the target and no other label; "first", "last": the first or last label
            that it names must be the target.

    Raises:
        ConfigError: If there are no labels, or one is empty or listed twice.
        DataError: In ``score``, if a query has no target, or its target is not a label.
    """

    def __init__(self, labels: list[str], which: Literal["only", "first", "last"] = "only") -> None:
        check_arguments(LabelMatch, locals())
        if not labels:
            raise ConfigError("LabelMatch: labels is empty; list the labels of the task")
        folded = [fold(label) for label in labels]
        for i, label in enumerate(folded):
            if not label:
                raise ConfigError(f"LabelMatch: label {i} of labels is empty; remove it or give it a name")
            if label in folded[:i]:
                raise ConfigError(
                    f"LabelMatch: labels lists {labels[i]!r} twice (case, spaces and _ are ignored); remove one"
                )
        self.labels = list(labels)
        self.which = which
        self._labels = Labels(folded)

    def _matches(self, text: str, target: str, query: str) -> bool:
        wanted = fold(target)
        if wanted not in self._labels.labels:
            raise DataError(
                f"query {query!r}: the target {target!r:.60} is not one of the labels of LabelMatch "
                f"({', '.join(map(repr, self.labels))}); add it to the labels or correct the target"
            )
        # That another label is denied says nothing against the target.
        found = [named for named in self._labels.find(text) if named[1] or named[0] == wanted]
        if self.which == "only":
            return set(found) == {(wanted, True)}
        return bool(found) and found[0 if self.which == "first" else -1] == (wanted, True)

    def _leaks(self, instruction: str, targets: tuple[str, ...]) -> bool:
        """Return whether the instruction names acceptable labels alone, or denies all others."""
        found = self._labels.find(instruction, leaks=True)
        named = {label for label, affirmed in found if affirmed}
        wanted = set(map(fold, targets))
        others = self._labels.labels - wanted
        # An instruction that names several labels states the task, not the answer.
        return (bool(named) and named <= wanted) or (
            not named and bool(others) and {label for label, _ in found} == others
        )


class LastNumber(_TargetReward):
    """1.0 if the response gives the same number as the target, else 0.0.

    `wst.rewards.numbers.last_number` defines how numbers are read: the stated answer, or else the last number. A
    response without a number, or with several to choose from (``5-6``, ``5 or 6``), gets 0.0. In "5 apples and 0
    oranges" the last number is 0: which of two quantities is asked for cannot be read from the response.

    Args:
        tolerance: The largest absolute difference that still counts as equal.

    Raises:
        ConfigError: If the tolerance is negative or not finite.
        DataError: In ``score``, if a query has no target, or its target has no number.

    Examples:
        >>> from wst.types import Query, Response
        >>> query = Query("1", "How far?", target="#### 1200")
        >>> LastNumber(tolerance=0.5).score([Rollout(query, None, Response("About 1,200.4 km."))])
        [1.0]
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        check_arguments(LastNumber, locals())
        if not 0.0 <= tolerance < math.inf:
            raise ConfigError(f"LastNumber: tolerance must be a finite number of at least 0, got {tolerance}")
        self.tolerance = tolerance
        self._tolerance = Decimal(repr(float(tolerance)))  # the decimal as written, not the nearest binary fraction

    def _matches(self, text: str, target: str, query: str) -> bool:
        wanted = last_number(target)
        if wanted is None:
            raise DataError(
                f"query {query!r}: the target {target!r:.60} contains no number, or several; LastNumber needs one: "
                "correct the target or use ExactMatch"
            )
        return self._equal(last_number(text), wanted)

    def _leaks(self, instruction: str, targets: tuple[str, ...]) -> bool:
        """Return whether the instruction mentions the number, in whatever form; see `wst.rewards.numbers.numbers`."""
        mentioned = numbers(instruction)
        return any(self._equal(number, last_number(target)) for target in targets for number in mentioned)

    def _equal(self, number: Decimal | None, wanted: Decimal | None) -> bool:
        if number is None or wanted is None or not (number.is_finite() and wanted.is_finite()):
            return False
        return _SUBTRACT.subtract(number, wanted).copy_abs() <= self._tolerance


class Length(Reward):
    """1.0 up to a length limit, then falling linearly to 0.0 at twice the limit.

    Args:
        limit: The greatest length with reward 1.0, in ``unit``.
        unit: "words" (see `wst.rewards.words.count_words`) or "characters".
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
        check_arguments(Length, locals())
        if limit < 1:
            raise ConfigError(f"Length: limit must be at least 1, got {limit}")
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
        return count_words(text) if self.unit == "words" else len(text)


def targets_of(reward: Reward, rollout: Rollout) -> tuple[str, ...]:
    """Return the acceptable answers of a rollout's query.

    Raises:
        DataError: If the query has none.
    """
    if not rollout.query.targets:
        raise DataError(
            f"query {rollout.query.id!r}: it has no target, which {type(reward).__name__} needs; "
            "map a target field of the data, or use a reward that needs none"
        )
    return rollout.query.targets
