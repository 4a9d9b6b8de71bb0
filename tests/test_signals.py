"""A run that can learn nothing says so, once, with the remedy."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_module import data, fit, make
from toys import Parrot

from wst import FunctionReward, Instruction, Prompt, Query, Response, Rollout
from wst.callbacks import DeadSignals
from wst.errors import ConfigError
from wst.training.record import StepRecord


class Module:
    """Stands for a module in what the callback reads of it."""

    leak_penalty = 0.0
    trained_steps = 0
    student = type("Limited", (), {"max_new_tokens": 12})()


def step(
    callback: DeadSignals,
    capsys: pytest.CaptureFixture[str],
    answers: Sequence[Response],
    rewards: Sequence[float],
    instructions: Sequence[str] = ("a", "b"),
    **more: Any,
) -> str:
    pairs = zip(instructions, answers, strict=True)
    rollouts = [Rollout(Query(f"q{i}", "x"), Instruction(z), answer) for i, (z, answer) in enumerate(pairs)]
    record = StepRecord(rollouts, torch.tensor([[reward] for reward in rewards]), **more)
    module: Any = Module()
    callback.on_train_batch_end(SimpleNamespace(), module, {"record": record})  # type: ignore[arg-type]
    return " ".join(capsys.readouterr().out.split())


GOOD, EMPTY, CUT = Response("fine"), Response(" "), Response("It is", truncated=True)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"answers": [EMPTY, EMPTY], "rewards": [0.0, 0.0]}, "all 2 answers are empty; raise max_new_tokens"),
        ({"answers": [CUT, CUT], "rewards": [0.0, 0.0]}, r"all 2 answers are cut off, .*student \(now 12\)"),
        (
            {"answers": [GOOD, GOOD], "rewards": [0.0, 1.0], "leaks": torch.tensor([[1.0], [1.0]])},
            "100% of the instructions contain the gold answer.* set leak_penalty: 1",
        ),
        (
            {
                "answers": [GOOD] * 2,
                "rewards": [0.0, math.nan],
                "parts": {"judge/unparsed": torch.tensor([[0.0], [1.0]])},
            },
            "",  # half of them is not more than half
        ),
        (
            {"answers": [GOOD] * 2, "rewards": [0.0, math.nan], "parts": {"judge/unparsed": torch.ones(2, 1)}},
            "100% of the judge's answers hold no verdict",
        ),
        ({"answers": [CUT, CUT], "rewards": [0.0, 1.0]}, ""),  # they are told apart all the same
        ({"answers": [EMPTY, Response("", error="timeout")], "rewards": [0.0, math.nan]}, "all 1 answers are empty"),
    ],
)
def test_a_dead_step_is_reported_once(capsys: pytest.CaptureFixture[str], case: dict[str, Any], words: str) -> None:
    callback = DeadSignals(patience=100)
    assert re.fullmatch(words and f"wst: step 0: .*{words}.*", step(callback, capsys, **case))
    assert not step(callback, capsys, **case)
    resumed = DeadSignals(patience=100)
    resumed.load_state_dict(callback.state_dict())
    assert not step(resumed, capsys, **case)


def test_several_dead_steps_in_a_row_are_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    callback = DeadSignals(patience=3)
    alive = {"answers": [GOOD, GOOD], "rewards": [0.0, 1.0]}
    dead = {"answers": [GOOD, GOOD], "rewards": [0.5, 0.5], "instructions": ["Say \x1b[31mit.", "Say \x1b[31mit."]}
    for case in (dead, dead, alive, dead, dead):
        assert not step(callback, capsys, **case)
    resumed = DeadSignals(patience=3)
    resumed.load_state_dict(callback.state_dict())
    said = step(resumed, capsys, **dead)
    assert "all rewards of a step are equal, now 0.5, 3 steps in a row" in said
    assert "all instructions are one text, 3 steps in a row: 'Say \\x1b[31mit.'" in said.replace("\\\\", "\\")
    assert "\x1b" not in said
    assert not step(resumed, capsys, **dead)


def test_steps_from_which_a_baseline_learns_are_alive(capsys: pytest.CaptureFixture[str]) -> None:
    callback = DeadSignals(patience=2)
    case: dict[str, Any] = {"answers": [GOOD, GOOD], "rewards": [0.5, 0.5]}
    for _ in range(4):
        assert not step(callback, capsys, **case, advantages=torch.tensor([[0.1], [0.1]]))
    assert not step(callback, capsys, **case, advantages=torch.zeros(2, 1))
    assert "all rewards of a step are equal" in step(callback, capsys, **case, advantages=torch.zeros(2, 1))


@pytest.mark.parametrize(
    "state", [{}, {"said": 3, "in_a_row": {}}, {"said": [], "in_a_row": {"equal": "x", "same": 1}}]
)
def test_a_hostile_state_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="DeadSignals cannot be read"):
        DeadSignals().load_state_dict(state)


class Mute(Parrot):
    """Has nothing to say."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [Response("") for _ in prompts]


def test_a_run_of_a_mute_student_says_so(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reward = FunctionReward(lambda rollouts: [0.0] * len(rollouts))
    fit(make(tiny_model, Mute(), reward), data(tmp_path), tmp_path, steps=3)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("answers are empty") == 1
    assert said.count("all rewards of a step are equal, now 0, 3 steps in a row") == 1
