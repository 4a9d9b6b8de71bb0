"""Baselines: what a reward is compared with before it moves the teacher.

Subtracting a baseline that does not depend on the sampled instruction leaves the expected gradient as it is
and lowers its variance (Williams 1992). Rewards come as a table [queries, samples]; NaN marks what could not
be scored: it is left out of every mean and gets advantage 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from wst.errors import ConfigError


class Baseline(nn.Module, ABC):
    """Turns rewards into advantages. What it remembers between steps is kept in buffers.

    Attributes:
        needs_unaided: Whether it needs the reward of the student with no instruction, which costs one more
            answer a query.
        min_samples: The fewest instructions a query that it can work with.
    """

    needs_unaided: bool = False
    min_samples: int = 1

    @abstractmethod
    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Give b for every sample.

        Args:
            rewards: [queries, samples], NaN where a sample could not be scored.
            unaided: [queries], or None unless ``needs_unaided``.

        Returns:
            [queries, samples]; NaN where there is nothing to compare with.
        """

    def forward(self, rewards: Tensor, unaided: Tensor | None = None) -> Tensor:
        """Give advantages [queries, samples]: r - b, and 0 where either is unknown."""
        return torch.nan_to_num(rewards - self.baseline(rewards, unaided), nan=0.0)


class MovingAverage(Baseline):
    """Exponential mean of past batches' mean rewards (Williams 1992).

    The first batch has no past: its own mean serves.

    Args:
        decay: Weight of the past, from 0 (the last batch alone) up to, but not including, 1.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"MovingAverage: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("mean", torch.tensor(float("nan")))

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Give the mean of the batches before this one, and take this one into it."""
        batch_mean = rewards.nanmean().to(self.mean)
        past = torch.where(self.mean.isnan(), batch_mean, self.mean)
        if not batch_mean.isnan():
            self.mean.copy_(self.decay * past + (1 - self.decay) * batch_mean)
        return past.to(rewards).expand_as(rewards)


class GroupMean(Baseline):
    """Mean reward over all samples of the same query."""

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Give each query's mean, the same for all its samples."""
        return rewards.nanmean(dim=1, keepdim=True).expand_as(rewards)


class LeaveOneOut(Baseline):
    """Mean reward over the *other* samples of the same query (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    Unlike `GroupMean` it does not contain the sample's own reward, so the gradient stays unbiased.
    """

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Give the mean of the others; NaN for a sample whose others all went unscored."""
        known = ~rewards.isnan()
        total = rewards.nansum(dim=1, keepdim=True)
        others = known.sum(dim=1, keepdim=True) - known.int()
        return torch.where(others > 0, (total - rewards.nan_to_num(nan=0.0)) / others, torch.nan)


class Unaided(Baseline):
    """Reward of the student with no instruction for the same query (self-critical).

    Rennie et al. 2017 (arXiv 1612.00563); used for prompts by Li et al. 2023 (arXiv 2302.11520). The only
    baseline that works with a single sample and still compares within the query.
    """

    needs_unaided = True

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Give each query's unaided reward, the same for all its samples."""
        if unaided is None:
            raise ConfigError("Unaided: the unaided rewards [queries] are missing; hand them to the baseline")
        return unaided.to(rewards)[:, None].expand_as(rewards)
