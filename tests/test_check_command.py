"""`wst check`: the gold answers of a config's data score 1.0 with its reward, or the rows are named."""

import json
import re
from pathlib import Path

import pytest
import yaml
from endpoints import FakeServer

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


@pytest.mark.slow
def test_gold_answers_that_all_score(tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["--config", config(tmp_path, tiny_model, "wst.MathAnswer", ["1", "1,000", "3/4", "50%"]), "--queries=0"])
        == 0
    )
    said = capsys.readouterr().out
    assert "train: 3 of 3 gold answers score 1.0\n" in said
    assert "val: 1 of 1 worked answers (field solution) score 1.0\n" in said
    assert "test: 4 of 4 gold answers score 1.0\n" in said


def test_a_gold_answer_that_does_not_score_is_named(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # the reward takes the worked answer for another text than the bare one
    assert run(["--config", config(tmp_path, tiny_model, "wst.ExactMatch", ["1", "2", "3", "4"]), "--queries=0"]) == 1
    said = capsys.readouterr().out
    assert "test: 4 of 4 gold answers score 1.0\n" in said
    assert f"test: 0 of 4 worked answers (field solution) score 1.0; not: {tmp_path.name}/test.jsonl:1, " in said


@pytest.mark.slow
def test_a_few_queries_are_shown_all_the_way(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(config(tmp_path, tiny_model, "wst.MathAnswer", ["1", "2", "3", "4"]))
    settings = yaml.safe_load(path.read_text())
    with FakeServer(answer=lambda _: "It is 3.") as server:
        student = {"model": "fake", "base_url": server.url, "api_key_env": None, "cache": False}
        settings["model"]["init_args"]["student"] = {"class_path": "wst.EndpointStudent", "init_args": student}
        path.write_text(yaml.safe_dump(settings))
        assert run(["--config", str(path), "--queries", "3"]) == 0
        said = capsys.readouterr().out
        asked = [request.body["messages"] for request in server.requests]
    tried = re.findall(
        r"teacher's prompt \(\d+ tokens\):\n    <\|im_start\|>user\n(?:    .*\n)*?    Request: (.*)\n(?:    .*\n)*"
        r"  instruction \(\d+ tokens.*\n(?:    .*\n)*(?:  student's prompt, \w+:\n(?:    .*\n)*)+"
        r"  answer \(3 tokens\):\n    It is 3.\n  reward:\n    ([01])",
        said,
    )
    assert len(tried) == len(asked) == 3
    assert {query for query, _ in tried} == {messages[-1]["content"] for messages in asked}
    assert [reward for _, reward in tried].count("1") == 1
    assert "fake at 127.0.0.1" in said
    assert "3 calls" in said


@pytest.mark.slow
def test_no_query_loads_no_model(tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, tiny_model, "wst.MathAnswer", ["1", "2", "3", "4"])
    assert run(["--config", path, "--queries=0", "--model.init_args.teacher.init_args.model=no/where"]) == 0
    assert "loading" not in capsys.readouterr().out
    for queries in ("x", ""):
        assert run(["--config", path, f"--queries={queries}"]) == 2
        assert "--queries must be a number" in capsys.readouterr().err


def test_a_config_of_another_kind_is_refused_in_one_line(
    tmp_path: Path, tiny_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(config(tmp_path, tiny_model, "wst.MathAnswer", ["1"]))
    settings = yaml.safe_load(path.read_text())
    settings["model"] = {"class_path": "wst.PreferenceModel", "init_args": {"model": tiny_model}}
    path.write_text(yaml.safe_dump(settings))
    assert run(["--config", str(path)]) == 2
    assert "wst: error: check: the config must have a wst.WeakToStrong" in capsys.readouterr().err
