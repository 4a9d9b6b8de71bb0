"""Figures of an evaluation: means, gains, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wst.errors import ConfigError


class Estimate(NamedTuple):
    """A mean with its bootstrap interval; NaN where there is too little to compute it from.

    It is a tuple because torchmetrics walks through what a metric computes, and refuses frozen dataclasses.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON knows it: null for NaN."""
        mean, low, high = (None if math.isnan(value) else value for value in (self.mean, self.low, self.high))
        return {"mean": mean, "ci95": [low, high]}


def bootstrap_mean(values: NDArray[np.floating[Any]], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Mean and 95% percentile bootstrap interval (Efron and Tibshirani 1993).

    Handed the differences of paired samples, this is the paired bootstrap.

    Args:
        values: [n]; NaN is left out.
        resamples: Resamples drawn.
        seed: Makes the interval a function of the values.
    """
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(known.mean())
    if len(known) == 1:
        return Estimate(mean, math.nan, math.nan)
    if np.ptp(known) == 0:  # scipy's answer would be NaN
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (known,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(known)),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


class PairedRewards(Metric):
    """Rewards of several arms on the same queries, and the gains of one over another.

    Args:
        arms: Names of the arms, in the order of the columns.
        resamples: Resamples drawn for each interval.

    Example:
        >>> metric = PairedRewards(["unaided", "trained"])
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> metric.gain("trained", "unaided").mean
        0.5
    """

    full_state_update = False
    rewards: list[Tensor]

    def __init__(self, arms: Sequence[str], resamples: int = 10_000) -> None:
        super().__init__()
        self.arms = tuple(arms)
        self.resamples = resamples
        self.add_state("rewards", default=[], dist_reduce_fx="cat")

    def update(self, rewards: Tensor) -> None:
        """Take rewards [queries, arms] in; NaN where one could not be scored.

        Raises:
            ConfigError: If the number of columns is not that of the arms.
        """
        if rewards.ndim != 2 or rewards.shape[1] != len(self.arms):
            raise ConfigError(f"PairedRewards: expected [queries, {len(self.arms)}], got {list(rewards.shape)}")
        self.rewards.append(rewards.double())

    def compute(self) -> dict[str, Estimate]:
        """Give every arm's mean with its interval."""
        return {arm: bootstrap_mean(self._column(arm), self.resamples) for arm in self.arms}

    def gain(self, arm: str, over: str) -> Estimate:
        """Give the mean difference of two arms over the queries that both have a reward for."""
        return bootstrap_mean(self._column(arm) - self._column(over), self.resamples)

    @property
    def n(self) -> int:
        """Number of queries."""
        return sum(len(rewards) for rewards in self.rewards)

    def _column(self, arm: str) -> NDArray[np.float64]:
        if not self.n:
            return np.zeros(0)
        table: Tensor = dim_zero_cat(self.rewards)
        return np.asarray(table[:, self.arms.index(arm)].cpu().numpy(), dtype=np.float64)


def nan_mean(values: Tensor) -> Tensor:
    """Mean of what is not NaN; NaN if nothing is left."""
    return values[~values.isnan()].mean() if not values.isnan().all() else torch.tensor(math.nan)
