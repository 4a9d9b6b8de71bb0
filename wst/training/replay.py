"""Replay: answers that are paid for are learned from more than once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wst.errors import ConfigError, ModelError
from wst.modeling.logprobs import LogProbs
from wst.settings import check_arguments, check_counts
from wst.types import Instruction


@dataclass(frozen=True)
class Paid:
    """An instruction whose answer is paid for.

    Attributes:
        instruction: What was sampled; a checkpoint does not keep its text.
        advantage: What the answer was worth, by the baseline of its own step.
        log_prob: Log-probability of the whole instruction under the policy that sampled it.
    """

    instruction: Instruction
    advantage: float
    log_prob: float


class Replay:
    """Lets each answer take part in a bounded number of further updates.

    The loss of an update is the mean over the new instructions and those of the last steps. An old instruction counts
    with its importance weight, the ratio of its probabilities now and when it was sampled, truncated from above
    (Ionides 2008; for language models RePO, arXiv 2506.09340, and TOPR, arXiv 2503.14286). The weight has no gradient.
    Below the truncation the gradient is unbiased, above it an instruction counts less than it should. What is kept is
    part of checkpoints.

    Args:
        updates: Further updates that an answer takes part in; 0 for none.
        max_weight: Where weights are truncated, at least 1.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(self, updates: int = 2, max_weight: float = 2.0) -> None:
        check_arguments(Replay, locals())
        check_counts("Replay", 0, updates=updates)
        if not max_weight >= 1:
            raise ConfigError(f"Replay: max_weight must be at least 1, got {max_weight}")
        self.updates = updates
        self.max_weight = max_weight
        #: Of each step, the same in all ranks: what its loss alone was divided by (its tokens or sequences, those
        #: without gradient included), and its instructions that have an advantage.
        self._steps: deque[tuple[float, list[Paid]]] = deque(maxlen=int(updates))

    @property
    def scale(self) -> float:
        """What the loss is divided by for the kept steps, besides the scale of the new one."""
        return sum(scale for scale, _ in self._steps)

    @property
    def paid(self) -> list[Paid]:
        """What is kept, the oldest first."""
        return [one for _, paid in self._steps for one in paid]

    def add(self, scale: float, paid: Sequence[Paid]) -> None:
        """Keep a step; the oldest one leaves."""
        self._steps.append((scale, list(paid)))

    def clear(self) -> None:
        """Forget everything."""
        self._steps.clear()

    def weighted(self, paid: Sequence[Paid], now: LogProbs) -> Tensor:
        """Return the advantages [rows] times the truncated importance weights."""
        then = torch.tensor([one.log_prob for one in paid], device=now.values.device)
        advantages = torch.tensor([one.advantage for one in paid], device=now.values.device)
        ratio = (sequence_log_probs(now) - then).exp()
        return advantages * ratio.clamp(max=self.max_weight)

    def state_dict(self) -> dict[str, Any]:
        """Return what is kept, as plain values."""

        def row(one: Paid) -> list[Any]:
            z = one.instruction
            return [list(z.prompt_ids), list(z.token_ids), one.advantage, one.log_prob]

        return {"steps": [[scale, list(map(row, paid))] for scale, paid in self._steps]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what was kept; with fewer updates than before, the oldest steps are left out.

        Raises:
            ValueError: If it is not what a run kept.
        """
        self.clear()
        for scale, rows in state_dict["steps"]:
            paid = [Paid(Instruction("", _ids(p), _ids(t)), _finite(a), _finite(log_p)) for p, t, a, log_p in rows]
            if not _finite(scale) > 0:
                raise ValueError(f"scale {scale}")
            self.add(float(scale), paid)

    def check(self, vocabulary: int) -> None:
        """Check that a model knows all tokens that are kept.

        Raises:
            ModelError: If it does not.
        """
        instructions = [one.instruction for one in self.paid]
        if any(not 0 <= token < vocabulary for z in instructions for token in (*z.prompt_ids, *z.token_ids)):
            raise ModelError("checkpoint: its replay holds tokens that the teacher does not know; leave replay out")


def _ids(values: Sequence[Any]) -> tuple[int, ...]:
    if not values or any(type(value) is not int for value in values):
        raise ValueError("token ids must be integers")
    return tuple(values)


def _finite(value: Any) -> float:  # noqa: ANN401 - from a file
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return float(value)


def sequence_log_probs(log_probs: LogProbs) -> Tensor:
    """Return the log-probability [rows] of each whole instruction, without gradient."""
    return torch.where(log_probs.mask, log_probs.values.detach(), 0.0).sum(dim=1)
