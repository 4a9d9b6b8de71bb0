"""The folders that runs write to, and the lock that keeps a run's folder its own."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Any, cast

from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from wst.errors import ConfigError


def run_folder(logger: Logger, root: str | Path) -> Path:
    """Return a logger's folder for this run, the one that Lightning puts ``checkpoints`` into.

    Args:
        logger: Any logger.
        root: Where it goes if the logger has no folder of its own, as one that logs to a server.

    Returns:
        ``save_dir/name/version``. Only rank 0 knows the version of a logger that a server numbers.
    """
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    version: Any = logger.version
    if version is None and hasattr(logger, "experiment"):
        _ = logger.experiment  # W&B and MLflow number the run when it begins
        version = logger.version
    return (
        Path(logger.save_dir or root)
        / str(logger.name)
        / (version if isinstance(version, str) else f"version_{version}")
    )


def log_folder(trainer: Trainer) -> Path:
    """Return the folder of the run's own files: the first logger's, or without one the trainer's root (`number_run`).

    Rank 0 writes there. Another rank may number its runs differently, and has to ask rank 0.
    """
    # The trainer's own `log_dir` waits for all ranks, which may not all call this, and is shared by the runs of W&B.
    for logger in trainer.loggers[:1]:
        if not isinstance(logger, DummyLogger):  # that of fast_dev_run
            return run_folder(logger, trainer.default_root_dir)
    return Path(trainer.default_root_dir)


def number_run(trainer: Trainer) -> None:
    """Put a run without a logger into a folder of its own: the next ``version_N`` in the trainer's root folder.

    A root that is called so already is left: it is the run's that goes on, or that is tested.
    """
    from wst.training.lightning_internals import cluster_environment, set_root  # heavy

    root = Path(trainer.default_root_dir)
    if trainer.state.fn != "fit" or trainer.loggers or cast(Any, trainer).fast_dev_run or run_number(root) is not None:
        return
    if isinstance(cluster_environment(trainer), SLURMEnvironment):  # a requeued job looks in the root
        return
    resumed = Path(str(trainer.ckpt_path)).parent.parent  # of a run without a logger
    if run_number(resumed) is not None and resumed.resolve().parent == root.resolve():
        set_root(trainer, resumed)
        return
    taken = [number for path in root.glob("version_*") if (number := run_number(path)) is not None]
    set_root(trainer, root / f"version_{max(taken, default=-1) + 1}")


def run_number(folder: Path) -> int | None:
    """Return N of a folder called ``version_N``; None for any other."""
    found = re.fullmatch(r"version_(\d{1,9})", folder.name)
    return int(found[1]) if found else None


class FolderLock:
    """An exclusive lock on a training folder. The system releases it when the process ends, however it ends.

    Args:
        folder: Created if it does not exist.

    Raises:
        ConfigError: If another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise ConfigError(
                f"another process is training in {folder}; wait for its end, or begin a run of your own without "
                "--ckpt_path"
            ) from None
        except OSError:  # a file system without locks
            pass

    def release(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)
