"""Baselines: what a reward is compared with before it moves the teacher.

Subtracting a baseline that does not depend on the sampled instruction leaves the expected gradient unchanged and
lowers its variance (Williams 1992). Rewards come as a table [queries, samples]; NaN marks a reward that is unknown: it
is left out of every mean and gets advantage 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from wst.errors import ConfigError


class Baseline(nn.Module, ABC):
    """Turns rewards into advantages. State between steps belongs in buffers, which checkpoints save.

    Attributes:
        needs_unaided: Whether it needs the reward of the student without an instruction, which costs one more answer
            a query.
        min_samples: Smallest number of instructions a query that it works with.
    """

    needs_unaided: bool = False
    min_samples: int = 1

    @abstractmethod
    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return b for every sample.

        Args:
            rewards: [queries, samples], NaN where a sample could not be scored.
            unaided: [queries], or None unless ``needs_unaided``.

        Returns:
            [queries, samples]; NaN where b is unknown.
        """

    def forward(self, rewards: Tensor, unaided: Tensor | None = None) -> Tensor:
        """Return the advantages [queries, samples]: r - b, and 0 where either is unknown."""
        return torch.nan_to_num(rewards - self.baseline(rewards, unaided), nan=0.0)


class MovingAverage(Baseline):
    """Exponential moving average of the mean rewards of past batches (Williams 1992).

    The first batch is compared with its own mean.

    Args:
        decay: Weight of the past, in [0, 1); 0 means the last batch alone.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"MovingAverage: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("mean", torch.tensor(float("nan")))

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return the average over the batches before this one, then update it with this one."""
        batch_mean = rewards.nanmean().to(self.mean)
        past = torch.where(self.mean.isnan(), batch_mean, self.mean)
        if not batch_mean.isnan():
            self.mean.copy_(self.decay * past + (1 - self.decay) * batch_mean)
        return past.to(rewards).expand_as(rewards)


class GroupMean(Baseline):
    """Mean reward over all samples of the same query."""

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return each query's mean, the same for all its samples."""
        return rewards.nanmean(dim=1, keepdim=True).expand_as(rewards)


class LeaveOneOut(Baseline):
    """Mean reward over the *other* samples of the same query (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    Unlike `GroupMean` it does not contain the sample's own reward, so the gradient is unbiased.
    """

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return the mean of the others; NaN for a sample none of whose others was scored."""
        known = ~rewards.isnan()
        total = rewards.nansum(dim=1, keepdim=True)
        others = known.sum(dim=1, keepdim=True) - known.int()
        return torch.where(others > 0, (total - rewards.nan_to_num(nan=0.0)) / others, torch.nan)


class Unaided(Baseline):
    """Reward of the student without an instruction for the same query (self-critical baseline).

    Rennie et al. 2017 (arXiv 1612.00563); used for prompts by Li et al. 2023 (arXiv 2302.11520). The only
    baseline that works with one sample a query and still compares within the query.
    """

    needs_unaided = True

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return each query's unaided reward, the same for all its samples."""
        if unaided is None:
            raise ConfigError("Unaided: the unaided rewards [queries] are missing; pass them to the baseline")
        return unaided.to(rewards)[:, None].expand_as(rewards)
