"""A reward in standard deviations above the unaided student's mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, DataError
from wst.rewards.base import RewardLike, Scores, score
from wst.rewards.composite import Composite
from wst.settings import check_arguments
from wst.types import Rollout

if TYPE_CHECKING:
    from wst.students.base import Student


class Standardized(Composite):
    """The z-score (r - m) / s, where m and s are the mean and standard deviation of the unaided student's reward.

    0 is the unaided student's average, and 1 is one standard deviation above it, whatever the reward's scale: settings
    such as ``kl_coef`` then mean the same for every reward model. Both are measured once, before the first step, and
    stored in the checkpoint; `wst.compare` measures each student on its first test queries. The reward itself is logged
    as the part ``raw``.

    Args:
        reward: The reward, or function, to standardise.
        queries: Number of training queries to measure on.

    Raises:
        ConfigError: If ``queries`` is below 2.
    """

    def __init__(self, reward: RewardLike, queries: int = 64) -> None:
        check_arguments(Standardized, locals())
        if queries < 2:
            raise ConfigError(f"Standardized: queries must be at least 2, got {queries}")
        super().__init__({"reward": reward})
        self.reward = self.parts["reward"]
        self.queries = queries
        self.mean: float | None = None
        self.spread: float | None = None

    @property
    def calibration_size(self) -> int:  # type: ignore[override]
        """``queries`` until it is calibrated, or more if the inner reward needs more."""
        return max(self.queries if self.mean is None else 0, super().calibration_size)

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Measure the mean and standard deviation.

        Raises:
            DataError: If fewer than two answers can be scored, or all get the same reward.
        """
        super().calibrate(unaided)
        if self.mean is not None:
            return
        rewards = [reward for reward in score(self.reward, unaided).total if not math.isnan(reward)]
        if len(rewards) < 2 or stdev(rewards) == 0:
            what = f"only {len(rewards)} could be scored" if len(rewards) < 2 else "all got the same reward"
            raise DataError(
                f"Standardized: of {len(unaided)} unaided answers {what}, so the standard deviation is zero or "
                "unknown; raise queries, or use the reward without Standardized"
            )
        self.mean, self.spread = fmean(rewards), stdev(rewards)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and standard deviation, and the inner reward's state."""
        measured = {} if self.mean is None else {"mean": self.mean, "spread": self.spread}
        return measured | super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the mean and standard deviation, and the inner reward's state.

        Raises:
            ValueError: If they are not what a run measured.
        """
        mean, spread = state_dict.get("mean"), state_dict.get("spread", math.nan)
        if mean is not None and not (math.isfinite(mean) and 0 < spread < math.inf):
            raise ValueError(f"mean {mean}, spread {spread}")
        self.mean, self.spread = mean, None if mean is None else spread
        super().load_state_dict(state_dict)

    def students(self) -> dict[str, Student]:
        """Return the inner reward's students under their own names."""
        return self.reward.students()

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Return the standardised rewards, with the inner reward and its parts.

        Raises:
            ConfigError: If `calibrate` was not called.
        """
        if self.mean is None or self.spread is None:
            raise ConfigError("Standardized: not calibrated; call calibrate() with unaided rollouts first")
        scores = score(self.reward, rollouts)
        total = [(reward - self.mean) / self.spread for reward in scores.total]
        return Scores(total, {"raw": scores.total, **scores.parts})
