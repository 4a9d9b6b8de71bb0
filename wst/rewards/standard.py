"""A reward in units of the unaided student's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, DataError
from wst.rewards.base import RewardLike, Scores, score
from wst.rewards.composite import Composite
from wst.types import Rollout

if TYPE_CHECKING:
    from wst.students.base import Student


class Standardized(Composite):
    """(r - m) / s, with m and s the mean and the spread of what the student gets on its own.

    0 is then what the unaided student gets on average, and 1 is one of its standard deviations more, whatever the
    scale of the reward: settings such as ``kl_coef`` mean the same for every reward model. The two are measured once,
    before the first step, and kept in the checkpoint. The reward itself is logged as the part ``raw``.

    Args:
        reward: What is standardised.
        queries: Training queries to measure on.

    Raises:
        ConfigError: If fewer than two queries are asked for.
    """

    def __init__(self, reward: RewardLike, queries: int = 64) -> None:
        if queries < 2:
            raise ConfigError(f"Standardized: queries must be at least 2, got {queries}")
        super().__init__({"reward": reward})
        self.reward = self.parts["reward"]
        self.queries = queries
        self.mean: float | None = None
        self.spread: float | None = None

    @property
    def calibration_size(self) -> int:  # type: ignore[override]
        """As many queries as were asked for, as long as nothing was measured; more if the reward asks for more."""
        return max(self.queries if self.mean is None else 0, super().calibration_size)

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Measure mean and spread.

        Raises:
            DataError: If fewer than two answers can be scored, or all get the same.
        """
        super().calibrate(unaided)
        if self.mean is not None:
            return
        rewards = [reward for reward in score(self.reward, unaided).total if not math.isnan(reward)]
        if len(rewards) < 2 or stdev(rewards) == 0:
            what = f"{len(rewards)} of them could be scored" if len(rewards) < 2 else "all got the same reward"
            raise DataError(
                f"Standardized: of {len(unaided)} unaided answers {what}, so there is no spread to divide by; raise "
                "queries, or take the reward as it is"
            )
        self.mean, self.spread = fmean(rewards), stdev(rewards)

    def state_dict(self) -> dict[str, Any]:
        """Give what was measured."""
        measured = {} if self.mean is None else {"mean": self.mean, "spread": self.spread}
        return measured | super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was measured."""
        self.mean, self.spread = state_dict.get("mean"), state_dict.get("spread")
        super().load_state_dict(state_dict)

    def students(self) -> dict[str, Student]:
        """Give the students that the reward asks."""
        return self.reward.students()

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Give each rollout its standardised reward."""
        return self.score_parts(rollouts).total

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Like `score`, with the reward as it was, and its parts.

        Raises:
            ConfigError: If nothing was measured.
        """
        if self.mean is None or self.spread is None:
            raise ConfigError("Standardized: nothing was measured yet; call calibrate() with unaided rollouts first")
        scores = score(self.reward, rollouts)
        total = [(reward - self.mean) / self.spread for reward in scores.total]
        return Scores(total, {"raw": scores.total, **scores.parts})
