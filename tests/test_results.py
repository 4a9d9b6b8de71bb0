"""The tables of docs/results.md come from the published rows, to the digit."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from runs import TESTS

FOLDER = TESTS.parent / "benchmarks" / "results"
PAGE = (TESTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
FILES = sorted(FOLDER.glob("*.jsonl.gz"))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("tables")


def test_there_are_rows() -> None:
    assert FILES


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_a_table_is_that_of_its_rows(file: Path, tables: ModuleType) -> None:
    assert tables.table(file) in PAGE


def test_a_query_that_serves_two_purposes_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"train": ["One", "Two"], "val": ["Three"], "test": ["two ", "Four"]}
    files = {}
    for split, texts in rows.items():
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps({"text": t, "label": "x"}) + "\n" for t in texts))

    def run(name: str, test: str, trained: str = "wst.WeakToStrong") -> str:
        options = {"train": files["train"], "val": None, "test": files[test], "val_share": 0.0}
        data = {"class_path": "wst.QueryDataModule", "init_args": options}
        (tmp_path / name).mkdir()
        config = yaml.safe_dump({"data": data, "model": {"class_path": trained}})
        (tmp_path / name / "config.yaml").write_text(config)
        return str(tmp_path / name)

    disjoint = script("disjoint")
    apart, seed, mixed = run("apart", "val"), run("seed", "val"), run("mixed", "test")
    preference = run("preference", "val", "wst.PreferenceModel")
    assert disjoint.main([apart, seed]) == 0
    assert disjoint.main([mixed]) == 1
    assert "mixed train and" in capsys.readouterr().out
    assert disjoint.main([apart, preference]) == 1
    assert "apart train and" in capsys.readouterr().out


def test_a_table_of_rows_that_are_not_there_is_an_error(tables: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no rows named 'unknown'.*demo_seed0"):
        tables.files(["unknown"])
