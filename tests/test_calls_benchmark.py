"""The benchmark of rewards by student calls, in a quick form with the tiny model."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from runs import TESTS

sys.path.append(str(TESTS.parent / "benchmarks"))

import calls
import calls_table
from calls_tasks import MODEL, TASKS, form

ARMS = ("default", "all", "race", "gepa", "trl rloo")


@pytest.mark.slow
def test_a_quick_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"calls": 40, "every": 16, "held_out": 4, "val": 2, "val_calls": 32, "seeds": 0}
    small = [f"--{name}={value}" for name, value in numbers.items()]
    options = ["--out", str(tmp_path), *small, "--tiny", "--tasks", "formats", "--arms", *ARMS]
    assert calls.main(["one", *options]) == 0
    rows = {
        arm: [json.loads(line) for line in (tmp_path / f"formats.{arm}.0.jsonl").read_text().splitlines()]
        for arm in ARMS
    }
    # A step of the default asks 32 times, twice what the next try waits for; a validation asks twice a query.
    assert [row["calls"] for row in rows["default"]] == [0, 32, 68]
    assert [row["validation"] for row in rows["default"]] == [0, 0, 4]
    # 64 answers of the warm start are more than all: after one step it ends.
    assert [row["step"] for row in rows["all"]] == [0, 1]
    assert 64 < rows["all"][-1]["calls"] <= 80
    assert [row["calls"] for row in rows["race"]][-1] <= 40
    # GEPA begins with a sentence that it is given.
    assert (rows["gepa"][0]["calls"], rows["gepa"][0]["example"]) == (0, TASKS["formats"].sentences[0])
    assert rows["gepa"][-1]["calls"] <= 40
    assert [row["step"] for row in rows["trl rloo"]] == [0, 1, 2]
    assert rows["trl rloo"][0]["calls"] == 0
    assert 40 <= rows["trl rloo"][-1]["calls"] <= 64  # two steps of at most 32
    assert not list(tmp_path.glob("*.part"))
    capsys.readouterr()
    assert calls.main(["run", *options]) == 0  # would start processes
    assert capsys.readouterr().out == "5 runs, 0 of them to be made\n"
    assert calls.main(["table", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        *("| arm", "| default", "| all", "| race", "| gepa", "| trl rloo")
    ]


def test_figures_of_a_curve(tmp_path: Path) -> None:
    rows = [{"calls": 0, "reward": 0.1}, {"calls": 50, "reward": 0.5}, {"calls": 100, "reward": 0.4}]
    assert calls_table.held_out(rows, 99) == 0.5
    assert calls_table.area(rows, 100) == pytest.approx(0.3, abs=0.01)
    assert calls_table.calls_to(rows, 0.45) == 50
    assert calls_table.calls_to(rows, 0.6) == float("inf")
    for arm in ("default", "all"):
        (tmp_path / f"formats.{arm}.0.jsonl").write_text("".join(json.dumps(row | {"leak": 0}) + "\n" for row in rows))
    picture = tmp_path / "calls.png"
    assert calls.main(["table", "--out", str(tmp_path), "--calls", "100", "--picture", str(picture)]) == 0
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("folder", "target"),
    [("reviews", 0.85), ("one_step", 0.4), ("reviews_test", 0.85), ("messages_test", 0.85), ("helpful", 0.7)],
)
def test_the_tables_of_the_docs_are_those_of_the_rows(
    folder: str, target: float, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (TESTS.parent / "docs/efficiency.md").read_text(encoding="utf-8")
    rows = TESTS.parent / "benchmarks/results/calls" / folder
    assert calls.main(["table", "--out", str(rows), "--calls", "420", "--target", str(target)]) == 0
    table = "\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    assert table.count("\n") >= 2
    assert table in page


@pytest.mark.parametrize(("task", "part"), [("reviews", "smollm2_teacher"), ("messages", "messages_teacher")])
def test_a_task_has_the_prompt_of_its_config(task: str, part: str) -> None:
    config = yaml.safe_load((TESTS.parent / f"lightning_configs/parts/{part}.yaml").read_text(encoding="utf-8"))
    settings = config["init_args"]
    prompt = TASKS[task].prompt
    assert settings.pop("model") == MODEL
    assert settings.pop("prompt") == {"template": prompt.template, "examples": list(map(list, prompt.examples))}
    assert settings == TASKS[task].teacher


def test_each_form_of_an_answer_is_one() -> None:
    answers = {"Dear Sir,\n1. Rome\n2. Oslo": "letter", "1. Rome\n2. Oslo": "list", "A Python function: it": "code"}
    answers |= {"The Flute: A New Era": "title", "It is an animal.": "prose", "The flute: it sounds": "prose"}
    assert {text: form(text) for text in answers} == answers
    data = TASKS["two-step"].data({})
    texts = [{query.text for query in data.queries(split)} for split in ("train", "val", "test")]
    assert [len(part) for part in texts] == [300, 60, 120]
    assert not set.intersection(*texts)
