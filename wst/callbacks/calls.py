"""What a student's calls cost, and a checkpoint when they must end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar

from wst.data.loader import QueryLoader
from wst.errors import CacheError, StudentStopped
from wst.files import log_folder


class CallAccounts(Callback):
    """Keeps the ledger of a student that is paid by the call, logs each step's figures, and shows calls under way.

    ================================  =================================================================
    ``student/calls``                 requests sent, retries included
    ``student/retries``               requests that were not a call's first
    ``student/cache_hits``            answers that were there already
    ``student/prompt_tokens``         tokens read
    ``student/completion_tokens``     tokens written
    ``student/cost``                  where prices are given
    ``student/seconds_p50``, ``_p95`` percentiles of the seconds an answered request took
    ``student/refused``, ``empty``    answers that are none
    ``student/cut``                   answers cut off by the token limit
    ================================  =================================================================

    Those of a validation are logged as ``val/student/…``; ``student/failed`` is logged for every student by
    `RewardLogging`. The calls of a student that the reward asks, such as a judge, are logged under its own name
    (``judge/calls``, ``judge/failed``, …), and its budget is its own.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the ledger in the log folder, and follow the student's progress."""
        for name, student in paid(pl_module).items():
            accounts = student.accounts
            if name != "student" and not accounts.student.startswith(f"{name} "):
                accounts.student = f"{name} {accounts.student}"  # lest it share a budget with a student of its model
            accounts.open(log_folder(trainer), str(getattr(stage, "value", stage)))
            student.on_progress = lambda done, total: show_progress(trainer, done, total)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Log the step's figures."""
        self._log(pl_module, "", len(batch))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the validation's figures; nothing is logged of a sanity check, whose calls count to the first step."""
        if not trainer.sanity_checking:
            self._log(pl_module, "val/", 1)

    def _log(self, pl_module: LightningModule, prefix: str, rows: int) -> None:
        for name, student in paid(pl_module).items():
            figures = student.accounts.take()
            if name == "student":
                figures.pop("failed", None)
            shown = {f"{prefix}{name}/{figure}": float(value) for figure, value in figures.items()}
            cast(Any, self).log_dict(shown, batch_size=rows)  # the trainer gives every callback `log_dict`


def paid(pl_module: LightningModule) -> dict[str, Any]:
    """Give the students that keep accounts: the module's, and those that its reward asks."""
    module = cast(Any, pl_module)
    students = {"student": module.student, **module.reward.students()}
    return {name: student for name, student in students.items() if student.accounts is not None}


def show_progress(trainer: Trainer, done: int, total: int) -> None:
    """Show in the progress bar how many of the answers asked for are there."""
    bar = trainer.progress_bar_callback
    name = "train" if trainer.training else "val" if trainer.validating else "test" if trainer.testing else None
    if name is None:  # sanity checks and predictions
        return
    text = f"answers {done}/{total}"
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        task = getattr(bar, f"{name}_progress_bar")
        if task is not None:
            bar.progress.update(task.id, description=f"{task.description.split(' · ')[0]} · {text}")
            bar.refresh()
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        getattr(bar, f"{name}_progress_bar").set_description_str(text)


class CheckpointOnStop(Callback):
    """Saves ``last.ckpt`` when a student's calls must end (key refused, budget spent, cache unusable).

    The step that could not be finished is not in it: a resumed run begins with that step.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, unless the last step is saved already; after any exception, close the student.

        Lightning calls no teardown then, and the student may have answers on their way that are paid for.
        """
        if isinstance(exception, StudentStopped | CacheError) and trainer.state.fn == "fit":
            self._save(trainer)
        cast(Any, pl_module).student.close()
        cast(Any, pl_module).reward.close()

    def _save(self, trainer: Trainer) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folder = next((Path(c.dirpath) for c in checkpoints if c.dirpath), log_folder(trainer) / "checkpoints")
        target = folder / "last.ckpt"
        saved = any(c.save_last and c._last_global_step_saved == trainer.global_step for c in checkpoints)
        if saved and target.is_file():
            return
        loader = trainer.train_dataloader
        if trainer.training and isinstance(loader, QueryLoader):
            loader.put_back()
        trainer.save_checkpoint(target)
