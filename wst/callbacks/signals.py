"""Says aloud when a run can learn nothing, or the wrong thing, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from wst.callbacks.curve import step_number
from wst.errors import ConfigError
from wst.settings import check_arguments, check_counts
from wst.terminal import printable, show
from wst.training.record import StepRecord


class DeadSignals(Callback):
    """Prints, once each, that a step or several in a row gave nothing to learn from, and the remedy.

    ============  ==================================================================================
    ``empty``     all answers of a step are empty
    ``cut``       all answers of a step are cut off by the token limit, and their rewards are equal
    ``equal``     all rewards of ``patience`` steps in a row are equal, or there are none
    ``same``      all instructions of ``patience`` steps in a row are one text
    ``leaks``     more than ``share`` of a step's instructions contain the gold answer
    ``verdicts``  more than ``share`` of a judge's answers in a step hold no verdict
    ============  ==================================================================================

    Prompts that are too long are reported by the models that cut them. What was said is part of checkpoints.

    Args:
        patience: Steps in a row.
        share: From 0 to 1.

    Raises:
        ConfigError: If the patience is below 1, or the share is none.
    """

    def __init__(self, patience: int = 3, share: float = 0.5) -> None:
        check_arguments(DeadSignals, locals())
        check_counts("DeadSignals", patience=patience)
        if not 0 <= share <= 1:
            raise ConfigError(f"DeadSignals: share must be from 0 to 1, got {share}")
        self.patience = patience
        self.share = share
        self._said: set[str] = set()
        self._in_a_row = {"equal": 0, "same": 0}

    def state_dict(self) -> dict[str, Any]:
        """Return what was said, and what has been so for how many steps."""
        return {"said": sorted(self._said), "in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was said.

        Raises:
            ConfigError: If the state is not one that was saved.
        """
        try:
            self._said = {str(signal) for signal in state_dict["said"]}
            self._in_a_row = {name: int(state_dict["in_a_row"][name]) for name in self._in_a_row}
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                "checkpoint: the state of DeadSignals cannot be read; give a checkpoint that `wst fit` wrote"
            ) from error

    @rank_zero_only
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Look at the step's record."""
        record: StepRecord = outputs["record"]
        if record.skipped:  # said already
            return
        for signal, text in self._found(record, module):
            if signal not in self._said:
                self._said.add(signal)
                show(f"wst: step {step_number(module)}: {text}")

    def _found(self, record: StepRecord, module: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - WeakToStrong
        responses = [rollout.response for rollout in record.rollouts if rollout.response.error is None]
        texts = {rollout.instruction.text for rollout in record.rollouts if rollout.instruction is not None}
        known = record.rewards[~record.rewards.isnan()]
        equal = not len(known) or bool(known.min() == known.max())
        limit = getattr(module.student, "max_new_tokens", None)
        limited = "max_new_tokens of the student" + (f" (now {limit})" if isinstance(limit, int) else "")
        if responses and not any(response.text.strip() for response in responses):
            yield "empty", f"all {len(responses)} answers are empty; raise {limited}, and see to its prompt and `stop`"
        elif responses and equal and all(response.truncated for response in responses):
            yield "cut", f"all {len(responses)} answers are cut off, and all rewards are equal; raise {limited}"
        # A baseline that remembers learns from a step whose rewards are all alike.
        if self._lasts("equal", equal and not bool(record.advantages.any())):
            what = f"all rewards of a step are equal, now {float(known[0]):.4g}" if len(known) else "nothing is scored"
            yield (
                "equal",
                f"{what}, {self.patience} steps in a row: there is nothing to learn from; see whether the reward "
                "reads the answers (`wst check`), or take other queries, more samples_per_query, a higher temperature",
            )
        if self._lasts("same", len(texts) == 1 and len(record.rollouts) > 1):
            yield (
                "same",
                f"all instructions are one text, {self.patience} steps in a row: {printable(next(iter(texts)), 80)!r}; "
                "nothing more is tried: stop here (`wst distil` tests fixed sentences), or resume an earlier "
                "checkpoint with a lower learning rate, kl_coef or entropy_coef",
            )
        leak = float(record.leaks.nanmean()) if record.leaks is not None else 0.0
        if leak > self.share:
            remedy = "raise leak_penalty" if module.leak_penalty else "set leak_penalty: 1"
            yield (
                "leaks",
                f"{leak:.0%} of the instructions contain the gold answer: the teacher answers for the student; "
                f"{remedy}, and ask for instructions in the teacher's prompt",
            )
        for name, values in record.parts.items():
            if name.rpartition("/")[2] == "unparsed" and float(values.nanmean()) > self.share:
                yield (
                    "verdicts",
                    f"{float(values.nanmean()):.0%} of the judge's answers hold no verdict that can be read; raise "
                    "max_new_tokens of the judge, take a larger model, or give `verdict`, a regular expression",
                )

    def _lasts(self, name: str, is_so: bool) -> bool:
        self._in_a_row[name] = self._in_a_row[name] + 1 if is_so else 0
        return self._in_a_row[name] >= self.patience
