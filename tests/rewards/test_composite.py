"""The weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import jsonargparse
import pytest

from wst.errors import ConfigError, ContractError
from wst.rewards import ExactMatch, LastNumber, Length, Reward, WeightedSum
from wst.rewards.base import score
from wst.types import Instruction, Query, Response, Rollout

if TYPE_CHECKING:
    import torch


class Fixed(Reward):
    """Returns the numbers it was constructed with."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.devices: list[object] = []

    def setup(self, device: torch.device) -> None:
        self.devices.append(device)

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return self.values


def rollouts(count: int) -> list[Rollout]:
    return [Rollout(Query(str(i), "?", target="42"), None, Response("It is 42")) for i in range(count)]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, [11.0, 22.0]),
        ({}, [11.0, 22.0]),
        ({"a": 2.0}, [12.0, 24.0]),
        ({"a": 0.5, "b": -1}, [-9.5, -19.0]),
        ({"a": 0}, [10.0, 20.0]),
    ],
)
def test_total_is_the_weighted_sum_and_parts_are_logged_unweighted(
    weights: dict[str, float] | None, expected: list[float]
) -> None:
    reward = WeightedSum({"a": Fixed(1.0, 2.0), "b": Fixed(10.0, 20.0)}, weights)
    scores = score(reward, rollouts(2))
    assert scores.total == expected
    assert scores.parts == {"a": [1.0, 2.0], "b": [10.0, 20.0]}
    assert reward.score(rollouts(2)) == expected


def test_nan_of_a_weighted_part_makes_that_total_nan() -> None:
    scores = score(WeightedSum({"a": Fixed(math.nan, 2.0), "b": Fixed(10.0, 20.0)}), rollouts(2))
    assert scores.total == pytest.approx([math.nan, 22.0], nan_ok=True)
    assert scores.parts["b"] == [10.0, 20.0]


def test_nan_of_a_part_without_weight_is_logged_alone() -> None:
    scores = score(WeightedSum({"a": Fixed(math.nan, 2.0), "b": Fixed(10.0, 20.0)}, {"a": 0.0}), rollouts(2))
    assert scores.total == [10.0, 20.0]
    assert scores.parts["a"] == pytest.approx([math.nan, 2.0], nan_ok=True)


def test_parts_of_nested_sums_are_logged_with_their_path() -> None:
    inner = WeightedSum({"x": Fixed(1.0), "y": Fixed(2.0)})
    outer = WeightedSum({"deep": WeightedSum({"inner": inner}), "z": Fixed(5.0)}, {"deep": 10.0})
    scores = score(outer, rollouts(1))
    assert scores.total == [35.0]
    assert scores.parts == {
        "deep": [3.0],
        "deep/inner": [3.0],
        "deep/inner/x": [1.0],
        "deep/inner/y": [2.0],
        "z": [5.0],
    }


def test_failed_responses_reach_no_part() -> None:
    failed = Rollout(Query("f", "?"), None, Response("", error="timeout"))  # no target: ExactMatch would raise
    scores = score(WeightedSum({"match": ExactMatch()}), [failed, *rollouts(1)])
    assert scores.total == pytest.approx([math.nan, 0.0], nan_ok=True)
    assert scores.parts["match"] == pytest.approx([math.nan, 0.0], nan_ok=True)


def test_setup_reaches_every_part_at_any_depth() -> None:
    a, b = Fixed(), Fixed()
    device = cast("torch.device", "cpu")  # any object will do; importing torch is slow
    WeightedSum({"a": a, "inner": WeightedSum({"b": b})}, {"a": 0.0}).setup(device)
    assert a.devices == b.devices == ["cpu"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"reward a: expected a list of 2 numbers"),
        ([1.0, None], r"reward a: expected numbers, got None"),
        ([1.0, math.inf], r"reward a: got inf"),
    ],
)
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_every_part_is_held_to_the_contract(values: list[Any], message: str, weight: float) -> None:
    with pytest.raises(ContractError, match=message):
        WeightedSum({"a": Fixed(*values)}, {"a": weight}).score(rollouts(2))


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([], None, r"parts is empty"),
        (["a/b"], None, r"part name 'a/b' is empty or contains '/'"),
        ([""], None, r"part name '' is empty or contains '/'"),
        (["a", "b"], {"c": 1.0}, r"weights names 'c', which is not a part; the parts are 'a', 'b'"),
        (["a"], {"a": math.nan}, r"weight of 'a' must be finite, got nan"),
        (["a"], {"a": -math.inf}, r"weight of 'a' must be finite, got -inf"),
    ],
)
def test_impossible_settings_are_refused(parts: list[str], weights: dict[str, float] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        WeightedSum({name: Fixed() for name in parts}, weights)
    assert "\n" not in str(caught.value)


def test_constructible_from_a_configuration() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    config = parser.parse_object(
        {
            "reward": {
                "class_path": "wst.rewards.composite.WeightedSum",
                "init_args": {
                    "parts": {
                        "right": {"class_path": "wst.rewards.text.LastNumber", "init_args": {"tolerance": 0.5}},
                        "short": {"class_path": "wst.rewards.Length", "init_args": {"limit": 2, "of": "response"}},
                    },
                    "weights": {"short": 0.5},
                },
            }
        }
    )
    reward = parser.instantiate(config).reward
    assert isinstance(reward, WeightedSum)
    assert [type(part) for part in reward.parts.values()] == [LastNumber, Length]
    assert score(reward, rollouts(1)).total == [1.25]


def test_an_instruction_leaks_if_any_part_says_so() -> None:
    reward = WeightedSum({"exact": ExactMatch(), "number": LastNumber(), "brief": Length(9)})
    query = Query("1", "?", target="about 42")
    texts = ["It is 42.", "It is about 42 or so.", "Count."]
    told = [Rollout(query, Instruction(text), Response("")) for text in texts]
    assert reward.leaks(told) == [1.0, 1.0, 0.0]
    assert all(map(math.isnan, reward.leaks(rollouts(1))))  # no instruction
