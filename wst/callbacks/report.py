"""Results of a test and of a prediction, as a table and as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.table import Table

from wst.callbacks.calls import paid, take
from wst.evaluation.metrics import json_number
from wst.files import append_lines, write_whole
from wst.training.folders import log_folder
from wst.training.record import ARMS
from wst.types import rollout_row

_NAMES = {
    "unaided": "no instruction",
    "untrained": "untrained teacher",
    "trained": "trained teacher",
    "trained_vs_unaided": "gain over no instruction",
    "trained_vs_untrained": "gain over the untrained teacher",
}


class TestReport(Callback):
    """Prints the table of a test; writes ``results.json`` and, with every row, ``test_rows.jsonl``.

    ``results.json``: ``{"n": int, "arms": {ARM: FIGURE}, "gain": {"trained_vs_unaided": FIGURE,
    "trained_vs_untrained": FIGURE}}`` with arms unaided, untrained and trained, and figures
    ``{"mean": float, "ci95": [low, high]}``; null stands for what cannot be computed. ``"relative_gain"`` has the gains
    in units of the other arm's mean; ``"leak"`` the share of each teacher's instructions that hold the gold answer
    already, where there are gold answers; ``"words"`` the mean length of each arm's answers; ``"gain_by_length"`` the
    part of a gain that goes with longer answers (`wst.evaluation.metrics.gain_by_length`). A student that keeps
    accounts adds ``"student": {"test": {...}, "run": {STAGE: {...}}}``: what this test has taken (calls, cache hits,
    failed, tokens, cost, seconds a call), and the sums over all that was done in this log folder.
    """

    __test__ = False  # not a test class, whatever its name looks like

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the file of rows anew."""
        self._rows: list[dict[str, Any]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401 - as Lightning has it
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the rows of a batch."""
        for arm in ARMS:
            output = outputs[arm]
            for i, rollout in enumerate(output["rollouts"]):
                parts = {f"reward/{name}": json_number(values[i]) for name, values in output["parts"].items()}
                reward = {name: json_number(output[f"{name}s"][i]) for name in ("reward", "leak")}
                self._rows.append({"arm": arm} | rollout_row(rollout) | reward | parts)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files and print the table."""
        results = cast(Any, pl_module).results()
        for name, student in paid(pl_module).items():
            results[name] = {"test": take(student), "run": student.accounts.run()}
        self._write(trainer, results)

    @rank_zero_only
    def _write(self, trainer: Trainer, results: dict[str, Any]) -> None:
        folder = log_folder(trainer)
        write_whole(folder / "test_rows.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in self._rows))
        write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
        console = Console()
        console.print(results_table(results))
        console.print(f"{folder / 'results.json'}", highlight=False, soft_wrap=True)


def results_table(results: dict[str, Any]) -> Table:
    """A table of the arms and gains for the terminal."""
    table = Table(title=f"Reward on {results['n']} test queries")
    table.add_column("arm")
    table.add_column("mean", justify="right")
    table.add_column("95% interval", justify="right")
    for section in ("arms", "gain"):
        for name, figure in results[section].items():
            low, high = (_shown(bound, section == "gain") for bound in figure["ci95"])
            table.add_row(_NAMES[name], _shown(figure["mean"], section == "gain"), f"{low} … {high}")
        table.add_section()
    for name, part in results["gain_by_length"].items():
        table.add_row(f"{_NAMES[name]}: by length", _shown(part, True), "")
    table.add_section()
    for arm, words in results["words"].items():
        table.add_row(f"{_NAMES[arm]}: words an answer", "-" if words is None else f"{words:.1f}", "")
    for arm, share in results["leak"].items():
        table.add_row(f"{_NAMES[arm]}: answer in the instruction", f"{share:.0%}", "")
    return table


def _shown(value: float | None, signed: bool) -> str:
    if value is None:
        return "-"
    value = round(value, 3) + 0.0  # no -0.000
    return f"{value:+.3f}" if signed else f"{value:.3f}"


class PreferenceReport(Callback):
    """Prints how well a preference model ranks the test pairs, and writes ``results.json``.

    ``{"n": int, "accuracy": {"model": FIGURE, "length": FIGURE}, "gain": {"model_vs_chance": FIGURE,
    "model_vs_length": FIGURE}}`` with figures ``{"mean": float, "ci95": [low, high]}``, those of gains with a
    ``"p_value"`` besides. "length" takes the longer answer for the better one.
    """

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file and print the table."""
        results = cast(Any, pl_module).results()
        path = log_folder(trainer) / "results.json"
        write_whole(path, json.dumps(results, indent=2) + "\n")
        console = Console()
        console.print(accuracy_table(results))
        console.print(f"{path}", highlight=False, soft_wrap=True)


def accuracy_table(results: dict[str, Any]) -> Table:
    """A table of the accuracies and gains for the terminal."""
    table = Table(title=f"Pairs ranked rightly, of {results['n']}")
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
    """Writes query, instruction and response of each prediction as it comes.

    Args:
        path: The JSON Lines file; None: ``predictions.jsonl`` in the log folder.
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__("batch")
        self.path = path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the file anew."""
        if trainer.is_global_zero:
            write_whole(self._file(trainer), "")

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
        """Append a batch, which is that of all processes."""
        if not trainer.is_global_zero:
            return
        append_lines(self._file(trainer), [rollout_row(rollout) for rollout in prediction])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the file is."""
        rank_zero_info(f"predictions: {self._file(trainer)}")

    def _file(self, trainer: Trainer) -> Path:
        return Path(self.path) if self.path else log_folder(trainer) / "predictions.jsonl"
