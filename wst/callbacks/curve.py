"""A curve that shows each step and each validation once, wherever a run was killed and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.evaluation_loop import RestartStage
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

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any = None,  # noqa: ANN401 - as Lightning has it
        batch_idx: int = 0,
    ) -> None:
        """Know that the figures of the step before are logged."""
        self._open = False

    on_validation_start = on_train_epoch_end = on_train_batch_start

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

    on_fit_end = on_train_start  # where there was no step left to be made, and so no start


class DueValidation(Callback):
    """Makes up for a validation that a killed run owed or did not finish.

    Lightning would skip it where the checkpoint is that of the step before it, and finish half of it where it is from
    its midst: in either case figures would be missing, and with them maybe the best teacher.
    """

    def __init__(self) -> None:
        self._due = False

    def state_dict(self) -> dict[str, Any]:
        """Give whether one is due."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._due = state_dict["due"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Know that none is due any more."""
        self._due = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ANN401
        """Know whether one follows this step."""
        loop = trainer.fit_loop
        self._due = loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know that it is done."""
        if not trainer.sanity_checking:
            self._due = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make it, if it is due."""
        if not self._due:
            return
        loop, before = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector._first_loop_iter
        loop._restart_stage = RestartStage.NONE
        loop.restarting = False
        loop.batch_progress.reset()
        trainer.validating = True
        loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = before

    on_fit_end = on_train_start  # where there was no step left to be made, and so no start


def _loggers(trainer: Trainer) -> list[TensorBoardLogger]:
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _events(writer: Any) -> str:  # noqa: ANN401 - torch's SummaryWriter
    return str(writer._get_file_writer().event_writer._file_name)


def _writers(trainer: Trainer) -> list[Any]:
    return [logger.experiment for logger in _loggers(trainer)]
