"""`wst init`: the project is of the data's kind, is checked before it is written, and overwrites nothing."""

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_start import start

from wst import FieldMap, Query, QueryDataModule, Response, Rollout
from wst.cli.early import check_options
from wst.cli.init import run
from wst.cli.parts import check_parts
from wst.errors import ConfigError, DataError, WSTError
from wst.prompts import SMALL_PROMPT


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)


def write_rows(targets: list[Any], name: str = "rows.jsonl") -> None:
    rows = [{"question": f"Is it {i}?", "answer": target} for i, target in enumerate(targets)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: str) -> dict[str, Any]:
    return dict(yaml.safe_load(Path(folder, "config.yaml").read_text()))


@pytest.mark.parametrize(
    ("targets", "reward", "form"),
    [
        (["yes", "no"] * 5, "LabelMatch", "{query}\n\nAnswer with one of: no, yes."),
        ([1, 2.5, "1,000", [3, 4]], "LastNumber", "{query}\n\nGive the answer as a number at the end."),
        ([f"because of {i}" for i in range(30)], "Reward", "{query}"),
    ],
)
def test_the_reward_fits_the_answers(
    targets: list[Any], reward: str, form: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(targets)
    assert run(["new", "--data", "rows.jsonl", "--student", tiny_model, "--teacher", tiny_model]) == 0
    settings = config("new")
    assert settings["model"]["init_args"]["student_prompt"]["query"] == form
    assert settings["data"]["init_args"]["val_share"] == settings["data"]["init_args"]["test_share"] == 0.2
    assert Path("new/my_reward.py").read_text().count(f"class Right({reward}):") == 1
    assert Path("new/data/rows.jsonl").read_bytes() == Path("rows.jsonl").read_bytes()
    monkeypatch.chdir("new")
    monkeypatch.syspath_prepend(".")
    check_parts(check_options(["--config", "config.yaml"]))
    scored: dict[str, Any] = {}
    exec(Path("my_reward.py").read_text(), scored)
    assert isinstance(scored["Right"](), scored[reward])


def test_without_data_the_reviews_are_the_example_and_no_torch_is_loaded() -> None:
    code, out, err = start("init", "new")
    assert (code, err) == (0, "")
    assert "744 rows, 2 labels" in out
    assert config("new")["data"]["init_args"]["test"] == "data/test.jsonl"


def test_an_endpoint_is_a_student() -> None:
    write_rows(["yes", "no"] * 5)
    options = ["--model", "m", "--base_url", "http://127.0.0.1:1/v1", "--api_key_env", "null"]
    run(["new", "--data", "rows.jsonl", "--student", "endpoint", *options])
    student = config("new")["model"]["init_args"]["student"]
    assert student["class_path"] == "wst.EndpointStudent"
    assert (student["init_args"]["model"], student["init_args"]["api_key_env"]) == ("m", None)
    assert student["init_args"]["budget"] == {"calls": 5000}


def test_it_asks_at_a_terminal(monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    write_rows(["yes", "no"] * 5)
    answers = iter(["rows.jsonl", "", "", tiny_model])
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(answers)

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", answer)
    run(["new", "--teacher", tiny_model])
    assert [question.partition(" ")[0] for question in asked] == ["file", "column", "column", "student:"]
    assert config("new")["data"]["init_args"]["fields"] == {"query": "question", "target": "answer"}
    assert config("new")["model"]["init_args"]["student"]["init_args"]["model"] == tiny_model


@pytest.mark.parametrize("answer", [None, "", "null"])
def test_rows_may_have_no_right_answers(answer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rows.csv").write_text("text,when\n" + "a question,today\n" * 5)
    answers = iter(["", answer])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr(builtins, "input", lambda question: next(answers))
    given = ["--target", "null"] if answer is None else []
    run(["new", "--data", "rows.csv", "--student", "local", *given])
    settings = config("new")
    assert settings["data"]["init_args"]["fields"] == {"query": "text", "target": None}
    assert settings["model"]["init_args"]["leak_penalty"] == 0
    assert "no column holds a right answer" in Path("new/README.md").read_text()
    monkeypatch.chdir("new")
    monkeypatch.syspath_prepend(".")
    check_parts(check_options(["--config", "config.yaml"]))
    scored: dict[str, Any] = {}
    exec(Path("my_reward.py").read_text(), scored)
    rollouts = [Rollout(Query("q", "x"), None, Response("word " * words)) for words in (0, 30, 60)]
    assert scored["Right"]().score(rollouts) == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--data", "none.csv"], DataError, "none.csv does not exist"),
        (["--data", "rows.jsonl", "--target", "gold"], DataError, r"rows.jsonl:1: field 'gold' is missing"),
        (["--data", "odd.csv"], ConfigError, r"which column is the query\? Name it with --query \(of 'a', 'b'\)"),
        (["--data", "rows.jsonl", "--student", "./none"], WSTError, "model './none': no such folder"),
        (["--data", "rows.jsonl", "--student", "endpoint", "--base_url", "x"], ConfigError, "base_url must be like"),
        (["--data", "rows.jsonl", "--test", "other/rows.jsonl"], ConfigError, "two files would be data/rows.jsonl"),
        (["--data", "odd.csv", "--query", "a"], ConfigError, "the target.*, or give --target null if there is none"),
        (["--data", "semicolons.csv"], ConfigError, "the cells are separated by ';'"),
        (["--data", "same.jsonl"], ConfigError, "all rows have the answer 'yes'"),
        (["--data", "two.jsonl"], ConfigError, r"2 rows, of which none can be held out .*, or give --val and --test"),
        (["--data", "two.jsonl", "--val", "rows.jsonl"], ConfigError, r"2 rows, .*, or give --test$"),
        (["--data", "broken.jsonl"], ConfigError, r"label 'a\\nb' has line breaks or control characters"),
        (["--data", "signs.jsonl"], ConfigError, r"label 'a\\x1b\[31m' has line breaks or control characters"),
        (["--dat", "rows.jsonl", "--stdent", "local"], ConfigError, "did you mean --student"),
    ],
)
def test_nothing_is_written_after_a_mistake(
    options: list[str], error: type[WSTError], words: str, tmp_path: Path
) -> None:
    write_rows(["yes", "no"] * 5)
    Path("other").mkdir()
    write_rows(["yes", "no"] * 5, "other/rows.jsonl")
    Path("odd.csv").write_text("a,b\n1,2\n")
    Path("semicolons.csv").write_text("text;label\na;b\n")
    write_rows(["yes"] * 10, "same.jsonl")
    write_rows(["yes", "no"], "two.jsonl")
    write_rows(["a\nb", "c"] * 5, "broken.jsonl")
    write_rows(["a\x1b[31m", "c"] * 5, "signs.jsonl")
    with pytest.raises(error, match=words):
        run(["new", *options])
    assert not Path("new").exists()


def test_nothing_is_overwritten() -> None:
    write_rows(["yes", "no"] * 5)
    Path("new").mkdir()
    Path("new/README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"new/README.md' exists; name another folder"):
        run(["new", "--data", "rows.jsonl"])
    assert [path.name for path in Path("new").iterdir()] == ["README.md"]
    run([".", "--data", "rows.jsonl"])  # a file that lies in the folder stays where it is
    assert config(".")["data"]["init_args"]["train"] == "rows.jsonl"


def test_what_is_named_here_is_found_from_the_project(tiny_model: str) -> None:
    """A model's folder, labels in two spellings, a shipped file, and a column that looks like a number."""
    Path("model").symlink_to(tiny_model)
    Path("1e5.csv").write_text("1e5,2e3\n" + "a,Yes\nb,yes\nc,no\n" * 4)
    arguments = ["--query", "1e5", "--target", "2e3", "--student", "./model", "--teacher", "model"]
    run(["7e1", "--data", "1e5.csv", *arguments])
    assert config("7e1")["model"]["init_args"]["student"]["init_args"]["model"] == str(Path(tiny_model).resolve())
    for folder, line in (("7e1", "name: '7e1'"), ("7e1", "query: '1e5'"), ("7e1", "target: '2e3'")):
        assert line in Path(folder, "config.yaml").read_text()
    run(["shipped", "--data", "wst:data/reviews/train.jsonl"])
    assert Path("shipped/data/train.jsonl").is_file()


def test_a_file_in_the_place_of_a_folder_is_one_line() -> None:
    write_rows(["yes", "no"] * 5)
    Path("taken").write_text("")
    with pytest.raises(ConfigError, match=r"init: 'taken' cannot be written .*name another folder"):
        run(["taken", "--data", "rows.jsonl"])


@pytest.mark.parametrize("labels", [["*urgent*", "`code`|x", "# a"], ["a, b", "c"], ["<b>x</b>", "[y](z)"]])
def test_labels_with_marks_are_found_and_stay_apart(labels: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(labels * 5)
    run(["new", "--data", "rows.jsonl"])
    settings = config("new")["model"]["init_args"]
    listed = settings["student_prompt"]["query"].partition("one of: ")[2].rstrip(".")
    assert sorted(listed.split("; " if "," in "".join(labels) else ", ")) == sorted(labels)
    scored: dict[str, Any] = {}
    exec(Path("new/my_reward.py").read_text(), scored)
    gold = [Rollout(Query("q", "x", label), None, Response(label)) for label in labels]
    assert scored["Right"]().score(gold) == [1.0] * len(labels)


def test_a_column_with_marks_does_not_break_the_readme() -> None:
    rows = [{"question": f"Is it {i}?", "a`|*\n# b": ["yes", "no"][i % 2]} for i in range(10)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(["new", "--data", "rows.jsonl", "--target", "a`|*\n# b"])
    assert "the column `a'|* # b` holds the right answer." in Path("new/README.md").read_text()


def test_three_rows_are_enough_and_a_small_teacher_is_shown_examples(tiny_model: str) -> None:
    write_rows(["yes", "no", "yes"])
    run(["small", "--data", "rows.jsonl"])
    data = config("small")["data"]["init_args"]
    loaded = QueryDataModule(**data | {"train": "rows.jsonl", "fields": FieldMap(**data["fields"])})
    assert [len(loaded.queries(split)) for split in ("train", "val", "test")] == [1, 1, 1]
    teacher = config("small")["model"]["init_args"]["teacher"]["init_args"]
    assert [tuple(pair) for pair in teacher["prompt"]["examples"]] == list(SMALL_PROMPT.examples)
    run(["named", "--data", "rows.jsonl", "--teacher", tiny_model])
    assert "examples" not in config("named")["model"]["init_args"]["teacher"]["init_args"]["prompt"]
