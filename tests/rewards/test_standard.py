"""Standardised rewards: the numbers, the state in checkpoints, and the hooks forwarded to the inner reward."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from toys import Lowercase, MoodyParrot, Parrot, SixQueries, small_module
from trainers import quiet_trainer

from wst import Query, Response, Rollout, Student, Teacher, WeakToStrong
from wst.data.datamodule import Split
from wst.errors import ConfigError, DataError
from wst.rewards import Length, Reward, Standardized, WeightedSum
from wst.rewards.base import score
from wst.types import Instruction


class Number(Reward):
    """Reads the response as a number; records which hooks were called."""

    def __init__(self, needs_unaided: bool = False, calibration_size: int = 0) -> None:
        self.needs_unaided = needs_unaided
        self.calibration_size = calibration_size
        self.events: list[Any] = []
        self.judge = Parrot()
        self.state: dict[str, Any] = {}

    def check(self) -> None:
        self.events.append("check")

    def setup(self, device: Any) -> None:
        self.events.append("setup")

    def close(self) -> None:
        self.events.append("close")

    def students(self) -> dict[str, Student]:
        return {"judge": self.judge}

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        self.events.append(len(unaided))

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.25] * len(rollouts)

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        assert not self.needs_unaided or all(rollout.unaided is not None for rollout in rollouts)
        return [float(rollout.response.text) for rollout in rollouts]


def answers(*numbers: float) -> list[Rollout]:
    return [Rollout(Query(str(i), "?"), None, Response(str(n)), Response("0")) for i, n in enumerate(numbers)]


FAILED = Rollout(Query("f", "?"), None, Response("", error="timeout"))


# ------------------------------------------------------------------------------------------------------- the numbers


def test_it_is_worked_by_hand() -> None:
    reward = Standardized(Number())
    reward.calibrate(answers(1, 2, 3))  # mean 2, spread 1
    assert (reward.mean, reward.spread) == (2, 1)
    scores = score(reward, answers(2, 3, 0, 4.5))
    assert scores.total == [0.0, 1.0, -2.0, 2.5]
    assert scores.parts == {"raw": [2.0, 3.0, 0.0, 4.5]}
    assert reward.score(answers(2.5)) == [0.5]


def test_what_it_was_measured_on_has_mean_0_and_spread_1() -> None:
    measured = answers(7.5, -3.0, 11.0, 4.0, 4.0, 1e3)
    reward = Standardized(Number())
    reward.calibrate(measured)
    rewards = torch.tensor(reward.score(measured), dtype=torch.float64)
    assert float(rewards.mean()) == pytest.approx(0, abs=1e-12)
    assert float(rewards.std()) == pytest.approx(1)


def test_the_scale_of_the_reward_does_not_matter() -> None:
    plain, scaled = Standardized(Number()), Standardized(WeightedSum({"n": Number()}, {"n": 100.0}))
    for reward in (plain, scaled):
        reward.calibrate(answers(1, 2, 4, 8))
    assert plain.score(answers(3, 5)) == pytest.approx(scaled.score(answers(3, 5)))
    assert score(scaled, answers(3)).parts == {"raw": [300.0], "n": [3.0]}


def test_what_cannot_be_scored_is_neither_measured_nor_standardised() -> None:
    reward = Standardized(Number())
    reward.calibrate([FAILED, *answers(1, math.nan, 2, 3)])
    assert (reward.mean, reward.spread) == (2, 1)
    assert score(reward, [FAILED, *answers(math.nan, 3)]).total == pytest.approx([math.nan, math.nan, 1], nan_ok=True)


@pytest.mark.parametrize(
    ("unaided", "words"),
    [
        (answers(1), "of 1 unaided answers only 1 could be scored"),
        ([FAILED, FAILED, *answers(1)], "of 3 unaided answers only 1 could be scored"),
        (answers(math.nan, math.nan), "of 2 unaided answers only 0 could be scored"),
        (answers(0.5, 0.5, 0.5), "of 3 unaided answers all got the same reward"),
    ],
)
def test_without_a_spread_there_is_nothing_to_divide_by(unaided: list[Rollout], words: str) -> None:
    with pytest.raises(
        DataError, match=f"Standardized: {words}, so the standard deviation is zero or unknown; raise queries"
    ) as caught:
        Standardized(Number()).calibrate(unaided)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("queries", [1, 0, -3])
def test_one_query_has_no_spread(queries: int) -> None:
    with pytest.raises(ConfigError, match=f"queries must be at least 2, got {queries}"):
        Standardized(Number(), queries)


def test_nothing_is_scored_before_it_was_measured() -> None:
    with pytest.raises(ConfigError, match=r"not calibrated; call calibrate\(\)"):
        Standardized(Number()).score(answers(1))


def test_it_is_measured_once() -> None:
    reward = Standardized(Number(), queries=5)
    assert reward.calibration_size == 5
    reward.calibrate(answers(1, 2, 3))
    assert reward.calibration_size == 0
    reward.calibrate(answers(10, 20, 30))
    assert (reward.mean, reward.spread) == (2, 1)


# ------------------------------------------------------------------------------------------------------ forwarding


def test_what_is_asked_of_it_is_asked_of_the_reward() -> None:
    inner = Number(needs_unaided=True)
    reward = Standardized(inner)
    assert reward.needs_unaided
    assert not Standardized(Number()).needs_unaided
    reward.check()
    reward.setup(torch.device("cpu"))
    reward.close()
    assert inner.events == ["check", "setup", "close"]
    assert reward.students() == {"judge": inner.judge}
    told = Rollout(Query("q", "?", target="4"), Instruction("4"), Response("4"))
    assert reward.leaks([told]) == [0.25]
    Standardized(Length(5)).check()  # a reward without hooks


def test_as_part_of_a_sum_it_loses_nothing() -> None:
    inner = Number(needs_unaided=True)
    total = WeightedSum({"good": Standardized(inner, queries=7), "small": Standardized(Number(), queries=3)})
    assert total.needs_unaided
    assert total.calibration_size == 7
    total.calibrate(answers(1, 2, 3))
    assert total.calibration_size == 0
    assert total.state_dict() == {"good": {"mean": 2, "spread": 1}, "small": {"mean": 2, "spread": 1}}
    scores = score(total, answers(3))
    assert scores.total == [2.0]
    assert scores.parts == {"good": [1.0], "good/raw": [3.0], "small": [1.0], "small/raw": [3.0]}
    total.check()
    total.setup(torch.device("cpu"))
    total.close()
    assert inner.events == [3, "check", "setup", "close"]
    assert set(total.students()) == {"good/judge", "small/judge"}
    again = WeightedSum({"good": Standardized(Number(), queries=7), "small": Standardized(Number(), queries=3)})
    again.load_state_dict({"good": {"mean": 5.0, "spread": 2.0}, "gone": {"mean": 0.0}})
    assert again.calibration_size == 3
    assert again.parts["good"].score(answers(9)) == [2.0]


def test_a_reward_that_is_calibrated_itself_gets_as_many_as_it_asks_for() -> None:
    for inner, size in ((Number(calibration_size=9), 9), (Number(calibration_size=2), 4)):
        reward = Standardized(inner, queries=4)
        assert reward.calibration_size == size
        reward.calibrate(answers(1, 2, 3))
        assert inner.events == [3]
    twice = Standardized(Standardized(Number()))
    twice.calibrate(answers(1, 2, 3))
    assert (twice.mean, twice.spread) == (0, 1)


def test_the_state_holds_that_of_the_reward() -> None:
    reward = Standardized(Number())
    assert reward.state_dict() == {}
    reward.calibrate(answers(1, 2, 3))
    assert reward.state_dict() == {"mean": 2, "spread": 1}
    reward.reward.state = {"seen": 3}  # type: ignore[attr-defined]
    again = Standardized(Number())
    again.load_state_dict(reward.state_dict())
    assert again.reward.state == {"seen": 3}  # type: ignore[attr-defined]
    assert again.score(answers(4)) == [2.0]
    assert again.calibration_size == 0


def test_constructible_from_a_configuration() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    settings = {"reward": {"class_path": "wst.Length", "init_args": {"limit": 5}}, "queries": 3}
    config = parser.parse_object({"reward": {"class_path": "wst.Standardized", "init_args": settings}})
    reward = parser.instantiate(config).reward
    assert isinstance(reward, Standardized)
    assert isinstance(reward.reward, Length)
    assert reward.queries == 3


# ------------------------------------------------------------------------------------------------------------- a run


class Queries(SixQueries):
    """No validation, which would ask for unaided answers too."""

    def load(self, split: Split) -> list[Query]:
        return [] if split == "val" else super().load(split)


class Terse(Teacher):
    """Always writes the same instruction, since an empty one would look like none."""

    def sample(self, *args: Any, **settings: Any) -> list[Instruction]:
        return [replace(z, text="Be brief.") for z in super().sample(*args, **settings)]


def make(model: str, student: Student, reward: Reward) -> WeakToStrong:
    return small_module(model, student, reward, Terse)


def unaided(student: Parrot) -> list[str]:
    """Return the queries that the student was asked without an instruction."""
    return [prompt.messages[-1].content for prompt in student.asked if len(prompt.messages) == 1]


@pytest.mark.parametrize("kind", [Parrot, MoodyParrot])
@pytest.mark.parametrize("nested", [False, True])
def test_a_run_measures_once_and_its_checkpoint_remembers(
    tiny_model: str, tmp_path: Path, kind: type[Parrot], nested: bool
) -> None:
    def made() -> tuple[Standardized, Reward]:
        inner = Standardized(Lowercase(), queries=4)
        return inner, WeightedSum({"letters": inner}) if nested else inner

    student = kind()
    inner, reward = made()
    first = quiet_trainer(tmp_path, max_steps=1)
    first.fit(make(tiny_model, student, reward), Queries(batch_size=3))
    texts = [f"train {10**i}" for i in range(6)]
    assert len(unaided(student)) == 4  # nothing else in this run needs unaided answers
    assert set(unaided(student)) <= set(texts)
    shares = torch.tensor([sum(map(str.islower, text)) / len(text) for text in unaided(student)], dtype=torch.float64)
    assert inner.mean == pytest.approx(float(shares.mean()))
    assert inner.spread == pytest.approx(float(shares.std()))
    logged = first.callback_metrics
    part = "train/reward/letters/raw" if nested else "train/reward/raw"
    assert float(logged["train/reward"]) == pytest.approx((float(logged[part]) - inner.mean) / inner.spread, rel=1e-4)

    path = tmp_path / "x.ckpt"
    first.save_checkpoint(path)
    state = {"mean": inner.mean, "spread": inner.spread}
    assert torch.load(path, weights_only=True)["wst"]["reward"] == ({"letters": state} if nested else state)

    student, (again, reward) = kind(), made()
    quiet_trainer(tmp_path, max_steps=2).fit(
        make(tiny_model, student, reward), Queries(batch_size=3), ckpt_path=str(path)
    )
    assert (again.mean, again.spread) == (inner.mean, inner.spread)
    assert student.asked
    assert unaided(student) == []

    student, (again, reward) = kind(), made()
    quiet_trainer(tmp_path, max_steps=2).test(
        make(tiny_model, student, reward), Queries(), ckpt_path=str(path), verbose=False
    )
    assert (again.mean, again.spread) == (inner.mean, inner.spread)
    assert sorted(unaided(student)) == sorted(
        f"test {10**i}" for i in range(6)
    )  # for the unaided arm, not for calibration


def test_a_reward_that_compares_can_be_measured(tiny_model: str, tmp_path: Path) -> None:
    class Compares(Lowercase):
        needs_unaided = True

        def score(self, rollouts: Sequence[Rollout]) -> list[float]:
            assert all(rollout.unaided == rollout.response for rollout in rollouts if rollout.instruction is None)
            assert all(rollout.unaided is not None for rollout in rollouts)
            return super().score(rollouts)

    reward = Standardized(Compares(), queries=3)
    quiet_trainer(tmp_path, max_steps=1).fit(make(tiny_model, Parrot(), reward), Queries(batch_size=3))
    assert reward.spread is not None


def test_without_a_data_module_there_is_nothing_to_measure_on(tiny_model: str, tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([Query("a", "b")], collate_fn=list)
    with pytest.raises(ConfigError, match="reward Standardized: it is calibrated on queries of a data module"):
        quiet_trainer(tmp_path, max_steps=1).fit(make(tiny_model, Parrot(), Standardized(Lowercase())), loader)
