r"""A reward for mathematics: is the final answer equal in value to the gold answer?

The parent reads where the answers stand (`_final`). Whether two are equal (`same_answer`) is found out by worker
processes, with math-verify and sympy; neither is imported before that.
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
from wst.rewards.math.verdict import holds
from wst.rewards.math.workers import Outcome, Workers
from wst.rewards.text import target_of
from wst.rewards.words import gives_away
from wst.settings import check_choice, check_counts
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

_TAIL = 20_000  # characters of a text that are read
_PROSE = 2_000  # of these, where the answer is neither boxed nor after ####
_LONGEST = 4_000  # characters of an answer
_REMEMBERED = 10_000


class MathAnswer(Reward):
    r"""1.0 where the final answer of the response equals the target in value, else 0.0.

    What is read as the final answer, of responses and targets alike: the last ``\boxed{...}`` or ``\fbox{...}`` that
    is closed and not empty; else the line after the last ``####``; else the whole text where it is nothing but an
    answer (``\frac{1}{2}``, ``12 cm``, ``June 20``); else what follows the last "answer is" or "Answer:" where that
    is nothing but an answer; else the last formula or number that math-verify finds. Only the last 20,000 characters
    of a text are looked at, of one with neither box nor ``####`` the last 2,000. An answer of more than 4,000
    characters, or with more than 50 brackets within each other, is not verified.

    What counts as equal:

    - Exact values: ``0.5`` and ``\frac{1}{2}``, ``2\frac{1}{2}`` and ``5/2``, ``1,200`` and ``1200``, ``2516_8`` and
      ``1358``. A decimal of at least six significant digits may stand for a number that is not written as a decimal,
      if it is off by less than one in its last place: ``0.333333`` for ``1/3``, but not ``0.33``.
    - Percentages: where both have a percent sign, or neither, they are compared as they stand. Where one has it, the
      sign is taken for a unit or for a hundredth, whichever fits: ``50\%`` equals both ``50`` and ``0.5``, since
      data sets ask for "what percent" and write the plain number.
    - Units, currency and degree signs may be left out. Where both sides have a known unit, it is converted: ``1 m`` is
      ``100 cm``, and ``5 m`` is not ``5 cm``. A unit that is not known (``5 apples``) is ignored.
    - The order counts in tuples and intervals, not in sets, unions and lists (``1, -2``). The brackets count; a list
      may stand for a tuple of its order. An inequality in one variable equals its interval.
    - ``x = 5`` equals ``5``, and ``y = 2x`` equals ``2x``, but ``x = 5`` does not equal ``y = 5``.
    - Choices by their letter: ``(C)``, ``C`` and ``(C) 12``. Other words are compared as text, without case,
      punctuation and articles.

    Known limits: an answer that repeats a term of the task counts where it has the value asked for (``1358`` for its
    own form in base 8; an expression that was to be simplified or factored). A colon divides, in
    times too; degrees are not converted to radians; numbers in words are text; variables are compared regardless of
    case; ``100,200`` is a number, ``100, 200`` a list.

    Verification happens in worker processes, which are killed and replaced when an answer hangs or exhausts their
    memory; so this works in any thread and under any launcher. They start with the first score, or with `setup`.

    Args:
        timeout: Seconds that one answer may take.
        memory_mb: The address space of a worker, in MiB (where the platform can limit it).
        workers: How many processes verify.
        unverified: What an answer gets that could not be verified within these limits, or broke its worker. "wrong":
            0.0, since an answer that nobody can check is no answer; a teacher must not learn that it costs nothing.
            "nan": it is left out of training.

    Raises:
        ConfigError: If an option is out of range; also, in ``score``, if the workers cannot start.
        DataError: If a query has no target, or one that cannot be verified against itself (in ``score``).

    Example:
        >>> from wst.types import Query, Response
        >>> query = Query("1", "What is half of 3?", target=r"\frac{3}{2}")
        >>> reward = MathAnswer(workers=1)
        >>> reward.score([Rollout(query, None, Response("Half of 3 is $1.5$."))])
        [1.0]
        >>> reward.close()
    """

    def __init__(
        self,
        timeout: float = 5.0,
        memory_mb: int = 1024,
        workers: int = 2,
        unverified: Literal["wrong", "nan"] = "wrong",
    ) -> None:
        if not 0.0 < timeout < math.inf:
            raise ConfigError(f"MathAnswer: timeout must be a finite number of seconds above 0, got {timeout}")
        if memory_mb < 256:
            raise ConfigError(f"MathAnswer: memory_mb must be at least 256, which a worker needs, got {memory_mb}")
        check_counts("MathAnswer", workers=workers)
        check_choice("MathAnswer: unverified", unverified, ("wrong", "nan"))
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
        """Leave out what belongs to this process: a copy starts its own workers."""
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
        """Give 1.0 or 0.0 a rollout, or NaN where an answer could not be verified and ``unverified`` is "nan"."""
        pairs = [(_final(rollout.response.text), self._gold(rollout)) for rollout in rollouts]
        with self._lock:
            verdicts = self._verify(pairs, rollouts)
        unverified = math.nan if self.unverified == "nan" else 0.0
        return [unverified if verdicts[pair] is None else float(bool(verdicts[pair])) for pair in pairs]

    def _gold(self, rollout: Rollout) -> str:
        gold = _final(target_of(self, rollout), target=True)
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
        """See that it is not the gold answer's fault that a pair could not be verified."""
        golds = {gold: rollout for (_, gold), rollout in doubtful.items()}
        # With time to spare: an error here ends the run.
        outcomes = self._workers().run([[gold, True, gold] for gold in golds], 2 * self.timeout) if golds else []
        for rollout, outcome in zip(golds.values(), outcomes, strict=True):
            if outcome.status == "done" and outcome.value is None:
                raise _unreadable(rollout, "it holds no answer that could be compared", "correct the target")
            if outcome.status != "done":
                reason = {"timeout": f"within {2 * self.timeout:g} s", "failed": f"({outcome.value})"}
                raise _unreadable(
                    rollout,
                    f"it cannot be verified {reason.get(outcome.status, '(its worker died)')}",
                    "correct the target, or raise timeout or memory_mb of MathAnswer",
                )

    def _workers(self) -> Workers:
        if self._pool is None or not self._pool.usable:
            self._pool = Workers("MathAnswer", "wst.rewards.math.verdict:work", self.workers, self.memory_mb)
        return self._pool

    def _leaks(self, instruction: str, target: str) -> bool:
        r"""Tell whether the instruction holds the gold answer.

        A number, or a fraction, leaks if any number, box or formula of the instruction has its value; markers of lists
        and counts of steps are ignored (`wst.rewards.numbers.numbers`). A choice leaks if it is the only one named. All
        else leaks as whole words, or as a formula, in the same form (`wst.rewards.words.gives_away`).
        """
        gold = _final(target, target=True).text
        held, words = holds(instruction, gold), plain(gold)
        if held or (held is not None and not any(map(str.isalpha, words))):  # digits alone are not looked for as words
            return bool(held)
        return gives_away(instruction, gold) or gives_away(instruction, words)


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer, or a text in which it has yet to be found; ``stated`` tells which."""

    text: str
    stated: bool


def _final(text: str, target: bool = False) -> _Answer:
    """Find the marked answer, or the end of the text that holds it, without reading what it means."""
    tail = text[-_TAIL:]
    answer = gold_answer(tail) if target else None
    answer, stated = (answer, True) if answer is not None else final_answer(tail)
    return _Answer(answer if stated else answer[-_PROSE:].strip(), stated)


def _unreadable(rollout: Rollout, what: str, remedy: str) -> DataError:
    return DataError(f"query {rollout.query.id!r}: the target {rollout.query.target!r:.60} is no use: {what}; {remedy}")


def _doubtful(outcome: Outcome) -> bool:
    return outcome.status != "done" or outcome.value is None
