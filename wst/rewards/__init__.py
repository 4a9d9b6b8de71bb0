"""Rewards: what the teacher is trained to raise. None of them needs torch to be imported."""

from wst.rewards.base import FunctionReward, Reward, Scores
from wst.rewards.composite import WeightedSum
from wst.rewards.judge import Judge
from wst.rewards.math.reward import MathAnswer
from wst.rewards.model import RewardModel
from wst.rewards.standard import Standardized
from wst.rewards.text import ExactMatch, LabelMatch, LastNumber, Length

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
    "WeightedSum",
]
