"""Checks of the sentences in data/languages/."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "data" / "languages"
LANGUAGES = ("french", "german", "spanish", "italian")
ROWS = {"train": 105, "val": 26, "test": 55}


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_languages", FOLDER.parents[1] / "benchmarks/languages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(split: str, folder: Path = FOLDER) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("split", ROWS)
def test_each_file_has_as_many_rows_of_each_language(split: str) -> None:
    rows = load(split)
    assert all(list(row) == ["id", "text", "label"] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(LANGUAGES, ROWS[split])


def test_no_sentence_id_or_subject_occurs_in_two_files(made: ModuleType) -> None:
    rows = [row for split in ROWS for row in load(split)]
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    subjects = {language: parts[0].split("|") for language, parts in made.PARTS.items()}
    files: dict[tuple[str, str], set[str]] = {}
    for split in ROWS:
        for row in load(split):
            subject = max((s for s in subjects[row["label"]] if row["text"].startswith(s + " ")), key=len)
            files.setdefault((row["label"], subject), set()).add(split)
    assert {key for key, splits in files.items() if len(splits) > 1} == set()
    assert len(files) == 4 * 14


def test_the_script_writes_these_files(made: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "FOLDER", tmp_path)
    made.main()
    for split in ROWS:
        assert load(split, tmp_path) == load(split)
