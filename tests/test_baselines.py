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
from wst.training.baselines import (
    Baseline,
    GroupMean,
    JamesStein,
    LeaveOneOut,
    MovingAverage,
    QueryTracker,
    Unaided,
)

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


@pytest.mark.parametrize(
    "baseline", [GroupMean(), LeaveOneOut(), Unaided(), JamesStein(), seen(0.9, [[0.5]])], ids=repr
)
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


@given(st.floats(-10, 10, width=32), st.integers(2, 9))
def test_equal_rewards_leave_no_advantage_over(reward: float, samples: int) -> None:
    """Rounding must not: Adam makes a whole step of the smallest gradient."""
    rewards = torch.full((3, samples), reward)
    for baseline in (GroupMean(), LeaveOneOut(), JamesStein(), seen(0.9, [[reward]])):
        assert (baseline(rewards) == 0).all()
        assert (baseline(rewards) == 0).all()


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


def expected_gradient(advantages: Any, queries: int, samples: int) -> list[float]:
    """Of the success of queries with chances of their own, over all outcomes: d/d preference of each query's arm 1."""
    chances = [0.2, 0.5, 0.9][:queries]
    gradient = [0.0] * queries
    for outcome in itertools.product((0, 1), repeat=queries * samples):
        arms = torch.tensor(outcome).view(queries, samples)
        probability = math.prod(chances[i] if arm else 1 - chances[i] for i in range(queries) for arm in arms[i])
        found = advantages(arms.double())
        for i in range(queries):
            scores = arms[i].double() - chances[i]  # d log pi / d preference of arm 1
            gradient[i] += probability * float((found[i] * scores).sum()) / samples
    return gradient


@pytest.mark.parametrize(("samples", "baseline"), [(2, JamesStein()), (3, JamesStein()), (1, JamesStein())], ids=repr)
def test_shrinkage_leaves_the_gradient_as_it_is(samples: int, baseline: Baseline) -> None:
    assert expected_gradient(baseline, 3, samples) == pytest.approx([0.16, 0.25, 0.09], abs=1e-9)


def test_the_tracker_leaves_the_gradient_as_it_is() -> None:
    def advantages(rewards: Tensor) -> Tensor:
        tracker = QueryTracker(0.5)
        tracker.set_extra_state({"queries": {"a": [3.0, 0.3], "b": [1.0, 0.9]}, "all": [4.0, 0.4]})
        return tracker(rewards, None, ["a", "b", "c"])

    assert expected_gradient(advantages, 3, 2) == pytest.approx([0.16, 0.25, 0.09], abs=1e-9)


def test_shrinkage_is_worked_by_hand() -> None:
    """Query 0: noise of the others 0.5 / 2 = 0.25 a sample, their means 0.5 and 1, spread 0.125 - 0.125 = 0."""
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    values = JamesStein().baseline(table, None)
    assert values[0].tolist() == pytest.approx([0.75, 0.75])  # all weight on the mean of the others
    # Query 2: noise 0.5, means 0.5 and 0.5: no spread either.
    assert values[2].tolist() == pytest.approx([0.5, 0.5])
    alike_within = torch.tensor([[0.1, 0.3], [0.5, 0.5], [0.9, 0.9]], dtype=torch.float64)
    assert JamesStein().baseline(alike_within, None)[0].tolist() == pytest.approx([0.3, 0.1])  # no noise: leave one out
    two = torch.tensor([[0.1, 0.3], [0.5, 0.7]])
    torch.testing.assert_close(JamesStein()(two), LeaveOneOut()(two))
    # Noise 0.02 among the others, of means 0.2 and 0.8: spread 0.18 - 0.01; a sample of query 0 is compared with one.
    mixed = torch.tensor([[0.0, 1.0, NAN], [0.1, 0.3, NAN], [0.7, 0.9, NAN]], dtype=torch.float64)
    weight = 0.02 / (0.02 + 0.17)
    expected = [(1 - weight) * 1.0 + weight * 0.5, (1 - weight) * 0.0 + weight * 0.5]
    assert JamesStein().baseline(mixed, None)[0, :2].tolist() == pytest.approx(expected)
    assert JamesStein()(mixed)[:, 2].tolist() == [0.0] * 3


def test_shrinkage_has_less_variance_than_leave_one_out() -> None:
    """Exactly, over all outcomes of three alike queries with two samples."""
    second = dict.fromkeys(("james stein", "leave one out"), 0.0)
    for outcome in itertools.product((0.0, 1.0), repeat=6):
        table = torch.tensor(outcome, dtype=torch.float64).view(3, 2)
        for name, baseline in (("james stein", JamesStein()), ("leave one out", LeaveOneOut())):
            second[name] += float((baseline(table) * (table - 0.5)).sum(dim=1).square().mean()) / 64
    assert second["james stein"] < 0.9 * second["leave one out"]


def test_the_tracker_compares_with_the_query_s_own_past() -> None:
    tracker = QueryTracker(0.5, prior=1.0)
    first = tracker(torch.tensor([[1.0], [0.0], [NAN]]), None, ["a", "b", "c"])
    assert first.tolist() == [[1.0], [-1.0], [0.0]]  # each with the mean of the other queries
    # a: past 1.0 weighs 0.5, the mean of all, 0.5, weighs 1; c has no past
    second = tracker(torch.tensor([[0.0], [1.0]]), None, ["a", "c"])
    assert second.flatten().tolist() == pytest.approx([-1 / 1.5, 0.5])
    state = tracker.get_extra_state()
    assert state["queries"] == {"a": [1.5, pytest.approx(0.5 / 1.5)], "b": [1, 0.0], "c": [1, 1.0]}
    assert state["all"] == [3.0, pytest.approx(1.5 / 3)]
    # several samples: past 1/3 weighs 0.75, prior 0.5 weighs 1, the other sample weighs 1
    third = tracker(torch.tensor([[1.0, 0.0]]), None, ["a"])
    assert third.flatten().tolist() == pytest.approx([1 - 0.75 / 2.75, 0 - 1.75 / 2.75])


def test_a_tracked_query_with_nothing_to_compare_with_teaches_nothing() -> None:
    assert QueryTracker()(torch.tensor([[1.0]]), None, ["a"]).tolist() == [[0.0]]


def test_a_tracker_goes_on_from_its_state() -> None:
    before, after = QueryTracker(0.8), QueryTracker(0.8)
    before(torch.tensor([[0.1, 0.2], [0.7, NAN]]), None, ["a", "b"])
    after.load_state_dict(before.state_dict())
    batch = torch.tensor([[0.4, NAN]])
    assert torch.equal(after(batch, None, ["b"]), before(batch, None, ["b"]))
    assert after.get_extra_state() == before.get_extra_state()


@pytest.mark.parametrize("state", [{}, {"queries": [1], "all": [0, 0]}, {"queries": {"a": 1.0}, "all": [0, 0]}, None])
def test_the_state_of_something_else_is_refused(state: Any) -> None:
    with pytest.raises(RuntimeError, match="not that of a QueryTracker"):
        QueryTracker().load_state_dict({"_extra_state": state})


@pytest.mark.parametrize(("settings", "words"), [({"decay": 1.1}, "decay"), ({"prior": 0.0}, "prior")], ids=str)
def test_an_impossible_tracker_is_an_error(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=f"QueryTracker: {words} must be"):
        QueryTracker(**settings)


def test_a_tracker_needs_an_id_for_each_query() -> None:
    with pytest.raises(ConfigError, match="got 0 ids for 1 queries"):
        QueryTracker()(torch.tensor([[1.0]]))
