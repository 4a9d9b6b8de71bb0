"""The folders that a run writes to."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def log_folder(trainer: Trainer) -> Path:
    """Return the folder of the run's own files: the first logger's, or without one the trainer's root folder.

    Rank 0 writes there. Another rank may number its runs differently, and has to ask rank 0.
    """
    # The trainer's own `log_dir` waits for all ranks, which may not all call this.
    for logger in trainer.loggers[:1]:
        folder = logger.log_dir if isinstance(logger, TensorBoardLogger | CSVLogger) else logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)
