"""Exports of the trained weights as files that other libraries load."""

from __future__ import annotations

import math
import tempfile
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from wst.callbacks.curve import step_number
from wst.errors import ModelError
from wst.evaluation.brief import teacher_figures, tested_figures
from wst.files import follow_umask, restore_folder, write_folder
from wst.inference.artefact import FILE, Artefact, weights_hashes
from wst.inference.card import write_card
from wst.settings import check_arguments
from wst.training.folders import log_folder

Mode = Literal["max", "min"]


class _Export(Callback):
    """Export the trained weights as "last" after each validation and at the end, and as "best" whenever they are."""

    kind = ""

    def __init__(self, monitor: str, mode: Mode, folder: str | None) -> None:
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
        """Restore the best figure so far.

        Raises:
            ModelError: If it is no figure.
        """
        best, step = state_dict.get("best", "missing"), state_dict.get("best_step")
        if not (best is step is None or (isinstance(best, float) and math.isfinite(best) and type(step) is int)):
            raise ModelError(f"checkpoint: its best figure is {best!r:.60}; give one that `wst fit` wrote")
        self.best, self.best_step = best, step

    @rank_zero_only
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore an export that a killed run was about to replace."""
        if stage == "fit":
            for name in ("last", "best"):
                restore_folder(self._place(trainer, name))

    def _say_what_there_is(self, trainer: Trainer) -> None:
        there = ", ".join(sorted(map(str, trainer.callback_metrics)))
        rank_zero_warn(
            f"{type(self).__name__}: nothing called {self.monitor!r:.80} was logged, so there is no best teacher; set "
            f"monitor to one of {there:.400}"
        )

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export "last", and "best" if the monitored figure is the best so far."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or _only_trying(trainer):
            return
        self._export(trainer, pl_module, "last")
        figure = trainer.callback_metrics.get(self.monitor)
        if figure is None:
            self._say_what_there_is(trainer)
            return
        value = float(figure)
        if math.isnan(value):  # nothing could be scored
            return
        better = self.best is None or (value > self.best if self.mode == "max" else value < self.best)
        if better:
            self.best, self.best_step = value, step_number(pl_module)
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
    whenever the monitored figure is the best so far. A test adds its figures to the export whose weights it tested.

    Args:
        monitor: The figure that the best teacher is chosen by.
        mode: Whether the best figure is the largest ("max") or the smallest ("min").
        folder: Folder of the exports; None: ``teacher`` in the log folder.

    Raises:
        ConfigError: If the mode is unknown.
    """

    kind = "teacher"

    def __init__(self, monitor: str = "val/reward", mode: Mode = "max", folder: str | None = None) -> None:
        check_arguments(TeacherExport, locals())
        super().__init__(monitor, mode, folder)
        self._validation: list[dict[str, Tensor]] = []
        self._figures: dict[str, Any] = {}
        self._validated_step = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._validation, self._figures = [], {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        *_: Any,  # noqa: ANN401
    ) -> None:
        """Keep the rewards of all ranks."""
        self._validation.append(outputs["figures"])
        self._validated_step = step_number(pl_module)

    def fill(self, trainer: Trainer, pl_module: Any, folder: Path) -> None:  # noqa: ANN401 - WeakToStrong
        """Write the adapter or the model, ``wst.json`` and the card: all that `wst.Instructor` needs."""
        pl_module.teacher.save(folder)
        # Figures of weights that have been trained further since would be another teacher's.
        figures = self._validated_figures() if self._validated_step == pl_module.trained_steps else {}
        about = _about(trainer, pl_module) | {"figures": figures}
        _write(Artefact.of(folder, pl_module.teacher, pl_module.environment.prompt, about))

    def _validated_figures(self) -> dict[str, Any]:
        if self._validation and not self._figures:
            rewards, unaided, leaks = (
                np.concatenate([figures[name].double().numpy() for figures in self._validation])
                for name in ("reward", "unaided", "leak")
            )
            self._figures = {"validation": teacher_figures(rewards, unaided, leaks)}
        return self._figures

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: ANN401 - WeakToStrong
        """Put the test's figures into the exports that hold the tested weights."""
        folders = [self._place(trainer, name) for name in ("best", "last")]
        for folder in (folder for folder in folders if (folder / FILE).is_file()):
            try:
                artefact = Artefact.read(folder)
                if artefact.about.get("steps") == pl_module.trained_steps and _holds(artefact, pl_module.teacher):
                    figures = {**artefact.about.get("figures", {}), "test": tested_figures(pl_module.test_rows)}
                    _write(replace(artefact, about={**artefact.about, "figures": figures}))
            except (ModelError, OSError) as error:  # the test's own files are not written yet
                rank_zero_warn(f"the export has not got the test's figures: {error}")


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

    def __init__(self, monitor: str = "val/loss", mode: Mode = "min", folder: str | None = None) -> None:
        check_arguments(PreferenceExport, locals())
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
        "baseline": type(pl_module.baseline).__name__,
        "data": _describe(getattr(trainer, "datamodule", None)),
        "seed": pl_module.seed,
        "steps": pl_module.trained_steps,
    }


def _write(artefact: Artefact) -> None:
    artefact.write()
    write_card(artefact)


def _holds(artefact: Artefact, teacher: Any) -> bool:  # noqa: ANN401 - Teacher
    """Return whether an artefact's weights are the teacher's: written again, they are the same bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        teacher.save(Path(scratch))
        return weights_hashes(artefact.folder) == weights_hashes(Path(scratch))


def _model_of(student: Any) -> str | None:  # noqa: ANN401 - any student
    model = getattr(student, "source", None) or getattr(student, "model", None)
    return model if isinstance(model, str) else None


def _describe(thing: Any) -> str:  # noqa: ANN401 - student or data module
    files = [str(file) for file in getattr(thing, "files", {}).get("train") or []]
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    source = getattr(thing, "source", None) or getattr(thing, "hub_name", None) or shown
    name = type(thing).__name__
    return f"{name} ({source})" if isinstance(source, str) and source else name
