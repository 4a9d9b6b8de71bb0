"""The check that every reward's numbers pass through, and plain functions as rewards."""

import math
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jsonargparse
import pytest

from wst.errors import ConfigError, ContractError
from wst.rewards import LastNumber, Length, WeightedSum
from wst.rewards.base import FunctionReward, Reward, RewardLike, Scores, as_reward, score
from wst.types import Query, Response, Rollout


class Fixed(Reward):
    """Returns what it was made with, and records the rollouts that it was given."""

    def __init__(self, total: object, parts: dict[str, Any] | None = None) -> None:
        self.total = total
        self.parts = parts or {}
        self.calls: list[list[str]] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        self.calls.append([r.query.id for r in rollouts])
        return cast("list[float]", self.total)

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        return Scores(self.score(rollouts), self.parts)


def rollouts(*errors: str | None) -> list[Rollout]:
    """One rollout an entry, with the id "0", "1", ..., whose response failed where the entry is a string."""
    return [Rollout(Query(str(i), "?"), None, Response("", error=error)) for i, error in enumerate(errors)]


def test_score_passes_numbers_and_parts_on_in_order() -> None:
    scores = score(Fixed([1, 0.25], {"a": [3, 4]}), rollouts(None, None))
    assert scores == Scores([1.0, 0.25], {"a": [3.0, 4.0]})
    assert all(type(value) is float for value in scores.total + scores.parts["a"])


def test_default_score_parts_has_no_parts() -> None:
    class Plain(Reward):
        def score(self, rollouts: Sequence[Rollout]) -> list[float]:
            return [0.5] * len(rollouts)

    assert score(Plain(), rollouts(None)) == Scores([0.5], {})


def test_nan_is_allowed() -> None:
    total = score(Fixed([math.nan, 1.0]), rollouts(None, None)).total
    assert math.isnan(total[0])
    assert total[1] == 1.0


def test_failed_responses_get_nan_and_are_not_handed_to_the_reward() -> None:
    reward = Fixed([1.0, 2.0], {"a": [3.0, 4.0]})
    scores = score(reward, rollouts("timeout", None, "timeout", None))
    assert reward.calls == [["1", "3"]]
    assert scores.total == pytest.approx([math.nan, 1.0, math.nan, 2.0], nan_ok=True)
    assert scores.parts["a"] == pytest.approx([math.nan, 3.0, math.nan, 4.0], nan_ok=True)


def test_reward_is_not_called_where_every_response_failed() -> None:
    reward = Fixed([])
    total = score(reward, rollouts("timeout", "timeout")).total
    assert reward.calls == []
    assert [math.isnan(value) for value in total] == [True, True]


@pytest.mark.parametrize(
    ("total", "message"),
    [
        ([1.0], r"reward Fixed: expected a list of 2 numbers.* got 1;"),
        ([1.0, 2.0, 3.0], r"reward Fixed: expected a list of 2 numbers.* got 3;"),
        ([], r"reward Fixed: expected a list of 2 numbers.* got 0;"),
        (None, r"reward Fixed: expected a list of 2 numbers.* got a NoneType;"),
        (1.0, r"reward Fixed: expected a list of 2 numbers.* got a float;"),
        ([1.0, None], r"reward Fixed: expected numbers, got None;"),
        ([1.0, "good"], r"reward Fixed: expected numbers, got 'good';"),
        ([1.0, [2.0]], r"reward Fixed: expected numbers, got \[2.0\];"),
        ([1.0, math.inf], r"reward Fixed: got inf; rewards must be finite"),
        ([-math.inf, 1.0], r"reward Fixed: got -inf; rewards must be finite"),
    ],
)
def test_what_is_not_a_finite_number_a_rollout_is_a_contract_error(total: object, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        score(Fixed(total), rollouts(None, None))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[1.0], [1.0, None], [1.0, math.inf]])
def test_errors_in_parts_name_the_part(values: list[Any]) -> None:
    with pytest.raises(ContractError, match=r"reward Fixed\[clarity\]: "):
        score(Fixed([1.0, 1.0], {"clarity": values}), rollouts(None, None))


def test_importing_rewards_does_not_import_torch() -> None:
    code = "import sys, wst.rewards; sys.exit('torch' in sys.modules)"
    env_path = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=env_path)


# ------------------------------------------------------------------------------------------- functions as rewards


def brief(rollouts: Sequence[Rollout]) -> list[float]:
    return [float(len(rollout.response.text) < 5) for rollout in rollouts]


async def later(rollouts: Sequence[Rollout]) -> list[float]:
    return brief(rollouts)


class LaterBrief:
    async def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return brief(rollouts)


class Brief:
    """A callable object, whose limit is a setting."""

    def __init__(self, limit: int = 5) -> None:
        self.limit = limit

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(len(rollout.response.text) < self.limit) for rollout in rollouts]


def test_a_function_is_a_reward() -> None:
    batch = [Rollout(Query("1", "?"), None, Response(text)) for text in ("short", "ok")]
    for function in (brief, Brief(), partial(brief), lambda rollouts: brief(rollouts)):
        reward = as_reward(function)
        assert isinstance(reward, Reward)
        assert score(reward, batch).total == [0.0, 1.0]
        assert as_reward(reward) is reward
    assert score(WeightedSum({"brief": brief, "length": Length(9)}), batch).total == [1.0, 2.0]


def test_a_function_is_identified_by_module_and_name() -> None:
    assert FunctionReward(brief).identity() == f"{__name__}.brief"
    assert FunctionReward(Brief()).identity() == f"{__name__}.Brief"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Brief, r"reward Brief: it is a class; give an instance of it, Brief\(\.\.\.\)"),
        (LastNumber, r"reward LastNumber: it is a class; give an instance"),
        (later, r"reward later: it is a coroutine function; write it with def"),
        (LaterBrief(), r"reward LaterBrief: it is a coroutine function"),
        (lambda: [1.0], r"reward <lambda>: it must take one argument, the list of rollouts"),
        (lambda rollouts, queries: [1.0], r"reward <lambda>: it must take one argument"),
        ("brief", r"reward: expected a wst.Reward or a function of a list of rollouts, got 'brief'"),
        (None, r"reward: expected a wst.Reward or a function of a list of rollouts, got None"),
    ],
)
def test_what_cannot_be_a_reward_is_refused_where_it_is_given(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        as_reward(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, r"reward scorer: expected a list of 2 numbers.* got a NoneType;"),
        ([1.0], r"reward scorer: expected a list of 2 numbers.* got 1;"),
        ([1.0, "x"], r"reward scorer: expected numbers, got 'x'"),
    ],
)
def test_a_wrong_result_names_the_function(result: Any, message: str) -> None:
    def scorer(rollouts: Sequence[Rollout]) -> Any:
        return result

    with pytest.raises(ContractError, match=message):
        score(FunctionReward(scorer), rollouts(None, None))


class Holder:
    def __init__(self, reward: RewardLike) -> None:
        self.reward = as_reward(reward)


@pytest.mark.parametrize(
    "given",
    [
        "math.fsum",  # any importable function
        {"class_path": "wst.Length", "init_args": {"limit": 5}},
        {"class_path": "wst.rewards.base.FunctionReward", "init_args": {"function": "math.fsum"}},
    ],
)
def test_rewards_and_functions_are_named_in_configs(given: Any) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Holder, "holder")
    reward = parser.instantiate(parser.parse_object({"holder": {"reward": given}})).holder.reward
    if isinstance(reward, FunctionReward):
        assert reward.identity() == "math.fsum"
    else:
        assert isinstance(reward, Length)
