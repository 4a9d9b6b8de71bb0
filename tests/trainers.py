"""The trainer of tests that need no command line, no logger and no progress bar."""

from pathlib import Path
from typing import Any

from lightning import Trainer


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
