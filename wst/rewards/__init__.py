"""Rewards: what the teacher is trained to maximise. Importing this package loads neither torch nor transformers."""

from typing import TYPE_CHECKING

from wst._moved import lazy_attributes
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

# The only reward whose module may need torch.
__getattr__ = lazy_attributes(__name__, {"RewardModel": "wst.rewards.model"})
