"""The trainer of tests that need no command line, no logger and no progress bar, and the records of its steps."""

from pathlib import Path
from typing import Any

from lightning import Trainer

from wst import Query, WeakToStrong
from wst.training.record import StepRecord


def quiet_trainer(folder: Path | None = None, **settings: Any) -> Trainer:
    """Return a trainer on the CPU that writes nothing unless ``settings`` say so."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return Trainer(**(defaults | settings))


def records(module: WeakToStrong) -> list[StepRecord]:
    """Return a list to which each training step to come adds its record."""
    kept: list[StepRecord] = []
    original = module.training_step

    def keep(batch: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        output = original(batch, batch_idx)
        kept.append(output["record"])
        return output

    module.training_step = keep  # type: ignore[method-assign]
    return kept
