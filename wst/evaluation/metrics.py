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


def json_number(value: float) -> float | None:
    """Give a number as JSON knows it: None, which is written as null, for NaN."""
    return None if math.isnan(value) else value


class Estimate(NamedTuple):
    """A mean with its bootstrap interval; NaN where there is too little to compute it from.

    It is a tuple because torchmetrics walks through what a metric computes, and refuses frozen dataclasses.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON knows it: null for NaN."""
        return {"mean": json_number(self.mean), "ci95": [json_number(self.low), json_number(self.high)]}


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


def paired_p_value(differences: NDArray[np.floating[Any]], resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean of paired differences being 0, by flipping signs (scipy's permutation test).

    It is exact where all flips can be tried, and keeps its level with few rows, where a bootstrap's would not.

    Args:
        differences: [n]; NaN is left out.
        resamples: Flips drawn where there are more than that.
        seed: Makes the value a function of the differences.

    Returns:
        At least 2 / (resamples + 1) where flips are drawn, at most 1; NaN if nothing is left.
    """
    known = differences[~np.isnan(differences)]
    if len(known) == 0:
        return math.nan
    moved = known[known != 0]  # flipping a zero changes nothing
    if len(moved) < 2:  # the one flip there is gives a mean as far from 0
        return 1.0
    test = stats.permutation_test(
        (moved,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(moved)),
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return min(1.0, float(test.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of one family so that it errs as a whole at the level asked (Holm 1979).

    NaN stays NaN and does not count as a member.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def gain_by_length(rewards: NDArray[np.floating[Any]], lengths: NDArray[np.floating[Any]]) -> float:
    """How much of a gain goes with longer answers: the slope of reward on length, times the difference in length.

    The slope is that of least squares over both arms, each less its own mean (an analysis of covariance), so that
    what the arms differ in besides length does not enter it.

    Args:
        rewards: [n, 2] of the arm that gains and of the other; rows with a NaN are left out.
        lengths: [n, 2] of their answers.

    Returns:
        A part of the mean gain, in its unit; NaN where each arm's answers are all of one length, or nothing is left.

    Example:
        >>> gain_by_length(np.array([[3.0, 1.0], [4.0, 2.0]]), np.array([[30.0, 10.0], [40.0, 20.0]]))
        2.0
    """
    known = ~np.isnan(rewards + lengths).any(axis=1)
    if not known.any():
        return math.nan
    y, x = (values[known] - values[known].mean(axis=0) for values in (rewards, lengths))
    spread = float((x * x).sum())
    if spread == 0:
        return math.nan
    slope = float((x * y).sum()) / spread
    means = lengths[known].mean(axis=0)
    return slope * float(means[0] - means[1])


class PairedRewards(Metric):
    """Rewards of several arms on the same queries, and the gains of one over another.

    Args:
        arms: Names of the arms, in the order of the columns.
        resamples: Resamples drawn for each interval.
        options: Further arguments of ``torchmetrics.Metric``.

    Example:
        >>> metric = PairedRewards(["unaided", "trained"])
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
        >>> metric.gain("trained", "unaided").mean
        0.5
    """

    full_state_update = False
    rewards: list[Tensor]

    def __init__(self, arms: Sequence[str], resamples: int = 10_000, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
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

    def relative_gain(self, arm: str, over: str) -> float:
        """Give the mean gain in units of the other arm's mean, over the queries that both have a reward for.

        NaN if that mean is 0, or there are no such queries.
        """
        one, two = self._column(arm), self._column(over)
        both = ~np.isnan(one - two)
        if not both.any() or two[both].mean() == 0:
            return math.nan
        return float((one[both] - two[both]).mean() / abs(two[both].mean()))

    def p_value(self, arm: str, over: str) -> float:
        """Give the p-value of two arms being alike; see `paired_p_value`."""
        return paired_p_value(self._column(arm) - self._column(over), self.resamples)

    def moves(self, arm: str, over: str) -> Moves:
        """Give the shares of queries that one arm made better and worse than the other."""
        metric = HelpHarm()
        metric.update(torch.from_numpy(self._column(arm)), torch.from_numpy(self._column(over)))
        return metric.compute()

    def pair(self, arm: str, over: str) -> NDArray[np.float64]:
        """Give the rewards of two arms, [queries, 2]."""
        return np.stack([self._column(arm), self._column(over)], axis=1)

    @property
    def n(self) -> int:
        """Number of queries."""
        return sum(len(rewards) for rewards in self.rewards)

    def _column(self, arm: str) -> NDArray[np.float64]:
        if not self.n:
            return np.zeros(0)
        table: Tensor = dim_zero_cat(self.rewards)
        return np.asarray(table[:, self.arms.index(arm)].cpu().numpy(), dtype=np.float64)


class Moves(NamedTuple):
    """Shares of queries that an instruction moved; NaN if there were none to compare.

    For rewards of 0 and 1, ``better`` is the help rate (wrong before, right now) and ``worse`` the harm rate (right
    before, wrong now).

    Attributes:
        better: Share with a larger reward than before.
        worse: Share with a smaller one.
    """

    better: float
    worse: float


class HelpHarm(Metric):
    """How often an instruction makes the student's answer better, and how often worse.

    Example:
        >>> metric = HelpHarm()
        >>> metric.update(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
        >>> metric.compute()
        Moves(better=0.25, worse=0.25)
    """

    full_state_update = False
    better: Tensor
    worse: Tensor
    known: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("better", "worse", "known"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rewards: Tensor, before: Tensor) -> None:
        """Take rewards [queries] and those of the same queries before; pairs with a NaN are left out."""
        self.better += (rewards > before).sum()
        self.worse += (rewards < before).sum()
        self.known += (~(rewards - before).isnan()).sum()

    def compute(self) -> Moves:
        """Give the shares."""
        known = int(self.known)
        return Moves(int(self.better) / known, int(self.worse) / known) if known else Moves(math.nan, math.nan)


def nan_mean(values: Tensor) -> Tensor:
    """Mean of what is not NaN; NaN if nothing is left."""
    return values[~values.isnan()].mean() if not values.isnan().all() else torch.tensor(math.nan)
