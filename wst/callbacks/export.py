"""Exports of the trained weights as files that other libraries load."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from wst.evaluation.metrics import json_number
from wst.files import follow_umask, restore_folder, write_folder
from wst.inference.artefact import Artefact
from wst.settings import check_choice
from wst.training.folders import log_folder


class _Export(Callback):
    """Export the trained weights as "last" after each validation and at the end, and as "best" whenever they are."""

    kind = ""

    def __init__(self, monitor: str, mode: str, folder: str | None) -> None:
        check_choice(f"{type(self).__name__}: mode", mode, ("max", "min"))
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.best: float | None = None
        self.best_step: int | None = None

    @abstractmethod
    def fill(self, trainer: Trainer, pl_module: Any, folder: Path) -> None:  # noqa: ANN401 - the module it is for
        """Write the export's files into a folder."""

    def state_dict(self) -> dict[str, Any]:
        """Return the best figure so far, for a resumed run."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best figure so far."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    @rank_zero_only
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore an export that a killed run was about to replace."""
        if stage == "fit":
            for name in ("last", "best"):
                restore_folder(self._place(trainer, name))

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export "last", and "best" if the monitored figure is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or _only_trying(trainer):
            return
        self._export(trainer, pl_module, "last")
        figure = trainer.callback_metrics.get(self.monitor)
        if figure is None:
            return
        value = float(figure)
        if math.isnan(value):  # nothing could be scored
            return
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best, self.best_step = value, trainer.global_step
            self._export(trainer, pl_module, "best")

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export "last"."""
        if not _only_trying(trainer):
            self._export(trainer, pl_module, "last")

    def _export(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        def fill(folder: Path) -> None:
            self.fill(trainer, pl_module, folder)
            follow_umask(folder)

        write_folder(self._place(trainer, name), fill)

    def _place(self, trainer: Trainer, name: str) -> Path:
        root = Path(self.folder) if self.folder else log_folder(trainer) / self.kind
        return root / name


class TeacherExport(_Export):
    """Export the teacher as a PEFT adapter (or, after full fine-tuning, as a whole model) with a model card.

    ``teacher/last`` in the log folder is written at the end of training and after each validation, ``teacher/best``
    whenever the monitored figure is the best so far.

    Args:
        monitor: The figure that the best teacher is chosen by.
        mode: Whether the best figure is the largest ("max") or the smallest ("min").
        folder: Folder of the exports; None: ``teacher`` in the log folder.

    Raises:
        ConfigError: If the mode is unknown.
    """

    kind = "teacher"

    def __init__(self, monitor: str = "val/reward", mode: str = "max", folder: str | None = None) -> None:
        super().__init__(monitor, mode, folder)

    def fill(self, trainer: Trainer, pl_module: Any, folder: Path) -> None:  # noqa: ANN401 - WeakToStrong
        """Write the adapter or the model, ``wst.json`` and the card: all that `wst.Instructor` needs."""
        pl_module.teacher.save(folder)
        Artefact.of(folder, pl_module.teacher, pl_module.environment.prompt, _about(trainer, pl_module)).write()
        (folder / "README.md").write_text(model_card(trainer, pl_module), encoding="utf-8")


class PreferenceExport(_Export):
    """Export a preference model as a Hugging Face sequence classifier, for `wst.RewardModel`.

    ``reward_model/last`` in the log folder is written at the end of training and after each validation,
    ``reward_model/best`` whenever the monitored figure is the best so far.

    Args:
        monitor: The figure that the best model is chosen by.
        mode: Whether the best figure is the largest ("max") or the smallest ("min").
        folder: Folder of the exports; None: ``reward_model`` in the log folder.

    Raises:
        ConfigError: If the mode is unknown.
    """

    kind = "reward_model"

    def __init__(self, monitor: str = "val/loss", mode: str = "min", folder: str | None = None) -> None:
        super().__init__(monitor, mode, folder)

    def fill(self, trainer: Trainer, pl_module: Any, folder: Path) -> None:  # noqa: ANN401 - PreferenceModel
        """Write the model."""
        pl_module.save(folder)


def _only_trying(trainer: Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _about(trainer: Trainer, pl_module: Any) -> dict[str, Any]:  # noqa: ANN401 - WeakToStrong
    """Return where a teacher comes from."""
    student = pl_module.student
    return {
        "student": {"class": type(student).__name__, "model": _model_of(student)},
        "reward": type(pl_module.reward).__name__,
        "data": _describe(getattr(trainer, "datamodule", None)),
        "seed": pl_module.seed,
        "steps": pl_module.trained_steps,
        "figures": _figures(trainer),
    }


def _figures(trainer: Trainer) -> dict[str, float | None]:
    shown = ("val/", "train/reward")
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(shown)}
    return {name: json_number(value) for name, value in sorted(figures.items())}


def _model_of(student: Any) -> str | None:  # noqa: ANN401 - any student
    model = getattr(student, "source", None) or getattr(student, "model", None)
    return model if isinstance(model, str) else None


def model_card(trainer: Trainer, pl_module: Any) -> str:  # noqa: ANN401 - WeakToStrong
    """Return a card that names base, student, data, reward and results, and says how to load the teacher."""
    teacher = pl_module.teacher
    rows = [f"| {name} | {'-' if value is None else f'{value:.4g}'} |" for name, value in _figures(trainer).items()]
    results = "\n".join(rows) or "| none yet | |"
    data = getattr(trainer, "datamodule", None)
    base = "" if ":" in teacher.source or Path(teacher.source).exists() else f"base_model: {teacher.source}\n"
    return f"""---
{base}library_name: {"transformers" if teacher.full_finetuning else "peft"}
tags: [weak-to-strong-transfer, prompt-optimization]
---
# Teacher that instructs {_describe(pl_module.student)}

Trained by Weak-to-Strong Transfer (Ge, Li, Huang 2025, arXiv 2508.16741): for each query it writes the instruction
under which the student answers best.

| | |
|---|---|
| base | {teacher.source} |
| student | {_describe(pl_module.student)} |
| data | {_describe(data)} |
| reward | {type(pl_module.reward).__name__} |
| baseline | {type(pl_module.baseline).__name__} |
| steps | {pl_module.trained_steps} |

| figure | value |
|---|---|
{results}

To use it (`pip install weak-to-strong-transfer`):

```python
import wst

teacher = wst.Instructor.from_pretrained("FOLDER")
print(teacher("The text of a query"))
```

`wst.json` holds the prompt that it was trained with, its limits, and where the student's prompt has the instruction.

Or name this folder in a config: `model.init_args.teacher.init_args.adapter`.
"""


def _describe(thing: Any) -> str:  # noqa: ANN401 - student or data module
    source = getattr(thing, "source", None) or getattr(thing, "files", {}).get("train")
    name = type(thing).__name__
    return f"{name} ({source})" if isinstance(source, str) else name
