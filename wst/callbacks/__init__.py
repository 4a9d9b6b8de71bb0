"""Callbacks: what a run shows, and the files it leaves."""

from collections.abc import Sequence

from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger

from wst.callbacks.calls import CallAccounts
from wst.callbacks.curve import DueValidation, StepAxis, UnbrokenCurve
from wst.callbacks.early_stop import EarlyStop
from wst.callbacks.export import PreferenceExport, TeacherExport
from wst.callbacks.feedback import QueryFeedback
from wst.callbacks.report import PredictionWriter, PreferenceReport, TestReport
from wst.callbacks.rewards import RewardLogging
from wst.callbacks.samples import InstructionSamples
from wst.callbacks.signals import DeadSignals
from wst.callbacks.stop import CheckpointOnStop, FolderGuard, StopInOrder
from wst.callbacks.summary import shorten_summary
from wst.training.folders import number_run
from wst.training.lightning_internals import end_with_parent, keep_rows, name_epochs

_ORDERLY: tuple[type[Callback], ...] = (
    FolderGuard,
    StepAxis,
    UnbrokenCurve,
    DueValidation,
    StopInOrder,
    CheckpointOnStop,
)
#: Callbacks of every run of `wst.WeakToStrong`.
USUAL: tuple[type[Callback], ...] = (
    *(QueryFeedback, RewardLogging, CallAccounts, DeadSignals),
    *_ORDERLY,
    *(TestReport, PredictionWriter),
)
#: Callbacks of every run of `wst.PreferenceModel`.
USUAL_OF_PREFERENCE: tuple[type[Callback], ...] = (*_ORDERLY, PreferenceReport)


def missing(trainer: Trainer, kinds: Sequence[type[Callback]]) -> list[Callback]:
    """Create a callback of each kind that the trainer does not have.

    Modules call it in ``configure_callbacks``, the first hook of a run: the loggers are not open yet, and the ranks not
    connected, so that both can be made to survive a resume and a kill.
    """
    end_with_parent(trainer)
    number_run(trainer)
    name_epochs(trainer)
    shorten_summary(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            keep_rows(logger)
    have = trainer.callbacks  # type: ignore[attr-defined]
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in have)]


__all__ = [
    "CallAccounts",
    "CheckpointOnStop",
    "DeadSignals",
    "DueValidation",
    "EarlyStop",
    "FolderGuard",
    "InstructionSamples",
    "PredictionWriter",
    "PreferenceExport",
    "PreferenceReport",
    "QueryFeedback",
    "RewardLogging",
    "StepAxis",
    "StopInOrder",
    "TeacherExport",
    "TestReport",
    "UnbrokenCurve",
]
