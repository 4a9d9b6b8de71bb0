"""A curve that shows each step and each validation once, wherever a run was killed and resumed."""

from __future__ import annotations

from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from wst.errors import ModelError
from wst.training import lightning_internals as internals

_KEY = "wst_curve"


class StepAxis(Callback):
    """Logs the number of the step, which Lightning gives to all loggers as their x-axis, and the learning rate.

    The number is that of the terminal, of ``instructions.jsonl`` and of checkpoints: the updates made. Lightning's own
    begins at 0, and moves on at a step that makes no update. A validation has the number of the step before it, a test
    that of the step it tests. The learning rate, ``vitals/lr``, is the one that the step used.
    """

    def __init__(self) -> None:
        self._rate = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Note the learning rate: at the end of the step it is the next one's."""
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Log both."""
        figures = {"step": float(step_number(pl_module, outputs)), "vitals/lr": self._rate}
        cast(Any, self).log_dict(figures, batch_size=1, on_step=True, on_epoch=False)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of the step before the validation, or of the step that is tested."""
        cast(Any, self).log("step", float(step_number(pl_module)), batch_size=1)

    on_test_epoch_end = on_validation_epoch_end


def step_number(module: LightningModule, outputs: Any = None) -> int:  # noqa: ANN401 - what the training step returned
    """Return the number of a step, which all files, loggers and messages have: the updates that made the weights.

    A validation or test has that of the weights it looks at. The trainer's ``global_step`` differs from it where a new
    trainer goes on with a module that is trained already: it begins at 0 again.

    Args:
        module: Counts its updates.
        outputs: Of a training step that has just ended. One without an update has the number of the step that is tried
            again.
    """
    record = outputs.get("record") if isinstance(outputs, dict) else None
    return int(cast(Any, module).trained_steps) + bool(getattr(record, "skipped", False))


class UnbrokenCurve(Callback):
    """Makes the curve of a resumed run, in TensorBoard or a CSV file, continue at the checkpoint.

    What a killed run logged after the checkpoint is discarded, since those steps are made again. The checkpoint holds
    the figures of its own step, which Lightning logs only after it is saved.
    """

    def __init__(self) -> None:
        self._step = -1  #: the last step, as loggers count them
        self._open = False  #: whether its figures have yet to be logged
        self._resumed: dict[str, Any] = {}

    def on_validation_start(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Note that the figures of the previous step are logged."""
        self._open = False

    on_train_epoch_end = on_validation_start

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Forget the figures of the previous step, which are logged."""
        self._open = False
        internals.forget_figures(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Count the step, and start a new event file if the log folder was deleted."""
        for logger in _loggers(trainer):
            if isinstance(logger, TensorBoardLogger) and internals.reopen_if_deleted(logger):
                rank_zero_warn(f"log folder {logger.log_dir} is gone, with what was in it; it is made anew")
        self._step, self._open = step_number(pl_module, outputs), True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flush metrics before saving, and store the current step's metrics inside the checkpoint."""
        for logger in _loggers(trainer):
            logger.save() if isinstance(logger, CSVLogger) else logger.experiment.flush()
        figures = internals.figures_to_be_logged(trainer) if self._open else {}
        checkpoint[_KEY] = {"step": self._step if self._open else self._step + 1, "figures": figures}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read where the curve was.

        Raises:
            ModelError: If that cannot be read.
        """
        resumed = checkpoint.get(_KEY, {})
        shape = {"step": int, "figures": dict}
        if resumed and not (
            isinstance(resumed, dict) and all(type(resumed.get(name)) is kind for name, kind in shape.items())
        ):
            raise ModelError("checkpoint: its curve cannot be read; give one that `wst fit` wrote")
        self._resumed = resumed

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard what was logged after the checkpoint, and log the figures of its own step."""
        resumed, self._resumed = self._resumed, {}
        if not resumed:
            return
        self._step = resumed["step"] - 1
        for logger in _loggers(trainer):
            internals.discard_from(logger, resumed["step"])
        if resumed["figures"]:
            internals.log_figures(trainer, resumed["figures"], resumed["step"])
            self._step = resumed["step"]

    on_fit_end = on_train_start  # a resumed run with no step left has no start


class DueValidation(Callback):
    """Runs the validation that a killed run had due or had not finished.

    Lightning would skip it if the checkpoint is that of the step before it, and would finish half of it if the
    checkpoint was saved inside it: either way figures would be missing, and with them perhaps the best teacher.
    """

    def __init__(self) -> None:
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether a validation is due."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether a validation is due."""
        self._due = state_dict["due"]

    def on_train_batch_start(self, *_: Any) -> None:  # noqa: ANN401
        """Note that none is due."""
        self._due = False

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Note whether one follows this step."""
        self._due = internals.validation_follows(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that it is done."""
        if not trainer.sanity_checking:
            self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run it, if it is due."""
        if self._due:
            internals.run_validation(trainer)

    on_fit_end = on_train_start  # a resumed run with no step left has no start


def _loggers(trainer: Trainer) -> list[TensorBoardLogger | CSVLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | CSVLogger)]
