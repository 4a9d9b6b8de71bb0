"""Figures of an evaluation: intervals against scipy's own, pairs, and what is missing."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from wst.errors import ConfigError
from wst.evaluation.metrics import (
    Estimate,
    PairedRewards,
    estimate_gain,
    estimate_mean,
    help_and_harm,
    holm,
    paired_p_value,
    relative_gain,
    studentized_interval,
)

NAN = math.nan
VALUES = np.array([0.1, 0.4, 0.4, 0.9, 5.3, -0.2, 0.0, 0.7])


def same(left: Estimate, right: Estimate) -> bool:
    return (left.mean, left.low, left.high) == pytest.approx((right.mean, right.low, right.high), nan_ok=True)


def test_the_interval_of_right_and_wrong_answers_is_wilsons() -> None:
    """By its formula, with z = 1.96: centre (p + z^2 / 2n) / (1 + z^2 / n), half width beside it."""
    z, n, p = stats.norm.ppf(0.975), 10, 0.7
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert same(estimate_mean(np.array([1.0] * 7 + [0.0] * 3), True), Estimate(p, centre - half, centre + half))


def test_rows_that_all_agree_are_not_certain() -> None:
    ten = estimate_mean(np.ones(10), True)
    assert (ten.mean, ten.high) == (1.0, pytest.approx(1.0))
    assert ten.low == pytest.approx(0.722, abs=1e-3)
    gain = estimate_gain(np.zeros(10), True)
    assert (gain.low, gain.high) == pytest.approx((-0.231, 0.231), abs=1e-3)
    assert same(estimate_mean(np.full(10, 0.7), False), Estimate(0.7, NAN, NAN))
    assert same(estimate_gain(np.zeros(10), False), Estimate(0.0, NAN, NAN))


def test_the_interval_of_a_gain_of_right_answers_is_worked_by_hand() -> None:
    """Of 10 queries 4 gain and 1 loses: (4 + 1) / 12 and (1 + 1) / 12, difference 0.25, variance (7/12 - 1/16) / 12."""
    half = stats.norm.ppf(0.975) * math.sqrt((7 / 12 - 1 / 16) / 12)
    estimate = estimate_gain(np.array([1.0] * 4 + [-1.0] + [0.0] * 5), True)
    assert same(estimate, Estimate(0.3, 0.25 - half, 0.25 + half))


def test_an_interval_is_never_shorter_than_students() -> None:
    student = stats.t.interval(0.95, len(VALUES) - 1, VALUES.mean(), stats.sem(VALUES))
    estimate = studentized_interval(VALUES, 2000)
    assert estimate.low <= student[0] + 1e-12
    assert estimate.high > student[1]  # skewed to the right: one value is far above the others


def test_the_bootstrap_of_two_values_has_no_more_to_say_than_students() -> None:
    """Of two values a resample is one of them, twice, and has no spread, or both, and has their mean."""
    student = stats.t.interval(0.95, 1, 0.5, 0.5)
    assert same(studentized_interval(np.array([0.0, 1.0])), Estimate(0.5, *student))


def test_the_interval_of_many_values_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    estimate = studentized_interval(values, 2000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_the_same_values_have_the_same_interval() -> None:
    assert studentized_interval(VALUES, 200) == studentized_interval(VALUES, 200)
    assert studentized_interval(VALUES, 200) != studentized_interval(VALUES, 200, seed=1)


def test_many_values_are_resampled_in_batches_that_fit_memory() -> None:
    estimate = studentized_interval(np.arange(30_000) % 2.0, 100)  # 66 resamples at a time
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.5, 0.494, 0.506), abs=2e-3)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("estimate", [estimate_mean, estimate_gain])
def test_nan_is_left_out_and_nothing_is_nothing(estimate: Any, binary: bool) -> None:
    assert all(map(math.isnan, estimate(np.array([]), binary)))
    assert all(map(math.isnan, estimate(np.array([NAN, NAN]), binary)))
    some = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    assert estimate(np.array([NAN, *some, NAN]), binary) == estimate(some, binary)


def test_one_value_has_no_interval_unless_it_is_right_or_wrong() -> None:
    assert same(estimate_mean(np.array([0.7, NAN]), False), Estimate(0.7, NAN, NAN))
    assert estimate_mean(np.array([1.0]), True).low == pytest.approx(0.207, abs=1e-3)


def test_a_relative_gain_has_the_bounds_of_fieller() -> None:
    """The bounds are the ratios r for which Student's t does not tell differences - r * before from 0."""
    before, after = np.array([2.0, 3.0, 4.0, 3.5, 2.5]), np.array([3.0, 3.5, 6.0, 4.0, 4.5])
    for sign in (1.0, -1.0):
        found = relative_gain(after - before, sign * before)
        assert found.mean == pytest.approx(6.0 / 15.0)
        for bound in (found.low, found.high):
            assert stats.ttest_1samp(after - before - bound * before, 0.0).pvalue == pytest.approx(0.05)
    uncertain = relative_gain(np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 0.0, 1.0, 0.0]))
    assert same(uncertain, Estimate(3.0, NAN, NAN))
    assert same(relative_gain(np.array([1.0, NAN]), np.array([2.0, 1.0])), Estimate(0.5, NAN, NAN))
    assert same(relative_gain(np.array([1.0]), np.array([0.0])), Estimate(NAN, NAN, NAN))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "n"),
    [
        ("right in 90%", 10),
        ("gain: help 20%, harm 5%", 10),
        ("exponential", 20),
        ("relative gain: right in 20%, then in 31%", 50),
    ],
)
def test_intervals_cover_the_mean(case: str, n: int) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "coverage.py"
    assert runpy.run_path(str(script))["coverage"](case, n, 500) > 0.9


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
    assert same(arms["unaided"], estimate_mean(np.array([0.0, 0.0, 1.0, 0.0]), True))
    assert same(arms["trained"], estimate_mean(np.array([1.0, 0.0, 1.0, 1.0]), True))
    assert same(metric.gain("trained", "unaided"), estimate_gain(np.array([1.0, 0.0, 0.0, 1.0]), True))
    assert metric.gain("unaided", "trained").mean == -0.5


