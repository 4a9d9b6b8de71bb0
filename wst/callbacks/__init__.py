"""Callbacks: what a person sees of a run, and what is left of it."""

from wst.callbacks.calls import CallAccounts, CheckpointOnStop
from wst.callbacks.export import PreferenceExport, TeacherExport
from wst.callbacks.report import PredictionWriter, PreferenceReport, TestReport
from wst.callbacks.rewards import RewardLogging
from wst.callbacks.samples import InstructionSamples

__all__ = [
    "CallAccounts",
    "CheckpointOnStop",
    "InstructionSamples",
    "PredictionWriter",
    "PreferenceExport",
    "PreferenceReport",
    "RewardLogging",
    "TeacherExport",
    "TestReport",
]
