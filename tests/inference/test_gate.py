"""The gate keeps harm under the level asked for, as often as it promises."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from runs import wst

from wst.errors import ConfigError, DataError, ModelError
from wst.inference import Instructor
from wst.inference.gate import Gate, choose, rows_needed

Rows = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def draw(rng: np.random.Generator, n: int, knows: float, harmful: float = 0.25) -> Rows:
    """Rewards of a teacher that harms ``harmful`` of the queries; ``knows``: how far its confidence tells which."""
    worse = rng.random(n) < harmful
    better = ~worse & (rng.random(n) < 0.4)
    unaided = np.where(worse, 1.0, np.where(better, 0.0, rng.integers(0, 2, n)))
    rewards = np.where(worse, 0.0, np.where(better, 1.0, unaided))
    confidences = -np.exp(rng.normal(-0.5, 0.5, n) + knows * np.where(worse, 1.0, -1.0))
    return confidences, rewards, unaided


@pytest.mark.slow
@pytest.mark.parametrize(("knows", "harm"), [(1.0, 0.05), (0.3, 0.05), (0.0, 0.1), (2.0, 0.02)])
def test_harm_stays_under_the_level_as_often_as_promised(knows: float, harm: float) -> None:
    rng = np.random.default_rng(0)
    confidences, rewards, unaided = draw(rng, 100_000, knows)  # the population
    worse = rewards < unaided
    risks = []
    for _ in range(200):
        gate = choose(*draw(rng, 300, knows), harm=harm)
        risks.append(float(np.mean(worse & (confidences >= gate.threshold))))
    assert np.mean(np.array(risks) <= harm) >= 0.9
    assert np.median(risks) > 0.2 * harm  # it does not keep its promise by staying shut
    if knows >= 1:
        assert gate.gain > 0.2


def test_a_teacher_that_always_harms_is_shut_out() -> None:
    gate = choose([-0.1] * 200, [0.0] * 200, [1.0] * 200, harm=0.02)
    assert (gate.instructed, gate.harmed, gate.gain, gate.gain_without) == (0.0, 0.0, 0.0, -1.0)
    assert not gate.opens(-0.1)


def test_a_teacher_that_never_harms_is_let_through() -> None:
    gate = choose([-7.5] * 200, [1.0] * 200, [0.5] * 200, harm=0.02)
    assert (gate.instructed, gate.gain) == (1.0, 0.5)
    assert gate.opens(-7.5)


def test_too_few_rows_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match=r"113 validation queries .* at least 114"):
        choose([-1.0] * 113, [1.0] * 113, [0.0] * 113, harm=0.02)
    assert choose([-1.0] * 114, [1.0] * 114, [0.0] * 114, harm=0.02).instructed == 1.0
    assert rows_needed(0.02, 0.1) == 114
    with pytest.raises(DataError, match="0 validation queries"):
        choose([-1.0] * 200, [math.nan] * 200, [0.0] * 200, harm=0.02)


def test_what_differs_by_rounding_is_no_harm() -> None:
    gate = choose([-1.0] * 200, [0.7 - 1e-9] * 200, [0.7] * 200, harm=0.02)
    assert (gate.instructed, gate.harmed) == (1.0, 0.0)


@pytest.mark.parametrize("levels", [{"harm": 0.0}, {"harm": 1.0}, {"harm": 0.1, "delta": 0.0}, {"harm": math.nan}])
def test_levels_are_shares(levels: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        choose([-1.0], [1.0], [1.0], **levels)


def test_it_is_read_as_it_was_written() -> None:
    gate = choose([-1.0] * 200, [1.0] * 200, [0.0] * 200, harm=0.05)
    assert Gate.from_dict(gate.to_dict()) == gate
    for broken in (
        {},
        gate.to_dict() | {"confidence": "mood"},
        gate.to_dict() | {"threshold": "x"},
        gate.to_dict() | {"rows": 10**400},
    ):
        with pytest.raises(ModelError, match="gate"):
            Gate.from_dict(broken)


@pytest.mark.slow
def test_the_command_writes_the_gate_that_the_instructor_follows(fitted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(fitted / "runs/tiny/version_0/teacher/last", tmp_path / "teacher")
    rows = [{"id": f"v{i}", "text": f"question {i}", "label": "yes"} for i in range(30)]
    (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--config", str(fitted / "config.yaml"), f"--data.init_args.val={tmp_path / 'val.jsonl'}"]
    more = ["--data.init_args.limit_val=null", "--harm", "0.9", "--device", "cpu"]
    done = wst(["gate", str(folder), *options, *more], tmp_path)
    assert done.code == 0, done.err
    gate = json.loads((folder / "wst.json").read_text())["gate"]
    assert (gate["rows"], gate["harm"], gate["instructed"]) == (30, 0.9, 1.0)
    assert "30 validation queries" in done.out
    assert Instructor.from_pretrained(str(folder), "cpu")("question 1")
    few = wst(["gate", str(folder), *options, "--data.init_args.limit_val=null", "--harm", "0.01"], tmp_path)
    assert few.code == 2
    assert "gate: 30 validation queries; to show at most 1.0% harm" in few.err  # before any answer was asked for
    assert "takes at least 230" in few.err
