"""Rewards: what the teacher is trained to maximise. Importing this package loads neither torch nor transformers."""

from typing import TYPE_CHECKING, Any

from wst.rewards.base import FunctionReward, Reward, Scores
from wst.rewards.composite import WeightedSum
from wst.rewards.judge import Judge
from wst.rewards.math.reward import MathAnswer
from wst.rewards.standard import Standardized
from wst.rewards.text import ExactMatch, LabelMatch, LastNumber, Length
from wst.rewards.trl import TRLReward

if TYPE_CHECKING:
    from wst.rewards.model import RewardModel

__all__ = [
    "ExactMatch",
    "FunctionReward",
    "Judge",
    "LabelMatch",
    "LastNumber",
    "Length",
    "MathAnswer",
    "Reward",
    "RewardModel",
    "Scores",
    "Standardized",
    "TRLReward",
    "WeightedSum",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a class
    if name == "RewardModel":  # the only reward whose module may need torch
        from wst.rewards.model import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
