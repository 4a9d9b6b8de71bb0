"""Each function that leans on a private member of Lightning, torch or TensorBoard does what it says."""

import importlib
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.parallel import DistributedDataParallel
from trainers import quiet_trainer

from wst.training import lightning_internals as internals


class Probe(BoringModel):
    """Calls a function in a hook and keeps what it returns."""

    def __init__(self, hook: str = "", function: Any = None) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.by_command_line = internals.built_by_command_line()
        if hook:
            setattr(self, hook, lambda *_: self.found.append(function(self)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", float(self.global_step))
        return super().training_step(batch, batch_idx)


def fit(module: LightningModule, folder: Path, **settings: Any) -> Trainer:
    trainer = quiet_trainer(folder, **({"max_steps": 4, "log_every_n_steps": 1} | settings))
    trainer.fit(module)
    return trainer


def test_the_tested_versions() -> None:
    assert lightning.__version__.startswith("2.6."), "say in lightning_internals.py which versions are tested"


def test_is_fitting(tmp_path: Path) -> None:
    assert not internals.is_fitting(BoringModel())
    module = Probe("on_train_start", internals.is_fitting)
    trainer = fit(module, tmp_path)
    trainer.validate(module, verbose=False)
    assert module.found == [True]
    module.on_validation_start = lambda: module.found.append(internals.is_fitting(module))  # type: ignore[method-assign]
    trainer.validate(module, verbose=False)
    assert module.found == [True, False]


def test_built_by_command_line() -> None:
    assert not Probe().by_command_line
    assert LightningCLI(Probe, run=False, args=[], save_config_callback=None).model.by_command_line


def test_ignore_in_ddp(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module = torch.nn.ModuleDict({"frozen": torch.nn.Linear(2, 2), "trained": torch.nn.Linear(2, 2)})
        internals.ignore_in_ddp(module, ["frozen.weight", "frozen.bias"])
        wrapped = DistributedDataParallel(module)
        assert wrapped.parameters_to_ignore == {"frozen.weight", "frozen.bias"}
    finally:
        torch.distributed.destroy_process_group()


def test_a_figure_called_step_is_the_step_of_the_others(tmp_path: Path) -> None:
    module = Probe("on_train_batch_end", lambda module: module.log("step", float(module.global_step)))
    trainer = fit(module, tmp_path, logger=CSVLogger(tmp_path, "csv"))
    lines = (Path(trainer.loggers[0].log_dir or "") / "metrics.csv").read_text().splitlines()
    place = lines[0].split(",").index("step")
    assert "epoch" not in lines[0]
    assert [line.split(",")[place] for line in lines[1:]] == [str(step) for step in range(1, len(lines))]


def test_set_root(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    internals.set_root(trainer, tmp_path / "version_0")
    assert trainer.default_root_dir == trainer.log_dir == str(tmp_path / "version_0")


@pytest.mark.parametrize(("limit", "shown"), [({"max_steps": 1}, "Epoch 3"), ({"max_epochs": 9}, "Epoch 3/8")])
def test_name_epochs(tmp_path: Path, limit: dict[str, int], shown: str) -> None:
    bar = RichProgressBar()
    trainer = quiet_trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], **limit)
    bar.setup(trainer, BoringModel(), "fit")
    trainer.fit_loop.max_epochs = trainer.max_epochs or -1
    internals.name_epochs(trainer)
    assert bar._get_train_description(3).strip() == shown


def test_a_last_checkpoint_that_is_not_there_is_no_fresh_start(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        importlib.reload(internals)  # pytest has filters of its own
        with pytest.raises(UserWarning, match="no last checkpoint"):
            quiet_trainer(tmp_path, max_steps=1).fit(BoringModel(), ckpt_path="last")


def test_validation_follows(tmp_path: Path) -> None:
    module = Probe("on_train_batch_end", lambda module: internals.validation_follows(module.trainer))
    fit(module, tmp_path, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=0)
    assert module.found == [False, True, False, True]


def test_run_validation(tmp_path: Path) -> None:
    steps: list[int] = []
    module = Probe("on_train_start", lambda module: internals.run_validation(module.trainer))
    module.on_validation_epoch_end = lambda: steps.append(module.global_step)  # type: ignore[method-assign]
    trainer = fit(module, tmp_path, val_check_interval=2, limit_val_batches=1, num_sanity_val_steps=0)
    assert steps == [0, 2, 4]
    assert trainer.global_step == 4


class Order(Callback):
    """Notes which epoch each batch is of."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.epochs.append(trainer.current_epoch)


class Counting(BoringModel):
    """Repairs the count of epochs, as the data module does."""

    def train_dataloader(self) -> Any:
        internals.skip_finished_epoch(self.trainer)
        return super().train_dataloader()

    def on_train_batch_start(self, *_: Any) -> None:
        internals.count_epoch_start(self.trainer)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        assert epochs.ready == epochs.started == epochs.processed + 1
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("saved", ["between epochs", "at the last step"])
def test_a_run_resumed_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path: Path, saved: str) -> None:
    order = Order()
    saver = ModelCheckpoint(tmp_path, filename="at the last step", every_n_train_steps=2)
    settings: dict[str, Any] = {"limit_train_batches": 2, "limit_val_batches": 0, "enable_checkpointing": True}
    first = fit(Counting(), tmp_path, max_steps=2, callbacks=[saver], **settings)
    first.save_checkpoint(tmp_path / "between epochs.ckpt")
    again = quiet_trainer(tmp_path, max_steps=6, callbacks=[order], **settings)
    again.fit(Counting(), ckpt_path=str(tmp_path / f"{saved}.ckpt"), weights_only=False)
    assert order.epochs == [1, 1, 2, 2]


def test_figures_are_logged_under_a_step_of_the_past(tmp_path: Path) -> None:
    module = Probe("on_train_batch_end", lambda module: internals.figures_to_be_logged(module.trainer))
    logger = TensorBoardLogger(tmp_path, "tb")
    trainer = fit(module, tmp_path, logger=logger, log_every_n_steps=2)
    assert module.found == [{}, {"loss": 1.0}, {}, {"loss": 3.0}]
    internals.log_figures(trainer, {"late": 5.0}, step=2)
    logger.experiment.flush()
    (late,) = EventAccumulator(logger.log_dir).Reload().Scalars("late")
    assert (late.step, late.value) == (2, 5.0)


def test_a_deleted_event_file_is_begun_anew(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "tb")
    assert not internals.reopen_if_deleted(logger)
    logger.experiment.add_scalar("x", 1.0, 1)
    logger.experiment.flush()
    assert not internals.reopen_if_deleted(logger)
    shutil.rmtree(logger.log_dir)
    assert internals.reopen_if_deleted(logger)
    logger.experiment.add_scalar("x", 2.0, 2)
    logger.experiment.flush()
    assert [event.step for event in EventAccumulator(logger.log_dir).Reload().Scalars("x")] == [2]


def test_what_follows_a_step_is_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = TensorBoardLogger(tmp_path, "tb", version=0), TensorBoardLogger(tmp_path, "tb", version=0)
    for step in range(4):
        first.experiment.add_scalar("x", float(step), step)
    first.experiment.close()
    # Files of one second are sorted by a counter of the process, and 10 comes before 9.
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 10)
    internals.discard_from(second, 2)
    second.experiment.add_scalar("x", 20.0, 2)
    second.experiment.flush()
    events = EventAccumulator(second.log_dir).Reload().Scalars("x")
    assert [(event.step, event.value) for event in events] == [(0, 0.0), (1, 1.0), (2, 20.0)]


def test_saved_last(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "c", every_n_train_steps=3, save_last=True, save_top_k=0)
    assert not internals.saved_last(saver, 3)
    fit(BoringModel(), tmp_path, enable_checkpointing=True, callbacks=[saver])
    assert internals.saved_last(saver, 3)
    assert not internals.saved_last(saver, 4)
    saver.save_last = False
    assert not internals.saved_last(saver, 3)


def test_cluster_environment() -> None:
    assert internals.cluster_environment(quiet_trainer(devices=2)).world_size() == 2


def test_kill_children() -> None:
    trainer, sent = quiet_trainer(devices=2, strategy="ddp"), []
    trainer.strategy._configure_launcher()
    assert isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    trainer.strategy.launcher.kill = sent.append  # type: ignore[method-assign]
    internals.kill_children(trainer)
    assert sent == [signal.SIGKILL]
    internals.kill_children(quiet_trainer())


@pytest.mark.parametrize(
    ("rank", "parents", "ended"),
    [(1, [7, 7, 1], True), (1, [1], True), (0, [1], False)],  # it goes, it had gone before, and rank 0 has none
)
def test_a_rank_ends_with_the_process_that_started_it(
    monkeypatch: pytest.MonkeyPatch, rank: int, parents: list[int], ended: bool
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(internals.os, "kill", lambda pid, number: killed.append(number))
    monkeypatch.setattr(internals.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(internals.time, "sleep", lambda _: None)
    monkeypatch.setenv("WST_RANK_0", "7")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(internals, "cluster_environment", lambda _: LightningEnvironment())
    internals.end_with_parent(quiet_trainer())
    for thread in threading.enumerate():
        if thread.name == "end with parent":
            thread.join()
    assert killed == [signal.SIGKILL] * ended
