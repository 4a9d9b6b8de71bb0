"""`wst check`: the gold answers of a config's data score 1.0 with its reward, or the rows are named."""

import json
from pathlib import Path

import pytest
import yaml

from wst.cli.check import run


def config(folder: Path, tiny_model: str, reward: str, answers: list[str]) -> str:
    rows = [{"question": f"Question {i}?", "answer": f"So it is.\n#### {answer}"} for i, answer in enumerate(answers)]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"class_path": "wst.Teacher", "init_args": {"model": tiny_model}}
    student = {"class_path": "wst.LocalStudent", "init_args": {"model": tiny_model}}
    arguments = {"teacher": model, "student": student, "reward": reward}
    settings = {
        "model": {"class_path": "wst.WeakToStrong", "init_args": arguments},
        "data": {"class_path": "wst.GSM8K", "init_args": {"source": str(folder), "val_share": 0.25}},
        "trainer": {"logger": False, "accelerator": "cpu"},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def test_gold_answers_that_all_score(tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--config", config(tmp_path, tiny_model, "wst.MathAnswer", ["1", "1,000", "3/4", "50%"])]) == 0
    said = capsys.readouterr().out
    assert "train: 3 of 3 gold answers score 1.0\n" in said
    assert "val: 1 of 1 worked answers (field solution) score 1.0\n" in said
    assert "test: 4 of 4 gold answers score 1.0\n" in said


def test_a_gold_answer_that_does_not_score_is_named(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # the reward takes the worked answer for another text than the bare one
    assert run(["--config", config(tmp_path, tiny_model, "wst.ExactMatch", ["1", "2", "3", "4"])]) == 1
    said = capsys.readouterr().out
    assert "test: 4 of 4 gold answers score 1.0\n" in said
    assert f"test: 0 of 4 worked answers (field solution) score 1.0; not: {tmp_path.name}/test.jsonl:1, " in said


def test_a_config_of_another_kind_is_refused_in_one_line(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(config(tmp_path, tiny_model, "wst.MathAnswer", ["1"]))
    settings = yaml.safe_load(path.read_text())
    settings["model"] = {"class_path": "wst.PreferenceModel", "init_args": {"model": tiny_model}}
    path.write_text(yaml.safe_dump(settings))
    assert run(["--config", str(path)]) == 2
    assert "wst: error: check: the config must have a wst.WeakToStrong" in capsys.readouterr().err
