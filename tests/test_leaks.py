"""Instructions that hold the answer: what is logged, and what is taken off the reward."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from telling import TEST_NAMES, TOLD, Queries, cells, runner, telling
from toys import small_module
from trainers import records

from wst import (
    ExactMatch,
    Instruction,
    Query,
    Response,
    Reward,
    Rollout,
    WeakToStrong,
)
from wst.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore")


class Ranked(Reward):
    """Gives the four samples of a query 0, 1, 2 and 3 in their order."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(i % 4) for i in range(len(rollouts))]


def test_leaks_are_logged_where_there_are_targets(tiny_model: str, tmp_path: Path) -> None:
    module = telling(small_module(tiny_model, samples_per_query=4), *TOLD)
    kept = records(module)
    trainer = runner(tmp_path)
    trainer.fit(module, Queries("42"))
    figures = trainer.callback_metrics
    assert float(figures["train/leak"]) == 0.5
    assert float(figures["val/leak"]) == 0.75  # of four greedy instructions, in batches of three and one: 1, 0, 1 and 1
    assert all(record.leaks is not None and record.leaks.tolist() == [[1, 0, 1, 0]] * 3 for record in kept)


def test_leaks_are_not_logged_without_targets(tiny_model: str, tmp_path: Path) -> None:
    module = telling(small_module(tiny_model, samples_per_query=4), *TOLD)
    trainer = runner(tmp_path)
    trainer.fit(module, Queries())
    assert {"train/reward", "val/reward"} <= set(trainer.callback_metrics)
    assert not [name for name in trainer.callback_metrics if "leak" in name]
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert {cell["leak"] for cell in cells(tmp_path).values()} == {None}
    rows = [json.loads(line) for line in (tmp_path / "test/rows.jsonl").read_text().splitlines()]
    assert {row["leak"] for row in rows} == {None}


def test_a_test_tells_how_often_each_teacher_leaks(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = small_module(tiny_model)
    original = module.teacher.sample

    def sample(queries: Sequence[Query], *args: Any, **settings: Any) -> list[Instruction]:
        untrained = not any(value.requires_grad and active(module) for value in module.trainable())
        leaky = "Say 42." if not untrained else "Think."
        return [
            replace(z, text=leaky if query.id != "test0" else "42 it is")
            for query, z in zip(queries, original(queries, *args, **settings), strict=True)
        ]

    module.teacher.sample = sample  # type: ignore[method-assign]
    module.trained_steps = 1
    tester = runner(tmp_path)
    tester.test(module, Queries("42"), verbose=False)
    assert [cells(tmp_path)[arm]["leak"] for arm in TEST_NAMES] == [None, 0.25, 1.0]
    assert float(tester.callback_metrics["test/leak/untrained"]) == 0.25
    assert float(tester.callback_metrics["test/leak/trained"]) == 1.0
    shown = capsys.readouterr().out
    assert "leak" in shown
    assert "25%" in shown
    rows = [json.loads(line) for line in (tmp_path / "test/rows.jsonl").read_text().splitlines()]
    by_arm = [[row["leak"] for row in rows if row["arm"] == arm] for arm in TEST_NAMES]
    assert by_arm == [[None] * 4, [1, 0, 0, 0], [1] * 4]


def active(module: WeakToStrong) -> bool:
    """Whether the adapter is switched on."""
    layers = [layer for layer in module.teacher.policy.modules() if hasattr(layer, "disable_adapters")]
    return not any(layer.disable_adapters is True for layer in layers)


def test_a_penalty_is_taken_off_what_is_learnt_and_not_off_what_is_logged(tiny_model: str, tmp_path: Path) -> None:
    """Rewards 0, 1, 2, 3, of which the first and the third leak: less 0.5 each, -0.5, 1, 1.5, 3 are compared."""
    expected = {
        # a reward less the mean of the three others
        0.0: [0 - 2, 1 - 5 / 3, 2 - 4 / 3, 3 - 1],
        0.5: [-0.5 - 5.5 / 3, 1 - 4 / 3, 1.5 - 3.5 / 3, 3 - 2 / 3],
    }
    for penalty, advantages in expected.items():
        module = telling(small_module(tiny_model, reward=Ranked(), samples_per_query=4, leak_penalty=penalty), *TOLD)
        kept = records(module)
        trainer = runner(tmp_path, steps=1)
        trainer.fit(module, Queries("42", splits=["train"]))
        assert len(kept) == 1
        assert kept[0].rewards.tolist() == [[0, 1, 2, 3]] * 3
        torch.testing.assert_close(kept[0].advantages, torch.tensor([advantages] * 3), atol=1e-6, rtol=0)
        assert float(trainer.callback_metrics["train/reward"]) == 1.5
        assert float(trainer.callback_metrics["train/leak"]) == 0.5


def test_where_leaks_are_unknown_there_is_no_penalty(tiny_model: str, tmp_path: Path) -> None:
    module = telling(small_module(tiny_model, reward=Ranked(), samples_per_query=4, leak_penalty=9.0), *TOLD)
    kept = records(module)
    runner(tmp_path, steps=1).fit(module, Queries(splits=["train"]))
    assert kept[0].leaks is not None
    assert kept[0].leaks.isnan().all()
    torch.testing.assert_close(kept[0].advantages[0], torch.tensor([0 - 2, 1 - 5 / 3, 2 - 4 / 3, 3 - 1.0]))


@pytest.mark.parametrize("penalty", [-0.1, math.nan, math.inf])
def test_a_penalty_is_a_finite_number_of_at_least_0(tiny_model: str, penalty: float) -> None:
    with pytest.raises(ConfigError, match="leak_penalty must be a finite number of at least 0, got"):
        small_module(tiny_model, leak_penalty=penalty)


def test_a_reward_of_exact_answers_knows_leaks_too() -> None:
    query = Query("q", "?", target="42")
    told = [Rollout(query, Instruction(text), Response("")) for text in TOLD]
    assert ExactMatch().leaks(told) == [1.0, 0.0, 1.0, 0.0]
