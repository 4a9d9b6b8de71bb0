"""Rewards made of other rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError
from wst.rewards import base
from wst.rewards.base import Reward, RewardLike, Scores, as_reward
from wst.settings import check_arguments
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

    from wst.students.base import Student


class Composite(Reward):
    """Forwards every hook to the rewards it is made of. Subclass it and implement ``score_parts``.

    Args:
        parts: The rewards by name.
    """

    def __init__(self, parts: dict[str, RewardLike]) -> None:
        self.parts = {name: as_reward(part) for name, part in parts.items()}

    @property
    def needs_unaided(self) -> bool:  # type: ignore[override]
        """Whether any part needs it."""
        return any(part.needs_unaided for part in self.parts.values())

    @property
    def reads_instruction(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.reads_instruction for part in self.parts.values())

    @property
    def calibration_size(self) -> int:  # type: ignore[override]
        """The largest calibration size of the parts."""
        return max(part.calibration_size for part in self.parts.values())

    def check(self) -> None:
        """Check every part."""
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

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Calibrate every part."""
        for part in self.parts.values():
            part.calibrate(unaided)

    def students(self) -> dict[str, Student]:
        """Return the students of all parts, each prefixed with its part's name."""
        return {f"{name}/{inner}": s for name, part in self.parts.items() for inner, s in part.students().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part that has one."""
        return {name: state for name, part in self.parts.items() if (state := part.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of every part; one that has none in ``state_dict`` gets an empty one."""
        for name, part in self.parts.items():
            if name in state_dict or part.state_dict():
                part.load_state_dict(state_dict.get(name, {}))

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 for an instruction that any part says leaks; NaN if no part can tell."""
        by_part = [part.leaks(rollouts) for part in self.parts.values()]
        known = [[leak for leak in column if not math.isnan(leak)] for column in zip(*by_part, strict=True)]
        return [max(column, default=math.nan) for column in known]

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return the totals of `score_parts`."""
        return self.score_parts(rollouts).total


class WeightedSum(Composite):
    """The weighted sum of several rewards, each also logged under its own name.

    If any part cannot score a rollout (NaN), neither can the sum. A part of weight 0 is computed and logged but never
    affects the sum, not even by NaN.

    Args:
        parts: Rewards, or functions, by name. Components of a part are logged as "name/component".
        weights: The weight of each part by name; 1.0 for parts not listed.

    Raises:
        ConfigError: If there are no parts, a part's name is empty or contains "/", or a weight is not finite or
            names no part.
    """

    def __init__(self, parts: dict[str, RewardLike], weights: dict[str, float] | None = None) -> None:
        check_arguments(WeightedSum, locals())
        if not parts:
            raise ConfigError("WeightedSum: parts is empty; name at least one reward")
        for name in parts:
            if not name or "/" in name:  # it would be ambiguous with the name of a nested part
                raise ConfigError(f"WeightedSum: the part name {name!r} is empty or contains '/'; rename the part")
        for name, weight in (weights or {}).items():
            if name not in parts:
                known = ", ".join(map(repr, parts))
                raise ConfigError(f"WeightedSum: weights names {name!r}, which is not a part; the parts are {known}")
            if not math.isfinite(weight):
                raise ConfigError(f"WeightedSum: the weight of {name!r} must be finite, got {weight}")
        super().__init__(parts)
        self.weights = dict.fromkeys(parts, 1.0) | (weights or {})

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Return the weighted sums and every part's own, unweighted reward.

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
