"""`wst compare` as a user meets it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import set_keys, wst


def write(folder: Path, model: str, **changes: Any) -> Path:
    rows = [{"id": f"q{i}", "text": f"query number {i}", "label": "yes"} for i in range(10)]
    (folder / "rows_in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    local = {"class_path": "wst.LocalStudent", "init_args": {"model": model, "dtype": "float32", "max_new_tokens": 4}}
    config: dict[str, Any] = {
        "data": {
            "class_path": "wst.QueryDataModule",
            "init_args": {"test": str(folder / "rows_in.jsonl"), "fields": {"id": "id"}, "eval_batch_size": 4},
        },
        "students": {"tiny": local},
        "reward": {"class_path": "toys.Lowercase"},
        "teacher": {
            "class_path": "wst.Teacher",
            "init_args": {"model": model, "prompt": {"template": "{query}"}, "dtype": "float32", "max_new_tokens": 5},
        },
        "asked": {"asked": local},
        "fixed": ["Be brief."],
        "student_prompt": {"placement": "before"},
        "output": str(folder / "out"),
        "resamples": 1000,
    }
    set_keys(config, changes)
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_a_config_becomes_tables_and_files_and_rows_become_them_again(tmp_path: Path, tiny_model: str) -> None:
    write(tmp_path, tiny_model)
    done = wst(["compare", "--config", "compare.yaml"], tmp_path)
    assert done.code == 0, done.err
    assert "tiny: mean reward on 10 queries" in done.out
    for arm in ("no instruction", "Be brief. (best fixed)", "untrained teacher", "asked"):
        assert arm in done.out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["schema"] == "wst.results/2"
    assert f"{results['students']['tiny']['arms']['asked']['mean']:.3f}" in done.out
    before = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    again = wst(["compare", "--from", "out/rows.jsonl", "--resamples", "1000"], tmp_path)
    assert again.code == 0, again.err
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before
    limited = wst(["compare", "--config", "compare.yaml", "--limit=3", "--output=less"], tmp_path)
    assert limited.code == 0, limited.err
    assert json.loads((tmp_path / "less/results.json").read_text())["n"] == 3


@pytest.mark.slow
def test_what_could_not_be_run_is_told_and_the_exit_code_says_so(tmp_path: Path, tiny_model: str) -> None:
    write(tmp_path, tiny_model, trained={"lost": "runs/nowhere"}, asked={})
    done = wst(["compare", "--config", "compare.yaml"], tmp_path)
    assert done.code == 1
    assert "arm lost could not be run: trained 'runs/nowhere': no such adapter folder or checkpoint" in done.out
    assert "or --trained null for none" in done.out
    assert "untrained teacher" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": {}}, "students is empty"),
        (
            {"students": {"x": {"class_path": "wst.LocalStudent", "init_args": {"model": "none/such.gguf"}}}},
            "none/such",
        ),
        ({"colour": "red"}, "colour"),
        ({"reward": {"class_path": "toys.Nothing"}}, "toys.Nothing"),
        ({"limit": "many"}, "limit"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, tiny_model: str, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, tiny_model, **changes)
    done = wst(["compare", "--config", "compare.yaml"], tmp_path)
    assert done.code == 2
    [line] = [line for line in done.err.splitlines() if line.strip()]
    assert line.startswith("wst: error: ")
    assert message in line


def test_rows_that_are_not_there_are_a_mistake(tmp_path: Path) -> None:
    done = wst(["compare", "--from", "gone/rows.jsonl"], tmp_path)
    assert done.code == 2
    assert done.err.startswith("wst: error: gone/rows.jsonl: no such file; give the rows.jsonl of `wst compare`")
