"""Orderly ends: a run that must stop saves a checkpoint from which it resumes as if it had not stopped."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from wst.callbacks.curve import step_number
from wst.data.loader import QueryLoader
from wst.distributed import collective_errors, gather, raised_by_all
from wst.errors import CacheError, ConfigError, Diverged, Interrupted, StudentStopped
from wst.training import lightning_internals as internals
from wst.training.folders import FolderLock, log_folder
from wst.training.lifecycle import TrainingLifecycle

_RESUMABLE = (StudentStopped, CacheError, Diverged, Interrupted, torch.OutOfMemoryError)


class CheckpointOnStop(Callback):
    """Saves ``last.ckpt`` when a run must end.

    A run must end when a key is refused, a budget is spent, the cache is unusable, the loss is not finite, GPU memory
    runs out, or a signal asks for it. The unfinished step is not in the checkpoint: a resumed run begins with it.
    Nothing is saved if one of several ranks fails alone, because saving needs all of them.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, unless the last step is saved already; after any exception, close student and reward.

        Lightning calls no teardown then, and the student may be waiting for answers that are paid for.
        """
        resumable = isinstance(exception, _RESUMABLE) and raised_by_all(exception)
        if resumable and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)
        for name in ("student", "reward"):
            if hasattr(pl_module, name):
                cast(Any, getattr(pl_module, name)).close()

    def _save(self, trainer: Trainer) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        folder = next((Path(c.dirpath) for c in checkpoints if c.dirpath), log_folder(trainer) / "checkpoints")
        target = folder / "last.ckpt"
        saved = any(internals.saved_last(callback, trainer.global_step) for callback in checkpoints)
        if saved and target.is_file():
            return
        loader = trainer.train_dataloader
        if trainer.training and isinstance(loader, QueryLoader):
            loader.put_back()
            if isinstance(trainer.lightning_module, TrainingLifecycle):
                trainer.lightning_module.put_back()
        trainer.save_checkpoint(target)


class FolderGuard(Callback):
    """Refuses to train in a folder in which another process is training, or to begin anew in that of another run."""

    def __init__(self) -> None:
        self._lock: FolderLock | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the folder.

        Raises:
            ConfigError: If another process is training there.
        """
        with collective_errors():
            writes = trainer.loggers or trainer.checkpoint_callbacks
            if stage == "fit" and trainer.is_global_zero and writes and not cast(Any, trainer).fast_dev_run:
                self._lock = FolderLock(log_folder(trainer))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that a run that begins has the folder for itself; a resumed one has its checkpoint loaded by now.

        Raises:
            ConfigError: If another run has left its checkpoints or its teacher there.
        """
        with collective_errors():
            if self._lock is None or trainer.ckpt_path or trainer.global_step:
                return
            folder = log_folder(trainer)
            if any(folder.glob("checkpoints/*.ckpt")) or (folder / "teacher").exists():
                raise ConfigError(
                    f"{folder} holds another run; resume it with ckpt_path, or give the logger another version (after "
                    "a run with W&B, call wandb.finish())"
                )

    def teardown(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Unlock it."""
        if self._lock is not None:
            self._lock.release()
        self._lock = None

    on_exception = teardown


class StopInOrder(Callback):
    """Ends a run in order at Ctrl-C and SIGTERM: finishes the step, saves ``last.ckpt`` and leaves.

    A second signal ends the run at once. SLURM's requeue signal waits for the end of the step as well; then Lightning
    saves and requeues. With several ranks it is enough that one of them gets the signal.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._requeue = False
        self._before: dict[int, Any] = {}
        self._first: dict[int, Any] = {}

    def setup(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Note the handlers of before the run: the trainer has put none of its own in place yet."""
        if threading.current_thread() is threading.main_thread():
            self._first = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals; the trainer put its own handlers in place just before."""
        self._listen(trainer)

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = on_train_start

    def on_train_batch_start(self, trainer: Trainer, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Stop before the step or batch if a signal asked for it."""
        self._leave_if_asked(trainer)

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Save and requeue through Lightning if SLURM asked for it."""
        if not _slurm(trainer) or not any(gather(self._requeue)):
            return
        self._requeue = False
        requeue = self._before.get(_requeue_signal(trainer))
        if callable(requeue):
            cast(Callable[..., Any], requeue)(_requeue_signal(trainer), None)

    def on_exception(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Restore the trainer's signal handlers, which it removes itself."""
        self._hang_up()

    def teardown(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Restore the signal handlers of before the run: the trainer has removed its own by now."""
        self._before |= {number: handler for number, handler in self._first.items() if number in self._before}
        self._hang_up()

    def _listen(self, trainer: Trainer) -> None:
        if self._before or threading.current_thread() is not threading.main_thread():
            return

        def ask(number: int, _: FrameType | None) -> None:
            if self._asked:
                if "ipykernel" in sys.modules and number == signal.SIGINT:  # the kernel is not ours to end
                    raise KeyboardInterrupt
                self._end_at_once(trainer, number)
            self._asked = number
            name = signal.Signals(number).name
            # Not print(): a signal may come in the middle of one.
            os.write(2, f"\nwst: {name}: the step is finished, then the run ends; once more ends it now\n".encode())

        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, ask)
        if _slurm(trainer):
            number = _requeue_signal(trainer)
            self._before[number] = signal.signal(number, self._ask_to_requeue)

    def _ask_to_requeue(self, _: int, __: FrameType | None) -> None:
        self._requeue = True

    def _end_at_once(self, trainer: Trainer, number: int) -> None:
        internals.kill_children(trainer)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _leave_if_asked(self, trainer: Trainer) -> None:
        number = max(gather(self._asked))
        if number:
            saved = trainer.state.fn == "fit" and not trainer.sanity_checking
            with collective_errors():
                raise Interrupted(number, step_number(cast(Any, trainer).lightning_module) if saved else None)

    def _hang_up(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before, self._asked = {}, 0


def _slurm(trainer: Trainer) -> bool:
    environment = internals.cluster_environment(trainer)
    return isinstance(environment, SLURMEnvironment) and environment.auto_requeue


def _requeue_signal(trainer: Trainer) -> signal.Signals:
    environment = cast(SLURMEnvironment, internals.cluster_environment(trainer))
    return environment.requeue_signal or signal.SIGUSR1
