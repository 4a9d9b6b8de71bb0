"""Baselines: what a reward is compared with before it moves the teacher.

Subtracting a baseline that does not depend on the sampled instruction leaves the expected gradient unchanged and
lowers its variance (Williams 1992). Rewards come as a table [queries, samples]; NaN marks a reward that is unknown: it
is left out of every mean and gets advantage 0. Means are computed in float64: of equal rewards they are exactly that
reward, and no advantage is left over for Adam, which scales the size of a gradient away.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wst.errors import ConfigError
from wst.settings import check_arguments


class Baseline(nn.Module, ABC):
    """Turns rewards into advantages. State between steps belongs in buffers, which checkpoints save.

    Attributes:
        needs_unaided: Whether it needs the reward of the student without an instruction, which costs one more answer
            a query.
        min_samples: Smallest number of instructions a query that it works with.
    """

    needs_unaided: bool = False
    min_samples: int = 1

    def check(self, samples: int) -> None:
        """Check that it works with so many samples a query.

        Raises:
            ConfigError: If it needs more.
        """
        if samples < self.min_samples:
            raise ConfigError(
                f"samples_per_query={samples}: {type(self).__name__} needs at least {self.min_samples}; raise it, or "
                "take JamesStein, QueryTracker, MovingAverage or Unaided as baseline"
            )

    @abstractmethod
    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return b for every sample.

        Args:
            rewards: [queries, samples], NaN where a sample could not be scored.
            unaided: [queries], or None unless ``needs_unaided``.

        Returns:
            [queries, samples]; NaN where b is unknown.
        """

    def forward(self, rewards: Tensor, unaided: Tensor | None = None, queries: Sequence[str] = ()) -> Tensor:
        """Return the advantages [queries, samples]: r - b, and 0 where either is unknown.

        Args:
            rewards: [queries, samples], NaN where a sample could not be scored.
            unaided: [queries], or None unless ``needs_unaided``.
            queries: Ids of the queries, for a baseline that remembers them.
        """
        return torch.nan_to_num(rewards - self.baseline(rewards, unaided), nan=0.0)


class MovingAverage(Baseline):
    """Exponential moving average of the mean rewards of past batches (Williams 1992).

    The first batch is compared with its own mean.

    Args:
        decay: Weight of the past, in [0, 1); 0 means the last batch alone.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.9) -> None:
        check_arguments(MovingAverage, locals())
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"MovingAverage: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.register_buffer("mean", torch.tensor(float("nan")))

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return the average over the batches before this one, then update it with this one."""
        batch_mean = rewards.double().nanmean().to(self.mean)
        past = torch.where(self.mean.isnan(), batch_mean, self.mean)
        if not batch_mean.isnan():
            self.mean.copy_(torch.lerp(past, batch_mean, 1 - self.decay))
        return past.to(rewards).expand_as(rewards)


class GroupMean(Baseline):
    """Mean reward over all samples of the same query."""

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return each query's mean, the same for all its samples."""
        return rewards.double().nanmean(dim=1, keepdim=True).to(rewards).expand_as(rewards)


class LeaveOneOut(Baseline):
    """Mean reward over the *other* samples of the same query (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    Unlike `GroupMean` it does not contain the sample's own reward, so the gradient is unbiased.
    """

    min_samples = 2

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return the mean of the others; NaN for a sample none of whose others was scored."""
        table = rewards.double()
        known = ~table.isnan()
        total = table.nansum(dim=1, keepdim=True)
        others = known.sum(dim=1, keepdim=True) - known.int()
        return torch.where(others > 0, (total - table.nan_to_num(nan=0.0)) / others, torch.nan).to(rewards)


class Unaided(Baseline):
    """Reward of the student without an instruction for the same query (self-critical baseline).

    Rennie et al. 2017 (arXiv 1612.00563); used for prompts by Li et al. 2023 (arXiv 2302.11520). Like
    `QueryTracker` it compares within the query even with one sample a query, at the price of one more answer.
    """

    needs_unaided = True

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return each query's unaided reward, the same for all its samples."""
        if unaided is None:
            raise ConfigError("Unaided: the unaided rewards [queries] are missing; pass them to the baseline")
        return unaided.to(rewards)[:, None].expand_as(rewards)


