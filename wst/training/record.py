"""What the module tells the callbacks: the arms of a test, and the record of a training step."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wst.types import Rollout

ARMS = ("unaided", "untrained", "trained")


@dataclass
class StepRecord:
    """What happened in a training step, for callbacks.

    Attributes:
        rollouts: queries x samples rollouts; those of a query stand together.
        rewards: [queries, samples] without KL; NaN where a rollout could not be scored.
        parts: The parts of a composite reward, each [queries, samples].
        advantages: [queries, samples] as they went into the loss.
        leaks: [queries, samples] 1 where the instruction holds the gold answer, 0 where not; NaN without one.
        unaided: [queries] rewards of the student on its own, where the baseline needs them.
        kl: [queries, samples] in nats, where the KL has a coefficient.
        entropy: Mean entropy in nats over the tokens that had a gradient; NaN if none had.
        loss: The loss; NaN if no rollout had an advantage.
        grad_norm: Norm of the gradient before clipping.
        seconds: Seconds by phase.
        skipped: Whether so many answers failed that no update was made.
    """

    rollouts: list[Rollout]
    rewards: Tensor
    parts: dict[str, Tensor]
    advantages: Tensor
    leaks: Tensor | None = None
    unaided: Tensor | None = None
    kl: Tensor | None = None
    entropy: float = math.nan
    loss: float = math.nan
    grad_norm: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    skipped: bool = False

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time that passes inside to a phase, and tell an out-of-memory error its name."""
        start = time.perf_counter()
        try:
            yield
        except torch.OutOfMemoryError as error:
            error.add_note(phase)  # each phase has a setting of its own that takes less
            raise
        self.seconds[phase] += time.perf_counter() - start

    @staticmethod
    def joined(records: Sequence[StepRecord]) -> StepRecord:
        """Make one record of those that processes have of the same step; a phase took as long as its slowest."""
        parts = dict.fromkeys(name for record in records for name in record.parts)
        whole = StepRecord(
            rollouts=[rollout for record in records for rollout in record.rollouts],
            rewards=torch.cat([record.rewards for record in records]),
            parts={name: torch.cat([r.parts[name] for r in records if name in r.parts]) for name in parts},
            advantages=torch.cat([record.advantages for record in records]),
            leaks=_all([record.leaks for record in records]),
            unaided=_all([record.unaided for record in records]),
            kl=_all([record.kl for record in records]),
            skipped=records[0].skipped,
        )
        for record in records:
            for phase, seconds in record.seconds.items():
                whole.seconds[phase] = max(whole.seconds[phase], seconds)
        return whole


def _all(tables: Sequence[Tensor | None]) -> Tensor | None:
    known = [table for table in tables if table is not None]
    return torch.cat(known) if known else None
