"""Results of a test and of a prediction, as files and on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.table import Table

from wst import terminal
from wst.callbacks.calls import paid, take
from wst.evaluation.report import Comparison, write_comparison
from wst.evaluation.tables import show
from wst.files import append_lines, write_whole
from wst.settings import check_arguments
from wst.training.folders import log_folder
from wst.types import rollout_row


class TestReport(Callback):
    """Writes a test as a comparison of three arms: no instruction, untrained teacher, trained teacher.

    The log folder (without a logger, ``test`` in the trainer's root folder) gets the files of `wst compare`:
    ``rows.jsonl``, ``results.json`` (schema ``wst.results/2``; see docs/compare.md) and ``report.html``. For a student
    that keeps accounts, ``accounts`` holds the calls of this test and, by stage, of everything done in this log folder.

    Attributes:
        comparison: The last test, on rank 0.
    """

    __test__ = False  # not a test class, whatever pytest makes of its name

    def __init__(self) -> None:
        self.comparison: Comparison | None = None

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files and print the table."""
        # `take` is collective: every rank must call it.
        accounts = {
            name: {"test": take(student), "run": student.accounts.run()} for name, student in paid(pl_module).items()
        }
        if trainer.is_global_zero:
            extra = {"accounts": accounts} if accounts else {}
            self.comparison = write_comparison(cast(Any, pl_module).test_rows, extra, _folder(trainer))
            show(self.comparison)


def _folder(trainer: Trainer) -> Path:
    """Return the folder of a test's files; without a logger the log folder is the user's own, and may hold theirs."""
    folder = log_folder(trainer)
    return folder / "test" if not trainer.loggers or cast(Any, trainer).fast_dev_run else folder


class PreferenceReport(Callback):
    """Prints how well a preference model ranks the test pairs, and writes ``results.json`` where `TestReport` would.

    ``{"n": int, "accuracy": {"model": FIGURE, "length": FIGURE}, "gain": {"model_vs_chance": FIGURE,
    "model_vs_length": FIGURE}}`` with figures ``{"mean": float, "ci95": [low, high]}``; gains also have a
    ``"p_value"``. "length" prefers the longer answer of a pair.
    """

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and print the table."""
        results = cast(Any, pl_module).results()
        path = _folder(trainer) / "results.json"
        write_whole(path, json.dumps(results, indent=2) + "\n")
        terminal.show(accuracy_table(results), str(path))


def accuracy_table(results: dict[str, Any]) -> Table:
    """Return a table of the accuracies and gains."""
    table = Table(title=f"Pairs ranked correctly, of {results['n']}")
    for name, justify in (("", "left"), ("mean", "right"), ("95% interval", "right"), ("p", "right")):
        table.add_column(name, justify=cast(Any, justify))
    for section, sign in (("accuracy", ""), ("gain", "+")):
        for name, figure in results[section].items():
            low, high = figure["ci95"]
            interval = "-" if low is None else f"{low:{sign}.3f} … {high:{sign}.3f}"
            p = f"{figure['p_value']:.4f}" if "p_value" in figure else ""
            table.add_row(name.replace("_", " "), f"{figure['mean']:{sign}.3f}", interval, p)
        table.add_section()
    return table


class PredictionWriter(BasePredictionWriter):
    """Writes query, instruction and response of each prediction, batch by batch.

    Args:
        path: The JSON Lines file; None for ``predictions.jsonl`` in the log folder.
    """

    def __init__(self, path: str | None = None) -> None:
        check_arguments(PredictionWriter, locals())
        super().__init__("batch")
        self.path = path
        self._begun = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin; an earlier file stays until there is something to write."""
        self._begun = False

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,  # noqa: ANN401 - as Lightning has it
        batch_indices: Sequence[int] | None,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Append a batch, which holds the rollouts of all ranks."""
        if not trainer.is_global_zero:
            return
        if not self._begun:
            write_whole(self._file(trainer), "")
            self._begun = True
        append_lines(self._file(trainer), [rollout_row(rollout) for rollout in prediction])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the path of the file."""
        if self._begun:
            rank_zero_info(f"predictions: {self._file(trainer)}")

    def _file(self, trainer: Trainer) -> Path:
        return Path(self.path) if self.path else log_folder(trainer) / "predictions.jsonl"
