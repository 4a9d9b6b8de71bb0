"""Compare instructors on the same queries: which ones help the student, and which ones harm it?"""

from wst.evaluation.comparison import compare, rebuild
from wst.evaluation.instructors import USUAL, Arm
from wst.evaluation.report import Comparison
from wst.evaluation.rows import NONE

__all__ = ["NONE", "USUAL", "Arm", "Comparison", "compare", "rebuild"]
