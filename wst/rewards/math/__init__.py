"""Mathematical answers: extracted, normalized, compared in killable workers, and scored."""

from wst.rewards.math.reward import MathAnswer

__all__ = ["MathAnswer"]
