"""Show a few instructions, so that a person sees how they change."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from rich.text import Text
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from wst.callbacks.curve import step_number
from wst.errors import ConfigError
from wst.evaluation.metrics import json_number
from wst.files import append_lines, write_whole
from wst.settings import check_arguments
from wst.terminal import printable, show
from wst.training.folders import log_folder
from wst.training.record import StepRecord
from wst.types import Rollout, rollout_row

_PANEL, _LOGGED = 600, 5_000  #: characters of a text that are shown; ``instructions.jsonl`` has all of them


class InstructionSamples(Callback):
    """Shows a few instructions with the answers under them.

    In training, every few steps, some sampled instructions are written to ``instructions.jsonl`` in the log folder. At
    validation, the greedy instructions for the first queries go there too, to the loggers (a table with W&B and MLflow,
    text with TensorBoard and Comet), and to the terminal.

    Args:
        every_n_steps: Steps between two samples in training; 0 for none.
        count: Rollouts shown each time.
        terminal: Whether validation prints a panel.

    Raises:
        ConfigError: If a number is below its minimum.
    """

    def __init__(self, every_n_steps: int = 1, count: int = 4, terminal: bool = True) -> None:
        check_arguments(InstructionSamples, locals())
        if every_n_steps < 0 or count < 1:
            raise ConfigError("InstructionSamples: every_n_steps must be at least 0 and count at least 1")
        self.every_n_steps = every_n_steps
        self.count = count
        self.terminal = terminal
        self._validation: list[Rollout] = []
        self._taken_up = False
        self._resumed_at = 0
        #: texts that a killed run logged, by folder and step: of a repeated step TensorBoard keeps every text
        self._texts: dict[tuple[str, int], str] = {}
        self._shown = -1  #: step of the last validation that is in the file

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove from the file what a killed run wrote of steps that are made again."""
        self._take_up(trainer, pl_module)

    @rank_zero_only
    def _take_up(self, trainer: Trainer, module: LightningModule) -> None:
        if self._taken_up or trainer.state.fn != "fit":
            return
        self._taken_up = True
        self._resumed_at = step_number(module)
        if trainer.global_step:
            loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
            self._texts = {(logger.log_dir, step): text for logger in loggers for step, text in _texts(logger.log_dir)}
        path = log_folder(trainer) / "instructions.jsonl"
        if not trainer.global_step or not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:  # a kill may cut a character
            lines = list(file)
        rows = [(line, row) for line in lines if (row := _row(line))["step"] <= self._resumed_at]
        self._shown = max((row["step"] for _, row in rows if row["stage"] == "val"), default=-1)
        if len(rows) < len(lines):
            write_whole(path, "".join(line for line, _ in rows))

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Append some of the step's rollouts to the file."""
        record: StepRecord = outputs["record"]
        step = step_number(module, outputs)
        if not self.every_n_steps or step % self.every_n_steps or cast(Any, trainer).fast_dev_run:
            return
        # One of each query first: the samples of a query look alike.
        samples = record.rewards.shape[1]
        order = [i for offset in range(samples) for i in range(offset, len(record.rollouts), samples)]
        rewards, advantages = record.rewards.flatten().tolist(), record.advantages.flatten().tolist()
        rows = [
            {"step": step, "stage": "train"}
            | ({"skipped": True} if record.skipped else {})
            | rollout_row(record.rollouts[i])
            | {"reward": json_number(rewards[i]), "advantage": advantages[i]}
            for i in order[: self.count]
        ]
        append_lines(log_folder(trainer) / "instructions.jsonl", rows)

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Collect the first rollouts."""
        self._validation += outputs["rollouts"][: max(0, self.count - len(self._validation))]

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and show the collected rollouts."""
        rollouts, self._validation = self._validation, []
        if trainer.sanity_checking or not rollouts:
            return
        self._take_up(trainer, pl_module)  # a resumed run with no step left has no start
        step = step_number(pl_module)
        if step > self._shown and not cast(Any, trainer).fast_dev_run:
            rows = [{"step": step, "stage": "val"} | rollout_row(rollout) for rollout in rollouts]
            append_lines(log_folder(trainer) / "instructions.jsonl", rows)
            self._shown = step
        for logger in trainer.loggers:
            self._log(logger, rollouts, step)
        if self.terminal:
            reward = trainer.callback_metrics.get("val/reward")
            title = f"step {step}" + (f", validation reward {float(reward):.3f}" if reward is not None else "")
            show("", panel(rollouts, title))

    def _log(self, logger: Any, rollouts: list[Rollout], step: int) -> None:  # noqa: ANN401 - several have no base class
        """Log the rollouts as a table, or as text where a logger has no tables; CSV has ``instructions.jsonl``."""
        if isinstance(logger, TensorBoardLogger):
            text, known = markdown(rollouts), self._texts.get((logger.log_dir, step))
            # A validation that is made again may find other answers: a student that samples is not seeded for it.
            if known is None or (step > self._resumed_at and known != text):
                logger.experiment.add_text("instructions", text, step)
            return
        table = [[step, *(printable(text, _LOGGED) for text in texts(rollout))] for rollout in rollouts]
        columns = ["step", "query", "instruction", "response"]
        if isinstance(logger, MLFlowLogger):
            data = dict(zip(columns, map(list, zip(*table, strict=True)), strict=True))
            logger.experiment.log_table(logger.run_id, data, "instructions.json")
        elif hasattr(logger, "log_table"):  # W&B's
            logger.log_table("instructions", columns, table, step=step)
        elif hasattr(getattr(logger, "experiment", None), "log_text"):  # Comet's
            logger.experiment.log_text(markdown(rollouts), step=step)


def texts(rollout: Rollout) -> tuple[str, str, str]:
    """Return query, instruction and response, of a failed response the error."""
    response = rollout.response
    answer = response.text if response.error is None else f"[failed: {response.error}]"
    return rollout.query.text, rollout.instruction.text if rollout.instruction is not None else "", answer


def _row(line: str) -> dict[str, Any]:
    """Parse a line; a line that a kill cut off belongs to a step that is made again."""
    try:
        row: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {"step": math.inf}
    return row


def _texts(folder: str) -> Iterator[tuple[int, str]]:
    for path in sorted(Path(folder).glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == "instructions/text_summary":
                    yield event.step, value.tensor.string_val[0].decode()


def markdown(rollouts: list[Rollout]) -> str:
    """Return a table for TensorBoard; texts of models and data stand in it as code, so that they are not rendered."""

    def cell(text: str) -> str:
        shown = printable(text, _LOGGED).replace("|", "\\|").replace("`", "'")
        return f"`{shown}`" if shown else ""

    rows = [f"| {' | '.join(map(cell, texts(rollout)))} |" for rollout in rollouts]
    return "\n".join(["| query | instruction | response |", "|---|---|---|", *rows])


def panel(rollouts: list[Rollout], title: str) -> Table:
    """Return a table for the terminal; `Text` keeps rich from interpreting markup in the cells."""
    table = Table(title=title, show_lines=True, expand=True)
    for name, ratio in (("query", 4), ("instruction", 5), ("response", 4)):
        table.add_column(name, ratio=ratio, overflow="fold")
    for rollout in rollouts:
        table.add_row(*(Text(printable(cell, _PANEL)) for cell in texts(rollout)))
    return table
