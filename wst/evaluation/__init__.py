"""Comparing instructors on the same queries: who helps the student, and whom does it harm?"""

from wst.evaluation.comparison import Comparison, compare, rebuild
from wst.evaluation.instructors import NONE, USUAL, Arm

__all__ = ["NONE", "USUAL", "Arm", "Comparison", "compare", "rebuild"]
