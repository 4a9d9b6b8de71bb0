"""Weak-to-Strong Transfer: train a small teacher to write the instructions a frozen student needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wst import _moved

if TYPE_CHECKING:
    from wst.callbacks import CallAccounts, InstructionSamples, PreferenceExport, RewardLogging, TeacherExport
    from wst.data import GSM8K, HHRLHF, MATH, Benchmark, FieldMap, QueryDataModule
    from wst.evaluation import Comparison, compare
    from wst.module import WeakToStrong
    from wst.preference import PreferenceModel
    from wst.prompts import StudentPrompt, TeacherPrompt
    from wst.rewards import (
        ExactMatch,
        Judge,
        LabelMatch,
        LastNumber,
        Length,
        MathAnswer,
        Reward,
        RewardModel,
        Scores,
        Standardized,
        WeightedSum,
    )
    from wst.rewards.function import FunctionReward
    from wst.students import AnswerCache, Budget, EndpointStudent, LocalStudent, Prices, Student, VLLMStudent
    from wst.students.function import FunctionStudent
    from wst.teacher import LoRA, Teacher
    from wst.training.baselines import Baseline, GroupMean, LeaveOneOut, MovingAverage, Unaided
    from wst.training.schedules import WarmupLinear
    from wst.types import Instruction, Message, Prompt, Query, Response, Rollout

__version__ = "0.1.0"

_moved.install()

# Where each public name lives. They are imported when first asked for, so that `import wst` stays light.
_HOMES = {
    "wst.training.baselines": ("Baseline", "GroupMean", "LeaveOneOut", "MovingAverage", "Unaided"),
    "wst.callbacks": ("CallAccounts", "InstructionSamples", "PreferenceExport", "RewardLogging", "TeacherExport"),
    "wst.evaluation": ("Comparison", "compare"),
    "wst.data": ("GSM8K", "HHRLHF", "MATH", "Benchmark", "FieldMap", "QueryDataModule"),
    "wst.module": ("WeakToStrong",),
    "wst.preference": ("PreferenceModel",),
    "wst.prompts": ("StudentPrompt", "TeacherPrompt"),
    "wst.rewards": (
        "ExactMatch",
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
    ),
    "wst.rewards.function": ("FunctionReward",),
    "wst.students.function": ("FunctionStudent",),
    "wst.types": ("Instruction", "Message", "Prompt", "Query", "Response", "Rollout"),
    "wst.training.schedules": ("WarmupLinear",),
    "wst.students": ("AnswerCache", "Budget", "EndpointStudent", "LocalStudent", "Prices", "Student", "VLLMStudent"),
    "wst.teacher": ("LoRA", "Teacher"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "GSM8K",
    "HHRLHF",
    "MATH",
    "AnswerCache",
    "Baseline",
    "Benchmark",
    "Budget",
    "CallAccounts",
    "Comparison",
    "EndpointStudent",
    "ExactMatch",
    "FieldMap",
    "FunctionReward",
    "FunctionStudent",
    "GroupMean",
    "Instruction",
    "InstructionSamples",
    "Judge",
    "LabelMatch",
    "LastNumber",
    "LeaveOneOut",
    "Length",
    "LoRA",
    "LocalStudent",
    "MathAnswer",
    "Message",
    "MovingAverage",
    "PreferenceExport",
    "PreferenceModel",
    "Prices",
    "Prompt",
    "Query",
    "QueryDataModule",
    "Response",
    "Reward",
    "RewardLogging",
    "RewardModel",
    "Rollout",
    "Scores",
    "Standardized",
    "Student",
    "StudentPrompt",
    "Teacher",
    "TeacherExport",
    "TeacherPrompt",
    "Unaided",
    "VLLMStudent",
    "WarmupLinear",
    "WeakToStrong",
    "WeightedSum",
    "__version__",
    "compare",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