def test_a_gain_is_paired_and_so_surer_than_the_arms() -> None:
    base = np.linspace(0, 10, 40)
    metric = paired(np.stack([base, base + 0.5 + base % 0.5], axis=1).tolist())
    gain, arms = metric.gain("trained", "unaided"), metric.compute()
    assert 0 < gain.low < gain.mean < gain.high
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
def test_arms_of_the_same_mean_are_told_apart_as_often_as_the_level_says() -> None:
    """1,000 pairs of arms with the same mean: 5% are rejected."""
    generator = np.random.default_rng(0)
    rejected = 0
    for number in range(1000):
        shared = generator.normal(size=100)  # a hard query is hard for both
        one, two = (shared + generator.exponential(size=100) for _ in range(2))
        rejected += paired_p_value(one - two, 999, seed=number) < 0.05
    assert 30 <= rejected <= 70


def test_holm_is_worked_by_hand() -> None:
    assert holm([0.04, 0.01, NAN, 0.02]) == pytest.approx([0.04, 0.03, NAN, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_help_and_harm_count_only_known_pairs() -> None:
    assert help_and_harm(np.array([1.0, -1.0, NAN, 1.0, NAN])) == (2 / 3, 1 / 3)
    assert all(map(math.isnan, help_and_harm(np.array([NAN]))))


def test_arms_have_p_values() -> None:
    metric = PairedRewards(["a", "b"])
    metric.update(torch.tensor([[0.0, 1.0]] * 5 + [[1.0, 0.0]]))
    assert metric.p_value("b", "a") == pytest.approx(stats.binomtest(1, 6).pvalue)
