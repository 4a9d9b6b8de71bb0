"""Figures of an evaluation: intervals against scipy's own, pairs, and what is missing."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from wst.errors import ConfigError
from wst.evaluation.metrics import (
    Estimate,
    PairedRewards,
    bootstrap_mean,
    help_and_harm,
    holm,
    nan_mean,
    paired_p_value,
)

NAN = math.nan
VALUES = np.array([0.1, 0.4, 0.4, 0.9, 5.3, -0.2, 0.0, 0.7])


def same(left: Estimate, right: Estimate) -> bool:
    return (left.mean, left.low, left.high) == pytest.approx((right.mean, right.low, right.high), nan_ok=True)


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    interval = stats.bootstrap(
        (VALUES,), np.mean, n_resamples=500, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert same(bootstrap_mean(VALUES, 500, seed=3), Estimate(VALUES.mean(), interval.low, interval.high))


def test_the_interval_of_two_values_is_worked_by_hand() -> None:
    """The mean of a resample is 0 or 1 with a probability of 1/4 each: more than the 2.5% left out on each side."""
    assert same(bootstrap_mean(np.array([0.0, 1.0])), Estimate(0.5, 0.0, 1.0))


def test_the_interval_of_many_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    estimate = bootstrap_mean(values, 2000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_same_values_have_the_same_interval() -> None:
    assert bootstrap_mean(VALUES, 200) == bootstrap_mean(VALUES, 200)
    assert bootstrap_mean(VALUES, 200) != bootstrap_mean(VALUES, 200, seed=1)


def test_many_values_are_resampled_in_batches_that_fit_memory() -> None:
    estimate = bootstrap_mean(np.arange(30_000) % 2.0, 100)  # 66 resamples at a time
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.5, 0.494, 0.506), abs=2e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Estimate(NAN, NAN, NAN)),
        ([NAN, NAN], Estimate(NAN, NAN, NAN)),
        ([0.7], Estimate(0.7, NAN, NAN)),
        ([NAN, 0.7], Estimate(0.7, NAN, NAN)),
        ([0.7, 0.7, 0.7], Estimate(0.7, 0.7, 0.7)),
        ([0.7, NAN, 0.7], Estimate(0.7, 0.7, 0.7)),
    ],
)
def test_too_few_or_equal_values(values: list[float], expected: Estimate) -> None:
    assert same(bootstrap_mean(np.array(values, dtype=float), 50), expected)


def test_nan_is_left_out() -> None:
    assert bootstrap_mean(np.array([NAN, *VALUES, NAN]), 200) == bootstrap_mean(VALUES, 200)


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (Estimate(0.5, 0.25, 0.75), '{"mean": 0.5, "ci95": [0.25, 0.75]}'),
        (Estimate(0.5, NAN, NAN), '{"mean": 0.5, "ci95": [null, null]}'),
        (Estimate(NAN, NAN, NAN), '{"mean": null, "ci95": [null, null]}'),
    ],
)
def test_an_estimate_is_json_with_null_for_nan(estimate: Estimate, expected: str) -> None:
    assert json.dumps(estimate.to_dict(), allow_nan=False) == expected


# --- Paired rewards


def paired(*batches: list[list[float]]) -> PairedRewards:
    metric = PairedRewards(["unaided", "trained"], resamples=500)
    for batch in batches:
        metric.update(torch.tensor(batch))
    return metric


def test_arms_and_gains_are_over_all_batches() -> None:
    metric = paired([[0.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 1.0]])
    arms = metric.compute()
    assert metric.n == 4
    assert list(arms) == ["unaided", "trained"]
    assert same(arms["unaided"], bootstrap_mean(np.array([0.0, 0.0, 1.0, 0.0]), 500))
    assert same(arms["trained"], bootstrap_mean(np.array([1.0, 0.0, 1.0, 1.0]), 500))
    assert same(metric.gain("trained", "unaided"), bootstrap_mean(np.array([1.0, 0.0, 0.0, 1.0]), 500))
    assert metric.gain("unaided", "trained").mean == -0.5


def test_a_gain_is_paired_and_so_surer_than_the_arms() -> None:
    base = np.linspace(0, 10, 40)
    metric = paired(np.stack([base, base + 0.5], axis=1).tolist())
    assert same(metric.gain("trained", "unaided"), Estimate(0.5, 0.5, 0.5))
    arms = metric.compute()
    assert arms["trained"].low < arms["unaided"].high


def test_a_gain_is_over_the_queries_that_both_arms_have_a_reward_for() -> None:
    metric = paired([[0.0, 1.0], [NAN, 1.0], [1.0, NAN], [0.5, 0.0]])
    assert metric.n == 4
    assert metric.gain("trained", "unaided").mean == pytest.approx(0.25)
    assert metric.compute()["unaided"].mean == pytest.approx(0.5)
    assert metric.compute()["trained"].mean == pytest.approx(2 / 3)


def test_without_queries_there_is_nothing_to_say() -> None:
    metric = paired()
    assert metric.n == 0
    assert same(metric.gain("trained", "unaided"), Estimate(NAN, NAN, NAN))
    assert same(metric.compute()["trained"], Estimate(NAN, NAN, NAN))


def test_reset_forgets() -> None:
    metric = paired([[0.0, 1.0]])
    metric.reset()
    assert metric.n == 0


def test_rewards_are_kept_exactly() -> None:
    assert paired([[0.1, 0.1]]).compute()["trained"].mean == float(torch.tensor(0.1))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3), (2, 2, 1)])
def test_rewards_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"PairedRewards: expected \[queries, 2\], got \["):
        paired().update(torch.zeros(shape))


@pytest.mark.parametrize(("values", "expected"), [([1.0, NAN, 3.0], 2.0), ([NAN, NAN], NAN), ([], NAN), ([0.5], 0.5)])
def test_nan_mean(values: list[float], expected: float) -> None:
    assert nan_mean(torch.tensor(values)).item() == pytest.approx(expected, nan_ok=True)


def test_the_p_value_of_right_and_wrong_answers_is_the_exact_binomial_one() -> None:
    differences = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 40 + [NAN])
    assert paired_p_value(differences) == pytest.approx(stats.binomtest(2, 11).pvalue, abs=1e-12)
    many = np.array([1.0] * 60 + [-1.0] * 40)
    assert paired_p_value(many) == pytest.approx(stats.binomtest(40, 100).pvalue, abs=0.01)


def test_the_p_value_knows_no_difference_and_no_data() -> None:
    assert paired_p_value(np.zeros(5)) == 1.0
    assert paired_p_value(np.array([0.0, 1.0])) == 1.0
    assert math.isnan(paired_p_value(np.array([NAN])))
    assert paired_p_value(np.array([2.0, 3.0])) == 0.5  # two rows cannot show more


@pytest.mark.slow
def test_alike_arms_are_told_apart_as_often_as_the_level_says_and_intervals_cover() -> None:
    """1,000 pairs of arms with the same mean: 5% are rejected, and 95% of the intervals hold the true mean."""
    generator = np.random.default_rng(0)
    rejected = covered = 0
    for number in range(1000):
        shared = generator.normal(size=100)  # a hard query is hard for both
        one, two = (shared + generator.exponential(size=100) for _ in range(2))
        rejected += paired_p_value(one - two, 999, seed=number) < 0.05
        estimate = bootstrap_mean(one, 999, seed=number)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 30 <= rejected <= 70
    assert 930 <= covered <= 970


def test_holm_is_worked_by_hand() -> None:
    assert holm([0.04, 0.01, NAN, 0.02]) == pytest.approx([0.04, 0.03, NAN, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_help_and_harm_count_only_known_pairs() -> None:
    assert help_and_harm(np.array([1.0, 0.0, NAN, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 0.0, NAN])) == (2 / 3, 1 / 3)
    assert all(map(math.isnan, help_and_harm(np.array([NAN]), np.array([1.0]))))


def test_arms_have_p_values() -> None:
    metric = PairedRewards(["a", "b"])
    metric.update(torch.tensor([[0.0, 1.0]] * 5 + [[1.0, 0.0]]))
    assert metric.p_value("b", "a") == pytest.approx(stats.binomtest(1, 6).pvalue)
