"""Rewards made of other rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError
from wst.rewards import base
from wst.rewards.base import Reward, RewardLike, Scores, as_reward
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

    from wst.students.base import Student


class Composite(Reward):
    """Hands everything but the score to the rewards that it is made of.

    Args:
        parts: The rewards by name.
    """

    def __init__(self, parts: dict[str, RewardLike]) -> None:
        self.parts = {name: as_reward(part) for name, part in parts.items()}

    @property
    def needs_unaided(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.needs_unaided for part in self.parts.values())

    def check(self) -> None:
        """Let every part check its models."""
        for part in self.parts.values():
            part.check()

    def setup(self, device: torch.device) -> None:
        """Set up every part."""
        for part in self.parts.values():
            part.setup(device)

    def close(self) -> None:
        """Close every part."""
        for part in self.parts.values():
            part.close()

    def students(self) -> dict[str, Student]:
        """Give the students of all parts, each under its part's name."""
        return {f"{name}/{inner}": s for name, part in self.parts.items() for inner, s in part.students().items()}

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Calibrate every part."""
        for part in self.parts.values():
            part.calibrate(unaided)

    @property
    def calibration_size(self) -> int:  # type: ignore[override]
        """The largest that a part asks for."""
        return max(part.calibration_size for part in self.parts.values())

    def state_dict(self) -> dict[str, Any]:
        """Give the state of every part that has one."""
        return {name: state for name, part in self.parts.items() if (state := part.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the parts' states up."""
        for name, state in state_dict.items():
            if name in self.parts:
                self.parts[name].load_state_dict(state)

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Tell which instructions hold the gold answer in the eyes of any part."""
        by_part = [part.leaks(rollouts) for part in self.parts.values()]
        known = [[leak for leak in column if not math.isnan(leak)] for column in zip(*by_part, strict=True)]
        return [max(column, default=math.nan) for column in known]


class WeightedSum(Composite):
    """The weighted sum of several rewards, each of which is logged under its own name.

    A rollout that a part cannot score (NaN) is not scored at all. A part of weight 0 is measured and logged,
    but has no say in the sum, not even by NaN.

    Args:
        parts: The rewards by name. What a part is itself made of is logged as "name/inner name".
        weights: The weight of each part by name; 1.0 for those not named.

    Raises:
        ConfigError: If there are no parts, a part's name is empty or holds "/", or a weight is not finite or
            names no part.
    """

    def __init__(self, parts: dict[str, RewardLike], weights: dict[str, float] | None = None) -> None:
        if not parts:
            raise ConfigError("WeightedSum: parts is empty; name at least one reward")
        for name in parts:
            if not name or "/" in name:  # a nested part's name could not be told from it
                raise ConfigError(f"WeightedSum: the part name {name!r} is empty or holds '/'; rename the part")
        for name, weight in (weights or {}).items():
            if name not in parts:
                known = ", ".join(map(repr, parts))
                raise ConfigError(f"WeightedSum: weights names {name!r}, which is no part; the parts are {known}")
            if not math.isfinite(weight):
                raise ConfigError(f"WeightedSum: the weight of {name!r} must be finite, got {weight}")
        super().__init__(parts)
        self.weights = dict.fromkeys(parts, 1.0) | (weights or {})

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Give each rollout the weighted sum of its parts."""
        return self.score_parts(rollouts).total

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Like `score`, with every part's own reward, unweighted.

        Raises:
            ContractError: If a part returns what `wst.rewards.base.score` does not allow.
        """
        total = [0.0] * len(rollouts)
        logged: dict[str, list[float]] = {}
        for name, part in self.parts.items():
            scores = base.score(part, rollouts, name)
            logged[name] = scores.total
            logged |= {f"{name}/{inner}": values for inner, values in scores.parts.items()}
            weight = self.weights[name]
            if weight:
                total = [old + weight * new for old, new in zip(total, scores.total, strict=True)]
        return Scores(total, logged)
