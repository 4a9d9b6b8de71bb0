"""Baselines against tables worked by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wst.errors import ConfigError
from wst.training.baselines import Baseline, GroupMean, LeaveOneOut, MovingAverage, Unaided

NAN = math.nan
TABLE = [[1.0, 0.0, 0.5], [0.2, NAN, 0.6], [NAN, 0.7, NAN], [NAN, NAN, NAN]]
UNAIDED = [0.25, 0.5, NAN, 0.1]


def seen(decay: float, *batches: list[list[float]]) -> MovingAverage:
    average = MovingAverage(decay)
    for batch in batches:
        average(torch.tensor(batch))
    return average


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (GroupMean(), [[0.5, -0.5, 0.0], [-0.2, 0.0, 0.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (LeaveOneOut(), [[0.75, -0.75, 0.0], [-0.4, 0.0, 0.4], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        (Unaided(), [[0.75, -0.25, 0.25], [-0.3, 0.0, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]),
        # the mean of the six known rewards is 3 / 6
        (MovingAverage(), [[0.5, -0.5, 0.0], [-0.3, 0.0, 0.1], [0.0, 0.2, 0.0], [0.0, 0.0, 0.0]]),
        (seen(0.9, [[0.1]]), [[0.9, -0.1, 0.4], [0.1, 0.0, 0.5], [0.0, 0.6, 0.0], [0.0, 0.0, 0.0]]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_advantages_are_those_worked_by_hand(baseline: Baseline, expected: list[list[float]]) -> None:
    advantages = baseline(torch.tensor(TABLE), torch.tensor(UNAIDED))
    torch.testing.assert_close(advantages, torch.tensor(expected), rtol=0, atol=1e-6)
    assert advantages.isfinite().all()


def test_a_sample_with_nothing_to_compare_with_has_no_leave_one_out_baseline() -> None:
    values = LeaveOneOut().baseline(torch.tensor([[NAN, 0.7, NAN], [0.4, 0.7, NAN]]), None)
    torch.testing.assert_close(
        values, torch.tensor([[0.7, NAN, 0.7], [0.7, 0.4, 0.55]]), rtol=0, atol=1e-6, equal_nan=True
    )


@pytest.mark.parametrize("baseline", [GroupMean(), LeaveOneOut(), Unaided(), seen(0.9, [[0.5]])], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_the_rewards(baseline: Baseline, dtype: torch.dtype) -> None:
    rewards = torch.rand(3, 4, dtype=dtype)
    advantages = baseline(rewards, torch.rand(3))
    assert (advantages.shape, advantages.dtype) == (rewards.shape, dtype)


tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(-10, 10, width=32) | st.just(NAN), min_size=width, max_size=width), min_size=1, max_size=4
    )
)


@given(tables)
def test_leave_one_out_is_the_mean_of_the_others(table: list[list[float]]) -> None:
    advantages = LeaveOneOut()(torch.tensor(table, dtype=torch.float64))
    for row, line in enumerate(table):
        for column, reward in enumerate(line):
            others = [other for i, other in enumerate(line) if i != column and not math.isnan(other)]
            known = others and not math.isnan(reward)
            expected = reward - sum(others) / len(others) if known else 0.0
            assert advantages[row, column].item() == pytest.approx(expected, abs=1e-9)


def test_leave_one_out_does_not_depend_on_the_sample_itself() -> None:
    """This is what keeps the gradient unbiased: E[b grad log pi] is 0."""
    score = {0: -0.3, 1: 0.7}  # d log pi / d preference of arm 1, where pi(1) is 0.3
    expectation = 0.0
    for outcome in itertools.product((0, 1), repeat=3):
        rewards = torch.tensor([[0.2 + 0.7 * arm for arm in outcome]])
        probability = math.prod(0.3 if arm else 0.7 for arm in outcome)
        values = LeaveOneOut().baseline(rewards, None)[0]
        expectation += probability * sum(values[i].item() * score[arm] for i, arm in enumerate(outcome))
    assert expectation == pytest.approx(0.0, abs=1e-6)


def test_moving_average_compares_with_the_batches_before() -> None:
    average = MovingAverage(0.9)
    assert average(torch.tensor([[0.2, 0.6]])).tolist() == [pytest.approx([-0.2, 0.2])]
    assert average.mean.item() == pytest.approx(0.4)
    assert average(torch.tensor([[1.0, NAN]])).tolist() == [pytest.approx([0.6, 0.0])]
    assert average.mean.item() == pytest.approx(0.9 * 0.4 + 0.1 * 1.0)
    assert average(torch.tensor([[NAN, NAN]])).tolist() == [[0.0, 0.0]]
    assert average.mean.item() == pytest.approx(0.46)
    assert average(torch.tensor([[0.0, 0.46]])).tolist() == [pytest.approx([-0.46, 0.0], abs=1e-6)]
    assert average.mean.item() == pytest.approx(0.9 * 0.46 + 0.1 * 0.23)


def test_moving_average_that_starts_with_an_unscored_batch_has_no_past() -> None:
    average = seen(0.9, [[NAN, NAN]])
    assert average.mean.isnan()
    assert average(torch.tensor([[0.2, 0.6]])).tolist() == [pytest.approx([-0.2, 0.2])]


def test_moving_average_without_memory_is_the_last_batch() -> None:
    assert seen(0.0, [[1.0]], [[0.25]]).mean.item() == 0.25


def test_moving_average_goes_on_from_its_state() -> None:
    before = seen(0.8, [[0.1, 0.2]], [[0.9]])
    state: dict[str, Any] = before.state_dict()
    assert set(state) == {"mean"}
    after = MovingAverage(0.8)
    after.load_state_dict(state)
    batch = torch.tensor([[0.4, NAN]])
    assert torch.equal(after(batch), before(batch))
    assert torch.equal(after.mean, before.mean)


@pytest.mark.parametrize("baseline", [GroupMean(), LeaveOneOut(), Unaided()], ids=repr)
def test_the_others_remember_nothing(baseline: Baseline) -> None:
    assert dict(baseline.state_dict()) == {}


@pytest.mark.parametrize(
    ("baseline", "needs_unaided", "min_samples"),
    [(MovingAverage(), False, 1), (GroupMean(), False, 2), (LeaveOneOut(), False, 2), (Unaided(), True, 1)],
    ids=repr,
)
def test_what_they_need(baseline: Baseline, needs_unaided: bool, min_samples: int) -> None:
    assert (baseline.needs_unaided, baseline.min_samples) == (needs_unaided, min_samples)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0, NAN])
def test_an_impossible_decay_is_an_error(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"MovingAverage: decay must be in \[0, 1\), got"):
        MovingAverage(decay)


def test_missing_unaided_rewards_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"Unaided: the unaided rewards \[queries\] are missing"):
        Unaided()(torch.zeros(1, 2))


def test_a_baseline_of_ones_own_needs_one_method() -> None:
    class Constant(Baseline):
        def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
            return torch.full_like(rewards, 0.5)

    assert Constant()(torch.tensor([[1.0, NAN]])).tolist() == [[0.5, 0.0]]
