"""Statistics of an evaluation: means, paired gains, and how certain they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wst.errors import ConfigError

Values = NDArray[np.float64]


def json_number(value: float) -> float | None:
    """Return the number, or None, which JSON writes as null, if it is NaN or infinite."""
    return value if math.isfinite(value) else None


def is_binary(rewards: Values) -> bool:
    """Return whether all known rewards are 0 or 1."""
    return bool(np.isin(rewards[~np.isnan(rewards)], (0.0, 1.0)).all())


class Estimate(NamedTuple):
    """A mean with its 95% confidence interval; NaN where there are too few values.

    A tuple, because torchmetrics walks through the result of ``compute`` and refuses frozen dataclasses.
    """

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Return ``{"mean": ..., "ci95": [low, high]}`` with None for NaN."""
        return {"mean": json_number(self.mean), "ci95": [json_number(self.low), json_number(self.high)]}


def estimate_mean(rewards: Values, binary: bool, resamples: int = 10_000) -> Estimate:
    """Return the mean of rewards and its 95% confidence interval.

    Args:
        rewards: [n]; NaN is left out.
        binary: Whether rewards can only be 0 or 1; the interval is then Wilson's (1927), which is also good where all
            rows agree. Otherwise it is that of `studentized_interval`.
        resamples: Number of bootstrap resamples.
    """
    known = rewards[~np.isnan(rewards)]
    n = len(known)
    if not binary or not n:
        return studentized_interval(known, resamples)
    interval = stats.binomtest(int(known.sum()), n).proportion_ci(method="wilson")
    return Estimate(float(known.mean()), float(interval.low), float(interval.high))


def estimate_gain(differences: Values, binary: bool, resamples: int = 10_000) -> Estimate:
    """Return the mean of paired differences and its 95% confidence interval.

    Args:
        differences: [n]; NaN is left out.
        binary: Whether differences can only be -1, 0 or 1; the interval is then that of Bonett and Price (2012) for
            paired proportions, the counterpart of Wilson's. Otherwise it is that of `studentized_interval`.
        resamples: Number of bootstrap resamples.
    """
    known = differences[~np.isnan(differences)]
    n = len(known)
    if not binary or not n:
        return studentized_interval(known, resamples)
    up, down = (float((known == sign).sum() + 1) / (n + 2) for sign in (1, -1))
    half = float(stats.norm.ppf(0.975)) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return Estimate(float(known.mean()), max(-1.0, up - down - half), min(1.0, up - down + half))


def studentized_interval(values: Values, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """Return the mean and the union of two 95% intervals: Student's t, and bootstrap-t (Efron and Tibshirani 1993).

    Bootstrap-t covers skewed values, for which Student's t is too short. It is too short itself where most of a few
    values are equal. docs/compare.md has the measured coverage.

    Args:
        values: [n] without NaN.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resampling, so that equal values have equal intervals.

    Returns:
        The interval is NaN if all values are equal, because they say nothing about the spread.
    """
    n = len(values)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * abs(mean):
        return Estimate(mean, math.nan, math.nan)
    spread = float(values.std(ddof=1))
    student = float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)
    generator = np.random.default_rng(seed)
    batch = max(1, 2_000_000 // n)
    scaled = []
    for start in range(0, resamples, batch):
        samples = values[generator.integers(0, n, (min(batch, resamples - start), n))]
        spreads = samples.std(axis=1, ddof=1)
        varied = spreads > 1e-12 * spread
        scaled.append((samples.mean(axis=1)[varied] - mean) / spreads[varied])
    low, high = np.quantile(np.concatenate(scaled), [0.025, 0.975]) if any(map(len, scaled)) else (-student, student)
    return Estimate(mean, mean - spread * max(student, float(high)), mean + spread * max(student, -float(low)))


def paired_p_value(differences: Values, resamples: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a mean paired difference of 0, by flipping signs (scipy's permutation test).

    It is exact where all flips can be tried, and keeps its level with few rows, where a bootstrap's would not.

    Args:
        differences: [n]; NaN is left out.
        resamples: Number of random flips, used if there are more possible flips than that.
        seed: Seed of the flips, so that equal differences have equal p-values.

    Returns:
        At least 2 / (resamples + 1) where flips are drawn, at most 1; NaN if no difference is known.
    """
    known = differences[~np.isnan(differences)]
    if len(known) == 0:
        return math.nan
    moved = known[known != 0]  # flipping a zero changes nothing
    if len(moved) < 2:  # the only flip gives a mean just as far from 0
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
    """Return p-values adjusted for testing several hypotheses at once (Holm 1979).

    NaN stays NaN and does not count as a hypothesis.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(order) - rank)))
        adjusted[i] = largest
    return adjusted


