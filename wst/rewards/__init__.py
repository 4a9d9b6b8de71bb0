"""Rewards: what the teacher is trained to raise. None of them needs torch to be imported."""

from wst.rewards.base import Reward, Scores
from wst.rewards.composite import WeightedSum
from wst.rewards.text import ExactMatch, LabelMatch, LastNumber, Length

__all__ = ["ExactMatch", "LabelMatch", "LastNumber", "Length", "Reward", "Scores", "WeightedSum"]
