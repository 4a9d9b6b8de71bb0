"""A plain function as reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wst.errors import ConfigError
from wst.rewards.base import Reward
from wst.types import Rollout


class FunctionReward(Reward):
    """A reward that is a function; wherever a reward is expected, the function itself will do.

    Args:
        function: Takes rollouts and returns one number for each; NaN for what cannot be scored.

    Raises:
        ConfigError: If it is not a function.
    """

    def __init__(self, function: Callable[[Sequence[Rollout]], list[float]]) -> None:
        if not callable(function):
            raise ConfigError(f"reward: expected a wst.Reward or a function of rollouts, got {function!r:.60}")
        self.function = function

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Call the function."""
        return self.function(rollouts)
