"""Comparing instructors on the same queries: who helps the student, and whom does it harm?"""

from wst.comparison.arms import NONE, USUAL, Arm
from wst.comparison.run import Comparison, compare, rebuild

__all__ = ["NONE", "USUAL", "Arm", "Comparison", "compare", "rebuild"]
