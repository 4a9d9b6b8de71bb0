"""A curve in TensorBoard that shows each step once, wherever a run was killed and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

_KEY = "wst_curve"


class UnbrokenCurve(Callback):
    """Brings what TensorBoard has of a run to where the checkpoint is that it goes on from.

    What a killed run logged after the checkpoint is taken back, since the steps are made again. The checkpoint holds
    the figures of its own step, which Lightning logs only after it is saved.
    """

    def __init__(self) -> None:
        self._step = -1  #: the last step, as loggers count them
        self._open = False  #: whether its figures have yet to be logged
        self._resumed: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Know that the figures of the step before are logged."""
        self._open = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know that the figures of the step are logged."""
        self._open = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know that the figures of the epoch's last step are logged."""
        self._open = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Count the step, and begin anew where the log folder is gone: what is logged into it would be lost unseen."""
        for logger in _loggers(trainer):
            if logger._experiment is not None and not Path(_events(logger.experiment)).exists():
                logger._experiment.close()
                logger._experiment = None
                rank_zero_warn(f"log folder {logger.log_dir} is gone, with what was in it; it is made anew")
        self._step, self._open = trainer.fit_loop.epoch_loop._batches_that_stepped, True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have all figures up to the checkpoint on disk before it, and those of its step in it."""
        for writer in _writers(trainer):
            writer.flush()
        figures: dict[str, float] = {}
        if self._open and trainer._logger_connector.should_update_logs:
            figures = {name: float(value) for name, value in trainer._logger_connector.metrics["log"].items()}
        checkpoint[_KEY] = {"step": self._step if self._open else self._step + 1, "figures": figures}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up where the curve was."""
        self._resumed = checkpoint.get(_KEY, {})

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take back what was logged after the checkpoint, and log what was not yet."""
        resumed, self._resumed = self._resumed, {}
        if not resumed:
            return
        self._step = resumed["step"] - 1
        for writer in _writers(trainer):
            start = Event(step=resumed["step"], session_log=SessionLog(status=SessionLog.START))
            cast(Any, writer)._get_file_writer().add_event(start)
        if resumed["figures"]:
            trainer._logger_connector.log_metrics(resumed["figures"], step=resumed["step"])
            self._step = resumed["step"]


def _loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _events(writer: Any) -> str:  # noqa: ANN401 - torch's SummaryWriter
    return str(writer._get_file_writer().event_writer._file_name)


def _writers(trainer: Trainer) -> list[Any]:
    return [logger.experiment for logger in _loggers(trainer)]