class JamesStein(Baseline):
    """Leave-one-out mean of the query, shrunk towards the mean of the other queries (James and Stein 1961).

    After Zeng, Zhou, Arora and Zanette 2025 (arXiv 2511.03710), with the weight of empirical Bayes: the noisier a
    query's own mean and the more alike the queries, the more counts the mean of the others. The weight of a sample is
    estimated from the other queries alone, so the gradient is unbiased. There is nothing to set. With one sample a
    query it is the mean of the other queries; with fewer than three queries, `LeaveOneOut`.
    """

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return (1 - w) times the mean of the query's other samples plus w times the mean of the other queries."""
        table = rewards.double()
        known = ~table.isnan()
        counts = known.sum(dim=1)
        means = table.nanmean(dim=1)
        within = torch.where(known, table - means[:, None], 0.0).square().sum(dim=1) / (counts - 1)
        values = torch.empty_like(table)
        for i in range(len(table)):
            others = counts > 0
            others[i] = False
            left = counts[i] - known[i].int()  # other samples of the query
            own = (table[i].nansum() - table[i].nan_to_num(nan=0.0)) / left
            across = means[others].mean()
            noise = within[others & (counts > 1)].mean()
            # The variance of the means, less what noise adds to it; unknown, and no reason to shrink, of one alone.
            spread = means[others].var() if others.sum() > 1 else means.new_tensor(torch.nan)
            spread = (spread - noise * (1 / counts[others]).mean()).clamp(min=0)
            error = noise / left
            weight = (error / (error + spread)).nan_to_num(nan=0.0)
            values[i] = torch.where(left > 0, own + weight * (across - own).nan_to_num(nan=0.0), across)
        return values.to(rewards)


class QueryTracker(Baseline):
    """What each query's rewards have been so far, the older the less (SPO, Xu and Ding 2025, arXiv 2509.13232).

    It works with one sample a query, and a query whose samples all get the same reward still teaches something. Unlike
    SPO, it forgets at a constant rate instead of one by the KL, rewards need not be 0 or 1, and a query that is new
    begins with the mean of all queries instead of answers asked for beforehand. Of several samples of a query, each is
    compared with the others too. Its memory, a few numbers a query, is part of checkpoints.

    Args:
        decay: Weight of a query's past each time that it comes back, in [0, 1].
        prior: Weight of the mean of all queries, in answers, above 0.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(self, decay: float = 0.9, prior: float = 1.0) -> None:
        check_arguments(QueryTracker, locals())
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ConfigError(f"QueryTracker: decay must be in [0, 1], got {decay}")
        if not 0.0 < prior < float("inf"):
            raise ConfigError(f"QueryTracker: prior must be a number above 0, got {prior}")
        self.decay = decay
        self.prior = prior
        self._queries: dict[str, list[float]] = {}  #: weight and mean of each query's past
        self._all = [0.0, 0.0]  #: of all queries together
        self._ids: Sequence[str] = ()

    def forward(self, rewards: Tensor, unaided: Tensor | None = None, queries: Sequence[str] = ()) -> Tensor:
        """Return the advantages [queries, samples], and remember the rewards.

        Raises:
            ConfigError: If there is not one id for each row of the rewards.
        """
        if len(queries) != len(rewards):
            raise ConfigError(f"QueryTracker: got {len(queries)} ids for {len(rewards)} queries; give one for each")
        self._ids = queries
        return super().forward(rewards, unaided, queries)

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        """Return the mean of past, other samples and prior, by their weights; then update the past."""
        table = rewards.double()
        past = torch.tensor([self._queries.get(query, [0.0, 0.0]) for query in self._ids], dtype=torch.float64)
        weight, mean = self.decay * past[:, :1], past[:, 1:]
        known = ~table.isnan()
        others = known.sum(dim=1, keepdim=True) - known.int()
        total = table.nansum(dim=1, keepdim=True) - table.nan_to_num(nan=0.0)
        prior = self._prior(table)
        of_prior = torch.where(prior.isnan(), 0.0, self.prior)
        values = (weight * mean + total + of_prior * prior.nan_to_num()) / (weight + others + of_prior)
        for i, query in enumerate(self._ids):
            self._queries[query] = self._updated(self._queries.get(query, [0.0, 0.0]), table[i])
        self._all = self._updated(self._all, table)
        return values.to(rewards)

    def _prior(self, table: Tensor) -> Tensor:
        """Return the mean of past batches [queries, 1]; in the first batch, that of the other queries."""
        if self._all[0] > 0:
            return torch.full_like(table[:, :1], self._all[1])
        sums, counts = table.nansum(dim=1, keepdim=True), (~table.isnan()).sum(dim=1, keepdim=True)
        return (sums.sum() - sums) / (counts.sum() - counts)

    def _updated(self, past: list[float], rewards: Tensor) -> list[float]:
        count = int((~rewards.isnan()).sum())
        if not count:
            return past
        weight = self.decay * past[0]
        return [weight + count, (weight * past[1] + float(rewards.nansum())) / (weight + count)]

    def get_extra_state(self) -> dict[str, Any]:
        """Return the memory, for a checkpoint."""
        return {"queries": dict(self._queries), "all": list(self._all)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the memory.

        Raises:
            RuntimeError: If the state is another one's, as torch has it.
        """
        try:
            queries = {str(query): [float(x), float(y)] for query, (x, y) in state["queries"].items()}
            whole = [float(x) for x in state["all"]]
            for weight, mean in [*queries.values(), whole]:
                if not (0 <= weight < math.inf and math.isfinite(mean)):
                    raise ValueError(f"weight {weight}, mean {mean}")
            self._queries, self._all = queries, whole
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise RuntimeError("the baseline's memory is not that of a QueryTracker") from error
