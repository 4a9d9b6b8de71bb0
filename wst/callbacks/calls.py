"""The cost of a student's calls."""

from __future__ import annotations

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from wst.distributed import collective_errors, gather
from wst.students.accounts import open_ledgers
from wst.terminal import never_fatal
from wst.training.folders import log_folder


class CallAccounts(Callback):
    """Keeps the ledger of a student that is paid by the call, logs each step's figures, and shows pending calls.

    ========================  =================================================================
    ``calls``                 requests sent, retries included
    ``retries``               requests after a call's first one
    ``cache_hits``            answers taken from the cache
    ``prompt_tokens``         tokens read
    ``completion_tokens``     tokens written
    ``cost``                  if prices are given
    ``seconds_p50``, ``_p95`` percentiles of the seconds of an answered request
    ``refused``, ``empty``    refused and empty answers
    ``cut``                   answers cut off by the token limit
    ========================  =================================================================

    They are logged as ``vitals/student/…``, those of a validation as ``vitals/val/student/…``; `RewardLogging` logs
    ``vitals/student/failed`` for every student. A student that the reward asks, such as a judge, has a budget of its
    own and is logged under its own name (``vitals/judge/calls``, …). With several ranks, sums are logged, and the
    percentiles of the slowest.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the ledger in the log folder, and show the student's progress."""
        if not (students := paid(pl_module)):
            return
        folder = gather(log_folder(trainer))[0]
        with collective_errors():
            open_ledgers(students, folder, str(getattr(stage, "value", stage)))
        for student in students.values():
            student.on_progress = lambda done, total: show_progress(trainer, done, total)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Log the step's figures."""
        self._log(pl_module, "vitals/")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation's figures; calls of a sanity check count to the first step."""
        if not trainer.sanity_checking:
            self._log(pl_module, "vitals/val/")

    def _log(self, pl_module: LightningModule, prefix: str) -> None:
        for name, student in paid(pl_module).items():
            figures = take(student)
            if name == "student":
                figures.pop("failed", None)
            shown = {f"{prefix}{name}/{figure}": float(value) for figure, value in figures.items()}
            cast(Any, self).log_dict(shown, batch_size=1)  # the trainer gives every callback `log_dict`


def paid(pl_module: LightningModule) -> dict[str, Any]:
    """Return the students that keep accounts: the module's, and those that its reward asks."""
    students = cast(Any, pl_module).environment.students()
    return {name: student for name, student in students.items() if student.accounts is not None}


def take(student: Any) -> dict[str, float]:  # noqa: ANN401 - a student that keeps accounts
    """Return the figures of all ranks since the last call; all ranks must call it."""
    figures: dict[str, float] = {}
    for own in gather(student.accounts.take()):
        for name, value in own.items():
            if name.startswith("seconds"):
                figures[name] = max(value, figures.get(name, value))
            else:
                figures[name] = figures.get(name, 0) + value
    return figures


def show_progress(trainer: Trainer, done: int, total: int) -> None:
    """Show in the progress bar how many answers have arrived, if the bar exists by now."""
    bar = trainer.progress_bar_callback
    name = "train" if trainer.training else "val" if trainer.validating else "test" if trainer.testing else None
    if name is None:  # sanity checks and predictions
        return
    text = f"answers {done}/{total}"
    with never_fatal():
        if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
            # On a resume within an epoch, Lightning creates the task only after the first answers.
            task = getattr(bar, f"{name}_progress_bar") if getattr(bar, f"{name}_progress_bar_id") is not None else None
            if task is not None:
                bar.progress.update(task.id, description=f"{task.description.split(' · ')[0]} · {text}")
                bar.refresh()
        elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            getattr(bar, f"{name}_progress_bar").set_description_str(text)
