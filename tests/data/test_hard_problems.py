"""Hard problems can be left out of the training on the public benchmarks."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from wst.data import GSM8K, MATH
from wst.errors import ConfigError, DataError


def problems(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    return [{"problem": f"Find $x = {n}$.", "solution": rf"It is $\boxed{{{n}}}$.", **more} for n in numbers]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_hard_questions_are_left_out_of_training_alone(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": "<<1+1=2>>" * n + "\n#### 2"} for n in range(1, 9)]
    source = {"train": write(tmp_path / "train.jsonl", rows), "test": write(tmp_path / "test.jsonl", rows)}
    data = GSM8K(**source, max_calculations=3, val_share=0.3)
    assert sorted(query.text for split in ("train", "val") for query in data.queries(split)) == ["1?", "2?", "3?"]
    assert len(data.queries("test")) == 8
    assert data.counts["train"]["more than 3 calculations"] == 5
    with pytest.raises(ConfigError, match="GSM8K: max_calculations must be at least 1, got 0"):
        GSM8K(max_calculations=0)


@pytest.mark.parametrize("form", ["{}", "Level {}"])
def test_problems_of_high_levels_are_left_out_of_training_alone(tmp_path: Path, form: str) -> None:
    rows = [problems([n], level=form.format(n))[0] for n in range(1, 6)]
    source = {"train": write(tmp_path / "train.jsonl", rows)}
    source["test"] = write(tmp_path / "test.jsonl", problems([7], level=5))
    data = MATH(**source, max_level=2, val_share=0.5)
    assert len(data.queries("train")) == len(data.queries("val")) == len(data.queries("test")) == 1
    assert data.counts["train"]["of a level above 2"] == 3


def test_a_problem_without_a_level_is_named(tmp_path: Path) -> None:
    train, test = write(tmp_path / "train.jsonl", problems([1, 2])), write(tmp_path / "test.jsonl", problems([3]))
    data = MATH(train=train, test=test, max_level=2)
    with pytest.raises(DataError, match=r"train.jsonl:1: field 'level' is no number from 1 to 5, which max_level"):
        data.load("train")
