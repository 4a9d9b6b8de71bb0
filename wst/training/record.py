"""What the module reports to callbacks about a training step."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wst.distributed import gather, rank
from wst.types import Rollout


@dataclass
class StepRecord:
    """What happened in a training step: of one rank while it runs, of all ranks once it is done.

    Attributes:
        rollouts: queries * samples rollouts; the samples of a query are adjacent.
        rewards: [queries, samples] without penalties; NaN where a rollout could not be scored.
        parts: The parts of a composite reward, each [queries, samples].
        advantages: [queries, samples] as they entered the loss.
        leaks: [queries, samples] 1 where the instruction contains the gold answer, 0 where not; NaN without one.
        unaided: [queries] rewards of the student without an instruction, if the baseline needs them.
        kl: [queries, samples] in nats, if the KL has a coefficient.
        weights: [queries, samples] importance weights, if a `Screen` chose what to ask.
        features: [queries, samples, features] what that screen saw of each instruction.
        entropy: Mean entropy in nats over the tokens that had a gradient; NaN if none had.
        loss: The loss; NaN if no rollout had an advantage.
        grad_norm: Norm of the gradient before clipping.
        seconds: Seconds by phase.
        skipped: Whether no update was made, because too many answers failed or the loss was not finite.
    """

    rollouts: list[Rollout] = field(default_factory=list)
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    parts: dict[str, Tensor] = field(default_factory=dict)
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    leaks: Tensor | None = None
    unaided: Tensor | None = None
    kl: Tensor | None = None
    weights: Tensor | None = None
    features: Tensor | None = None
    entropy: float = math.nan
    loss: float = math.nan
    grad_norm: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    skipped: bool = False

    @property
    def queries(self) -> list[str]:
        """Ids [queries]."""
        return [rollout.query.id for rollout in self.rollouts[:: max(1, self.rewards.shape[-1])]]

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the elapsed time to a phase, and note the phase's name on an out-of-memory error."""
        start = time.perf_counter()
        try:
            yield
        except torch.OutOfMemoryError as error:
            error.add_note(phase)  # each phase has a setting of its own that takes less memory
            raise
        self.seconds[phase] += time.perf_counter() - start

    @staticmethod
    def of_all_ranks(own: StepRecord) -> tuple[StepRecord, slice]:
        """Gather the record of all ranks, and say which of its queries are this rank's; all ranks must call it."""
        records = gather(own)
        first = sum(len(record.rewards) for record in records[: rank()])
        return StepRecord.joined(records), slice(first, first + len(own.rewards))

    @staticmethod
    def joined(records: Sequence[StepRecord]) -> StepRecord:
        """Join all ranks' records of a step, in rank order; a phase took as long as on its slowest rank."""
        parts = dict.fromkeys(name for record in records for name in record.parts)
        whole = StepRecord(
            rollouts=[rollout for record in records for rollout in record.rollouts],
            rewards=torch.cat([record.rewards for record in records]),
            parts={name: torch.cat([r.parts[name] for r in records if name in r.parts]) for name in parts},
            advantages=torch.cat([record.advantages for record in records]),
            leaks=_all([record.leaks for record in records]),
            unaided=_all([record.unaided for record in records]),
            kl=_all([record.kl for record in records]),
            weights=_all([record.weights for record in records]),
            features=_all([record.features for record in records]),
            skipped=records[0].skipped,
        )
        for record in records:
            for phase, seconds in record.seconds.items():
                whole.seconds[phase] = max(whole.seconds[phase], seconds)
        return whole


def _all(tables: Sequence[Tensor | None]) -> Tensor | None:
    known = [table for table in tables if table is not None]
    return torch.cat(known) if known else None
