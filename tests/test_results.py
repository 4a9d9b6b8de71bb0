"""The tables of docs/results.md come from the published rows, to the digit."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from runs import TESTS

FOLDER = TESTS.parent / "benchmarks" / "results"
PAGE = (TESTS.parent / "docs" / "results.md").read_text(encoding="utf-8")
FILES = sorted(FOLDER.glob("*.jsonl.gz"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", FOLDER / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_rows() -> None:
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_a_table_is_that_of_its_rows(file: Path, tables: ModuleType) -> None:
    assert tables.table(file) in PAGE
