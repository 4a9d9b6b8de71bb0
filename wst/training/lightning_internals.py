"""Everything that leans on a private member of Lightning, torch or TensorBoard, one function for each.

Each function says which private member it uses, and why no public one does. tests/training/test_lightning_internals.py
has a test for each, so that a release that moves a member fails there. Tested with lightning 2.6.0 to 2.6.6, torch 2.10
to 2.12 and tensorboard 2.19 to 2.21. The command line (`wst.cli.lightning`) overrides ``LightningCLI._parse_ckpt_path``
and reads ``_subcommand_parsers``, which only a subclass can do.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wst.files import write_whole

# A "last" that finds nothing must not begin anew: Lightning only warns of it, before any hook of ours.
warnings.filterwarnings("error", message=r".*there is no last checkpoint available")

# ------------------------------------------------------------------------ modules


def is_fitting(module: LightningModule) -> bool:
    """Return whether the module's trainer fits; `trainer` raises where there is none, `_trainer` does not."""
    return module._trainer is not None and module._trainer.state.fn == "fit"


def built_by_command_line() -> bool:
    """Return whether LightningCLI is calling the constructor: only `_given_hyperparameters` tells."""
    return _given_hyperparameters.get() is not None


def ignore_in_ddp(module: nn.Module, names: list[str]) -> None:
    """Exclude parameters and buffers from DDP's broadcasts, which torch offers under a private name alone."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


# -------------------------------------------------------------------------- loops


def validation_follows(trainer: Trainer) -> bool:
    """Return whether a validation follows the batch that has just ended (`_should_check_val_fx`)."""
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def run_validation(trainer: Trainer) -> None:
    """Run a whole validation before the first training step.

    `Trainer.validate` would end the fit. `_restart_stage` makes the loop begin at its first batch, and
    `_first_loop_iter` is put back because the validation would otherwise count as the first iteration.
    """
    loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
    first = connector._first_loop_iter
    loop._restart_stage = RestartStage.NONE
    loop.restarting = False
    loop.batch_progress.reset()
    trainer.validating = True
    loop.run()
    trainer.training = True
    connector._first_loop_iter = first


def skip_finished_epoch(trainer: Trainer) -> None:
    """Begin the next epoch if the checkpoint was saved between two epochs.

    Resumed with ``max_steps``, Lightning 2.6 would run the finished epoch again with no batches and count it, so that
    the order of the next epoch would never be used. The setter of ``restarting`` resets the progress, `_restarting`
    does not.
    """
    loop = trainer.fit_loop
    current = cast(_ProcessedTracker, loop.epoch_progress.current)
    if loop.restarting and current.ready == current.processed > 0:
        loop._restarting = False
        loop.epoch_loop.restarting = False


def count_epoch_start(trainer: Trainer) -> None:
    """Count the start of an epoch that Lightning 2.6 did not count (`_ProcessedTracker`).

    Resumed from a checkpoint of an epoch's last step, Lightning goes on to the next epoch without counting its start.
    A later checkpoint within that epoch would then restore no loader state and begin the epoch anew.
    """
    progress = trainer.fit_loop.epoch_progress
    if progress.current.ready == cast(_ProcessedTracker, progress.current).processed:
        progress.increment_ready()
        progress.increment_started()


# ------------------------------------------------------------------------ figures


def figures_to_be_logged(trainer: Trainer) -> dict[str, float]:
    """Return what Lightning will log of the current step; it does so only after checkpoints are saved."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items() if name != "step"}


def forget_figures(trainer: Trainer) -> None:
    """Forget the figures of the last step: Lightning would log them again for a step that has none."""
    for figure in cast(Any, trainer._results).values():
        if figure.meta.on_step:
            figure._forward_cache = None


def log_figures(trainer: Trainer, figures: dict[str, float], step: int) -> None:
    """Log figures to all loggers under a step of the past; the public `log` knows the current step alone."""
    trainer._logger_connector.log_metrics(cast(Any, figures), step=step)


def reopen_if_deleted(logger: TensorBoardLogger) -> bool:
    """Start a new event file if the current one was deleted; torch's writer would go on writing to the old inode."""
    if logger._experiment is None or Path(_file_writer(logger).event_writer._file_name).exists():
        return False
    logger._experiment.close()
    logger._experiment = None
    return True


def discard_from(logger: TensorBoardLogger | CSVLogger, step: int) -> None:
    """Discard what was logged from this step on.

    TensorBoard does so at a `SessionLog`, for which torch's writer has no public method; a CSV file is cut.
    """
    if isinstance(logger, TensorBoardLogger):
        _file_writer(logger).add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))
    elif (path := Path(logger.log_dir) / "metrics.csv").is_file():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        lines = io.StringIO()
        writer = csv.DictWriter(lines, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(row for row in rows if int(row["step"]) < step or _is_of_test(row))
        write_whole(path, lines.getvalue())


def _is_of_test(row: dict[str, str]) -> bool:
    return any(value and name.startswith("test/") for name, value in row.items())


def keep_rows(logger: CSVLogger) -> None:
    """Open a CSV logger on the file of an earlier stage or run; its `_ExperimentWriter` would delete the file."""
    path = Path(logger.log_dir) / "metrics.csv"
    if logger._experiment is not None or not path.is_file():
        return
    aside = path.with_name("metrics.csv.kept")
    path.rename(aside)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")  # no longer true
        writer: Any = logger.experiment
    aside.rename(path)
    with path.open(newline="") as file:
        writer.metrics_keys = next(csv.reader(file), [])


def _file_writer(logger: TensorBoardLogger) -> Any:  # noqa: ANN401 - tensorboard has no types
    return cast(Any, logger.experiment)._get_file_writer()


# -------------------------------------------------------------------- the run


def set_root(trainer: Trainer, folder: Path) -> None:
    """Set the trainer's root folder, which only its constructor offers."""
    cast(Any, trainer)._default_root_dir = str(folder)


def name_epochs(trainer: Trainer) -> None:
    """Let the rich progress bar count epochs without their number where steps end a run: it would say "Epoch 0/-2"."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and trainer.max_epochs == -1:
        width = len(bar.validation_description)
        cast(Any, bar)._get_train_description = lambda epoch: f"{f'Epoch {epoch}':{width}}"


# -------------------------------------------------------------- ends of the run


def saved_last(callback: ModelCheckpoint, step: int) -> bool:
    """Return whether the callback has saved ``last.ckpt`` at this step (`_last_global_step_saved`)."""
    return bool(callback.save_last) and callback._last_global_step_saved == step


def cluster_environment(trainer: Trainer) -> Any:  # noqa: ANN401 - of several classes
    """Return the cluster environment; only strategies of several devices have it in public."""
    return trainer._accelerator_connector.cluster_environment


def kill_children(trainer: Trainer) -> None:
    """Kill the ranks that this process has started, if it has (`_SubprocessScriptLauncher`)."""
    if isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        trainer.strategy.launcher.kill(signal.SIGKILL)


def end_with_parent(trainer: Trainer) -> None:
    """End this rank if rank 0, which has started it, is gone: it would wait for the connection for half an hour.

    Lightning watches the ranks that it starts (`_ChildProcessObserver`), but these do not watch it. Ranks that torchrun
    or SLURM starts are ended by them.
    """
    environment = cluster_environment(trainer)
    if not isinstance(environment, LightningEnvironment) or environment.local_rank() == 0:
        return
    # The command line tells its process id; without it, a parent that is gone by now is not noticed.
    parent = int(os.environ.get("WST_RANK_0") or os.getppid())

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()
