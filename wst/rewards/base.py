"""What a reward is, and the check that every reward passes through."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wst.errors import ContractError
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

    from wst.students.base import Student


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of a batch of rollouts.

    Attributes:
        total: One reward a rollout; NaN where it could not be scored.
        parts: The rewards that ``total`` is made of, by name, each as long as ``total``.
    """

    total: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)


class Reward(ABC):
    """Scores what the student answered. Subclass it and write ``score``."""

    #: Whether rollouts must come with what the student answers on its own, `Rollout.unaided`.
    needs_unaided: bool = False

    #: Number of queries whose unaided answers `calibrate` wants before the first score; 0: none.
    calibration_size: int = 0

    def check(self) -> None:
        """Make sure that the models it needs are there, before anything is loaded."""

    def setup(self, device: torch.device) -> None:
        """Load what scoring needs, once; called again at every stage, so it must be idempotent."""

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Learn from what the student answers on its own; called once, before anything is scored."""

    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint must keep, as plain values: what `calibrate` learnt."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what a checkpoint kept; a reward that has done so asks for no calibration any more."""

    def students(self) -> dict[str, Student]:
        """Give the students that the reward itself asks, such as a judge, by the name their calls are logged under."""
        return {}

    def close(self) -> None:
        """Give back what `setup` took; `setup` may be called again."""

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Give each rollout its reward.

        Args:
            rollouts: A batch of any size above 0; all have a response.

        Returns:
            One number a rollout, in order. NaN means that it cannot be scored: the rollout then takes
            no part in training. It never means 0.
        """

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Like `score`, with the parts that a composite reward is made of."""
        return Scores(self.score(rollouts))

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Tell which instructions hold the gold answer already: a teacher that writes them solves the task itself.

        Here the target must stand in the instruction as whole words, in whatever case. Override it where a reward
        reads answers in another way.

        Args:
            rollouts: Any number; their responses are not looked at.

        Returns:
            1.0 or 0.0 a rollout; NaN where there is no instruction or no target.
        """
        return [
            math.nan
            if rollout.instruction is None or rollout.query.target is None
            else float(self._leaks(rollout.instruction.text, rollout.query.target))
            for rollout in rollouts
        ]

    def _leaks(self, instruction: str, target: str) -> bool:
        words = " ".join(target.casefold().split())
        return bool(words) and bool(
            re.search(rf"(?<!\w){re.escape(words)}(?!\w)", " ".join(instruction.casefold().split()))
        )


def score(reward: Reward, rollouts: Sequence[Rollout], name: str | None = None) -> Scores:
    """Score all rollouts that have an answer, in one call; those whose response failed get NaN.

    Args:
        reward: Scores them.
        rollouts: Any number.
        name: What an error calls the reward; its class's name by default.

    Raises:
        ContractError: If the reward returns the wrong count, something not a number, or an infinity.
    """
    answered = [i for i, rollout in enumerate(rollouts) if rollout.response.error is None]
    scores = reward.score_parts([rollouts[i] for i in answered]) if answered else Scores([])
    name = name or type(reward).__name__
    if not isinstance(scores, Scores):
        raise ContractError(f"reward {name}: score_parts() must return wst.Scores, got {_short(scores)}")
    parts = {part: _spread(f"{name}[{part}]", values, answered, len(rollouts)) for part, values in scores.parts.items()}
    return Scores(_spread(name, scores.total, answered, len(rollouts)), parts)


def _spread(name: str, values: Sequence[float], positions: list[int], length: int) -> list[float]:
    """Put ``values`` at ``positions`` of a list of NaN, after checking them."""
    countable = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not countable or len(values) != len(positions):
        got = f"{len(values)}" if countable else f"a {type(values).__name__}"
        raise ContractError(
            f"reward {name}: expected a list of {len(positions)} numbers, one a rollout, got {got}; "
            "let score() return one number for each rollout it is given (NaN: cannot be scored)"
        )
    spread = [math.nan] * length
    for position, value in zip(positions, values, strict=True):
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise ContractError(
                f"reward {name}: expected numbers, got {_short(value)}; return float('nan') for what cannot be scored"
            ) from None
        if math.isinf(number):
            raise ContractError(f"reward {name}: got {number}; rewards must be finite (NaN: cannot be scored)")
        spread[position] = number
    return spread


def _short(value: object) -> str:
    """Give at most 60 characters of a value's repr, on one line."""
    return " ".join(f"{value!r:.60}".split())