def relative_gain(differences: Values, before: Values) -> Estimate:
    """Return the mean gain as a share of the mean reward before, with its 95% interval by Fieller (1954).

    Args:
        differences: [n]; queries with NaN are left out.
        before: [n]

    Returns:
        mean(differences) / abs(mean(before)); NaN if the denominator is 0 or no difference is known. The interval is
        NaN if the denominator is not shown to differ from 0, because the ratio then has no bounds.

    >>> relative_gain(np.array([2.0, math.nan]), np.array([1.0, 5.0])).mean
    2.0
    """
    known = ~np.isnan(differences)
    n = int(known.sum())
    if not n or before[known].mean() == 0:
        return Estimate(math.nan, math.nan, math.nan)
    gain, base = float(differences[known].mean()), float(before[known].mean())
    ratio = gain / abs(base)
    if n < 2:
        return Estimate(ratio, math.nan, math.nan)
    # The ratios r for which differences - r * before has a mean that Student's t does not tell from 0.
    t2 = float(stats.t.ppf(0.975, n - 1)) ** 2 / n
    (vary, both), (_, noise) = np.cov(differences[known], before[known] * math.copysign(1.0, base)).tolist()
    square, half = base**2 - t2 * noise, gain * abs(base) - t2 * both
    if square <= 0:
        return Estimate(ratio, math.nan, math.nan)
    root = math.sqrt(max(0.0, half**2 - square * (gain**2 - t2 * vary)))
    return Estimate(ratio, (half - root) / square, (half + root) / square)


def help_and_harm(differences: Values) -> tuple[float, float]:
    """Return the shares of queries with a larger and with a smaller reward than before.

    For rewards of 0 and 1 these are the help rate (wrong before, right now) and the harm rate (right before, wrong
    now).

    Args:
        differences: [n] of the reward and the one before; NaN is left out.

    Returns:
        Two shares; NaN if no difference is known.

    >>> help_and_harm(np.array([1.0, -1.0, 0.0, 0.0]))
    (0.25, 0.25)
    """
    known = int((~np.isnan(differences)).sum())
    if not known:
        return math.nan, math.nan
    return int((differences > 0).sum()) / known, int((differences < 0).sum()) / known


def gain_by_length(rewards: Values, lengths: Values) -> float:
    """Return the part of a mean gain that goes with longer answers: reward per unit of length, times the extra length.

    The slope of reward on length is the least-squares slope over both arms, each arm centred on its own mean
    (analysis of covariance), so that other differences between the arms do not enter it.

    Args:
        rewards: [n, 2], columns: the arm that gains, the arm it is compared with. Rows with a NaN are left out.
        lengths: [n, 2], lengths of the answers.

    Returns:
        A part of the mean gain, in units of the reward; NaN if no row is known or the answers of each arm are all
        equally long.

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
    """Rewards of several arms on the same queries: means, gains of one arm over another, and p-values.

    Args:
        arms: Names of the arms, in the order of the columns.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value.
        options: Further arguments of ``torchmetrics.Metric``.

    >>> import torch
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
        """Add rewards [queries, arms]; NaN for a response that could not be scored.

        Raises:
            ConfigError: If the number of columns is not the number of arms.
        """
        if rewards.ndim != 2 or rewards.shape[1] != len(self.arms):
            raise ConfigError(f"PairedRewards: expected [queries, {len(self.arms)}], got {list(rewards.shape)}")
        self.rewards.append(rewards.double())

    def compute(self) -> dict[str, Estimate]:
        """Return the mean and interval of every arm."""
        return {arm: estimate_mean(self.column(arm), self.binary, self.resamples) for arm in self.arms}

    def gain(self, arm: str, over: str) -> Estimate:
        """Return the mean difference of two arms over the queries with both rewards."""
        return estimate_gain(self.column(arm) - self.column(over), self.binary, self.resamples)

    def p_value(self, arm: str, over: str) -> float:
        """Return the p-value of the two arms having the same mean; see `paired_p_value`."""
        return paired_p_value(self.column(arm) - self.column(over), self.resamples)

    def column(self, arm: str) -> Values:
        """Return the rewards of an arm, [queries]."""
        if not self.n:
            return np.zeros(0)
        table: Tensor = dim_zero_cat(self.rewards)
        return np.asarray(table[:, self.arms.index(arm)].cpu().numpy(), dtype=np.float64)

    @property
    def binary(self) -> bool:
        """Whether all rewards are 0 or 1."""
        return all(is_binary(self.column(arm)) for arm in self.arms)

    @property
    def n(self) -> int:
        """Number of queries."""
        return sum(len(rewards) for rewards in self.rewards)
