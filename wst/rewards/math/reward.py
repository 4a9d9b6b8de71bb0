r"""A reward for mathematics: whether the final answer equals the gold answer in value.

The parent finds marked answers (`_final`). Worker processes do the rest (`is_correct`) with math-verify and sympy,
which the parent never imports.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wst.errors import ConfigError, DataError
from wst.rewards.base import Reward
from wst.rewards.math.extract import final_answer, gold_answer
from wst.rewards.math.normalize import plain
from wst.rewards.math.prose import STATES
from wst.rewards.math.verdict import contains_answer
from wst.rewards.math.workers import Outcome, Workers
from wst.rewards.text import targets_of
from wst.rewards.words import gives_away
from wst.settings import check_arguments, check_counts
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

_TAIL = 20_000  # characters of a text that are read
_PROSE = 2_000  # of these, where the answer is neither boxed nor after ####
_LONGEST = 4_000  # characters of an answer
_REMEMBERED = 10_000


class MathAnswer(Reward):
    r"""1.0 if the final answer of the response equals the target, or one of several, in value, else 0.0.

    Where the final answer stands, in responses and targets alike:

    - in the last ``\boxed{...}``; several boxes that only commas, "and", "or" or labels separate are one list;
    - in ``<answer>...</answer>``; after the last ``####``, if that is not a heading such as ``#### Explanation``;
    - else after the last "answer is" or "Answer:", unless a correction ("No wait, ...") follows;
    - else at the end of the last sentence with a number or formula: "She sold 72 clips." is read too.
      A sentence that hedges ("5, or maybe 6", "between 5 and 10") or denies ("5 is wrong") states no answer.

    Only the last 20,000 characters are read, and the last 2,000 of a text without a box, tag or ``####``. An answer of
    more than 4,000 characters, or with brackets nested more than 50 deep, is not verified.

    What is equal:

    - Exact values: ``0.5`` and ``\frac{1}{2}``, ``1,200`` and ``1200``, ``0.\overline{3}`` and ``1/3``, "five" and
      ``5``, ``5 million`` and ``5000000``, ``2516_8`` and ``1358``. A decimal of at least six significant digits may
      stand for a number that is not written as a decimal, if it is off by less than one in its last place.
    - Percentages: ``50\%`` equals ``0.5`` and ``50``, because data sets ask "what percent" and write the plain number.
      A plain number above 1 is taken for the percentage, one below 1 for the part: ``0.5\%`` is not ``1/2``, and
      ``2500\%`` is not 25. So "5 percent" equals 5.
    - Units, currency and degree signs may be left out. If both sides have a known unit, it is converted: ``20 m/s`` is
      ``72 km/h``, and ``5 m`` is not ``5 cm``. An unknown unit (``5 apples``) is ignored.
    - Order counts in tuples, intervals and vectors, not in sets, unions and lists. ``y = 2, x = 1`` is (1, 2). A list
      may stand for a tuple that cannot be an interval: ``3, -4`` for (3, -4), but not ``0, 1`` for (0, 1). An
      inequality in one variable equals its interval.
    - ``x = 5`` equals ``5``; ``x^2 = 5``, ``3x = 5`` and ``y = 5`` do not equal ``x = 5``.
    - "A or B" equals a single value only if both do.
    - A choice is its letter, if the response decides for one. Other words are compared as text; a sentence may surround
      them, but not deny them or add alternatives.

    Decisions that a reader may make otherwise: ``100,200`` is one number (a list of the same digits equals it too), so
    it equals ``100200``; ``10.000`` is ten. If a worked solution boxes two answers, one of them alone is wrong, even if
    the data set's target is that one.

    Known limits: an answer that repeats a term of the task counts if it has the value asked for (an expression that was
    to be simplified or factored); degrees are not converted to radians.

    Answers are verified in worker processes, which are killed and replaced if an answer hangs or exhausts their memory,
    so this works in any thread and under any launcher. They start with the first score, or with `setup`.

    Args:
        timeout: Seconds of CPU time that one answer may take.
        memory_mb: Address space of a worker, in MiB (if the platform can limit it).
        workers: Number of worker processes.
        unverified: The score of an answer that could not be verified within these limits, or broke its worker. "wrong":
            0.0, because a teacher must not learn that an answer that cannot be checked costs nothing. "nan": the
            rollout is left out of training.

    Raises:
        ConfigError: If an option is out of range; also, in ``score``, if the workers cannot start.
        DataError: If a query has no target, or one that cannot be verified against itself (in ``score``).

    Examples:
        >>> from wst.types import Query, Response
        >>> query = Query("1", "What is half of 3?", target=r"\frac{3}{2}")
        >>> reward = MathAnswer(workers=1)
        >>> reward.score([Rollout(query, None, Response("Half of 3 is $1.5$."))])
        [1.0]
        >>> reward.close()
    """

    def __init__(
        self,
        timeout: float = 2.0,
        memory_mb: int = 1024,
        workers: int = 2,
        unverified: Literal["wrong", "nan"] = "wrong",
    ) -> None:
        check_arguments(MathAnswer, locals())
        if not 0.0 < timeout < math.inf:
            raise ConfigError(f"MathAnswer: timeout must be a finite number of seconds above 0, got {timeout}")
        if memory_mb < 256:
            raise ConfigError(f"MathAnswer: memory_mb must be at least 256, which a worker needs, got {memory_mb}")
        check_counts("MathAnswer", workers=workers)
        self.timeout = timeout
        self.memory_mb = memory_mb
        self.workers = workers
        self.unverified = unverified
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._pool: Workers | None = None
        self._verdicts: OrderedDict[tuple[_Answer, str], bool | None] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Return the options; a copy starts its own workers."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_pool", "_verdicts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def setup(self, device: torch.device) -> None:
        """Start the workers, without waiting for them."""
        with self._lock:
            self._workers().start()

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 or 0.0 per rollout, or NaN if an answer could not be verified and ``unverified`` is "nan"."""
        pairs = [
            [(_final(rollout.response.text), self._gold(rollout, target)) for target in targets_of(self, rollout)]
            for rollout in rollouts
        ]
        flat = [(pair, rollout) for group, rollout in zip(pairs, rollouts, strict=True) for pair in group]
        with self._lock:
            verdicts = self._verify([pair for pair, _ in flat], [rollout for _, rollout in flat])
        unverified = math.nan if self.unverified == "nan" else 0.0
        rewards = []
        for group in pairs:
            found = {verdicts[pair] for pair in group}
            rewards.append(1.0 if True in found else unverified if None in found else 0.0)
        return rewards

    def _gold(self, rollout: Rollout, target: str) -> str:
        gold = _final(target, target=True)
        if not gold.text or len(gold.text) > _LONGEST:
            raise _unreadable(rollout, f"it holds no answer of 1 to {_LONGEST} characters", "correct the target")
        return gold.text

    def _verify(
        self, pairs: Sequence[tuple[_Answer, str]], rollouts: Sequence[Rollout]
    ) -> dict[tuple[_Answer, str], bool | None]:
        verdicts: dict[tuple[_Answer, str], bool | None] = {}
        asked: dict[tuple[_Answer, str], Rollout] = {}
        for pair, rollout in zip(pairs, rollouts, strict=True):
            if pair in self._verdicts:
                self._verdicts.move_to_end(pair)
                verdicts[pair] = self._verdicts[pair]
            elif not pair[0].text:
                verdicts[pair] = False
            elif len(pair[0].text) > _LONGEST:
                verdicts[pair] = None
            else:
                asked.setdefault(pair, rollout)
        if asked:
            jobs = [[answer.text, answer.stated, gold] for answer, gold in asked]
            outcomes = dict(zip(asked, self._workers().run(jobs, self.timeout), strict=True))
            self._check_golds({pair: asked[pair] for pair, outcome in outcomes.items() if _doubtful(outcome)})
            for pair, outcome in outcomes.items():
                verdicts[pair] = outcome.value if outcome.status == "done" else None
                self._verdicts[pair] = verdicts[pair]
                if len(self._verdicts) > _REMEMBERED:
                    self._verdicts.popitem(last=False)
        return verdicts

    def _check_golds(self, doubtful: dict[tuple[_Answer, str], Rollout]) -> None:
        """Raise an error if a pair could not be verified because of its gold answer."""
        golds = {gold: rollout for (_, gold), rollout in doubtful.items()}
        # With time to spare: an error here ends the run.
        outcomes = self._workers().run([[gold, True, gold] for gold in golds], 5 * self.timeout) if golds else []
        for rollout, outcome in zip(golds.values(), outcomes, strict=True):
            if outcome.status == "done" and outcome.value is None:
                raise _unreadable(rollout, "it holds no answer that could be compared", "correct the target")
            if outcome.status != "done":
                reason = {"timeout": f"within {5 * self.timeout:g} s", "failed": f"({outcome.value})"}
                raise _unreadable(
                    rollout,
                    f"it cannot be verified {reason.get(outcome.status, '(its worker died)')}",
                    "correct the target, or raise timeout or memory_mb of MathAnswer",
                )

    def _workers(self) -> Workers:
        if self._pool is None or not self._pool.usable:
            self._pool = Workers("MathAnswer", "wst.rewards.math.verdict:work", self.workers, self.memory_mb)
        return self._pool

    def _leaks(self, instruction: str, targets: tuple[str, ...]) -> bool:
        r"""Return whether the instruction contains the gold answer.

        A number, or a fraction, leaks if any number, box or formula of the instruction has its value; markers of lists
        and counts of steps are ignored (`wst.rewards.numbers.numbers`). A choice leaks if it is the only one named. A
        list, tuple or interval leaks as a formula or sentence of its own, in any notation. All else leaks as whole
        words, or as a formula, in the same form (`wst.rewards.words.gives_away`); or in any form where the instruction
        says that it is the answer.
        """
        golds = [_final(target, target=True).text for target in targets]
        return any(_gives_away(instruction, gold) for gold in golds) or self._states(instruction, golds)

    def _states(self, instruction: str, golds: Sequence[str]) -> bool:
        answer = _final(instruction)
        if not (answer.stated or STATES.search(answer.text)):
            return False
        jobs = [[answer.text, answer.stated, g] for g in golds if contains_answer(instruction, g) is None]
        with self._lock:
            outcomes = self._workers().run(jobs, self.timeout) if jobs else []
        return any(outcome.status == "done" and outcome.value is True for outcome in outcomes)


def _gives_away(instruction: str, gold: str) -> bool:
    held, words = contains_answer(instruction, gold), plain(gold)
    if held or (held is not None and not any(map(str.isalpha, words))):  # digits alone are not looked for as words
        return bool(held)
    return gives_away(instruction, gold) or gives_away(instruction, words)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer (``stated``), or a text that contains one."""

    text: str
    stated: bool


def _final(text: str, target: bool = False) -> _Answer:
    """Return the marked answer or, without a mark, the end of the text, unparsed."""
    tail = text[-_TAIL:]
    answer = gold_answer(tail) if target else None
    answer, stated = (answer, True) if answer is not None else final_answer(tail)
    return _Answer(answer if stated else answer[-_PROSE:].strip(), stated)


def _unreadable(rollout: Rollout, what: str, remedy: str) -> DataError:
    return DataError(f"query {rollout.query.id!r}: the target {rollout.query.target!r:.60} is no use: {what}; {remedy}")


def _doubtful(outcome: Outcome) -> bool:
    return outcome.status != "done" or outcome.value is None
