"""Rows from files and from the hub: how they are found, read and named, and what is said of damaged ones."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from wst.data.fields import Row
from wst.data.sources import as_list, file_rows, find_files, hub_rows, split_files
from wst.errors import DataError

ROWS = [{"question": f"q{number} ü", "number": number, "none": None} for number in range(5)]


def write(path: Path, rows: Iterable[dict[str, Any]] = ROWS, **options: Any) -> Path:
    """Write rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, **options)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(file_rows(path))
    return message(caught)


# --- Importing


@pytest.mark.slow  # to import lightning
def test_importing_the_data_modules_neither_loads_the_hub_client_of_data_sets_nor_calls_anyone() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): sys.exit('called')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import wst.data\n"
        "sys.exit(str([name for name in ('datasets', 'pyarrow', 'pandas') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "[]"


# --- Files


@pytest.mark.parametrize(
    ("name", "place"), [("x.jsonl", ":2"), ("x.jsonl.gz", ":2"), ("x.parquet", ": row 2"), ("a.b.parquet", ": row 2")]
)
def test_rows_know_their_place_and_have_an_id(tmp_path: Path, name: str, place: str) -> None:
    path = write(tmp_path / "data" / name)
    rows = list(file_rows(path))
    assert [row.values for row in rows] == ROWS
    assert rows[1].place == f"{path}{place}"
    assert [row.id for row in rows] == [f"data/{name}:{number}" for number in range(1, 6)]


def test_ids_stay_when_the_folder_moves_or_another_one_is_the_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / where / "data" / "x.jsonl", ROWS[:1]) for where in ("here", "there/below")]
    ids = [row.id for path in paths for row in file_rows(path)]
    for current, path in (
        ("here", "data/x.jsonl"),
        ("here/data", "x.jsonl"),
        ("there/below", "../../here/data/x.jsonl"),
    ):
        monkeypatch.chdir(tmp_path / current)
        ids += [row.id for row in file_rows(path)]
    monkeypatch.chdir(tmp_path / "here" / "data")
    ids += [row.id for row in file_rows("../data/x.jsonl")]
    assert ids == ["data/x.jsonl:1"] * 6


def test_a_link_gives_ids_of_its_own_name(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs" / "0a1b.parquet")
    link = tmp_path / "main" / "train.parquet"
    link.parent.mkdir()
    link.symlink_to(blob)
    assert next(file_rows(link)).id == "main/train.parquet:1"


def test_files_of_one_name_in_folders_of_different_names_have_different_ids(tmp_path: Path) -> None:
    ids = [row.id for folder in "ab" for row in file_rows(write(tmp_path / folder / "train.jsonl"))]
    assert len(set(ids)) == 10


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}')
    assert [row.place for row in file_rows(path)] == [f"{path}:2", f"{path}:4"]


def test_row_groups_are_counted_through(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", row_group_size=2)
    assert [row.place.rpartition(" ")[2] for row in file_rows(path)] == list("12345")


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_a_file_that_is_not_there_or_holds_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert refused(path).startswith(f"{path} does not exist; ")
    rows = pyarrow.table({"a": pyarrow.array([], pyarrow.string())}).to_pylist()
    assert refused(write(path, rows)).startswith(str(path))
    path.unlink()
    path.mkdir()
    assert refused(path).startswith(f"{path} is a folder; ")


@pytest.mark.parametrize("name", ["x" * 300, "*" + "x" * 300])
def test_a_name_that_is_too_long_for_a_file_is_one_that_is_not_there(name: str) -> None:
    with pytest.raises(DataError, match=r"^train: (no file matches|x+ does not exist)"):
        find_files(name, option="train")


def test_a_gzip_file_that_is_cut_off_is_named_with_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl.gz", [{"a": str(number)} for number in range(2000)])
    path.write_bytes(path.read_bytes()[:-400])
    said = refused(path)
    line = int(said.removeprefix(f"{path}:").split(":")[0])
    assert 1 < line <= 2000
    assert "the gzip file is truncated here; copy or compress it again" in said


@pytest.mark.parametrize("left", [0, 3, 100, -1, -20])
def test_a_parquet_file_that_is_cut_off_is_named(tmp_path: Path, left: int) -> None:
    path = write(tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:left])
    said = refused(path)
    assert said.startswith(f"{path}: row 1 cannot be read (")
    assert said.endswith("); copy the file again")


def test_a_damaged_parquet_file_is_named_with_about_the_row(tmp_path: Path) -> None:
    rows = [{"a": f"words of row {number:06}"} for number in range(1, 9001)]
    path = write(tmp_path / "x.parquet", rows, compression="none", use_dictionary=False)
    raw = path.read_bytes()
    length = raw.index(b"words of row 004500") - 4
    path.write_bytes(raw[:length] + b"\xff\xff\xff\x7f" + raw[length + 4 :])
    said = refused(path)
    assert said.startswith(f"{path}: row ")
    assert 3500 < int(said.removeprefix(f"{path}: row ").split()[0]) <= 4500


def test_a_parquet_file_with_text_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [{"a": "some words"}], compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"some words", b"\xff\xfe words!!"[:10]))
    assert refused(path).startswith(f"{path}: row 1 cannot be read (")


# --- Fields


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({}, "field 'answer' is missing (there are no fields at all); "),
        ({"a": 1, "b\nc": 2}, r"field 'answer' is missing (there are 'a', 'b\nc'); "),
        ({"answer": None}, "field 'answer' is null, not text; "),
        ({"answer": 5}, "field 'answer' is a number, not text; "),
        ({"answer": ["five"]}, "field 'answer' is a list, not text; "),
        ({"answer": ""}, "field 'answer' is empty; "),
        ({"answer": " \n"}, "field 'answer' is empty; "),
    ],
)
def test_a_field_without_text_is_named_with_its_place(values: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError) as caught:
        Row("x.jsonl:7", "x.jsonl:7", values).text("answer")
    assert message(caught).startswith(f"x.jsonl:7: {fault}")


def test_text_is_given_as_it_is() -> None:
    assert Row("", "", {"answer": " five\n"}).text("answer") == " five\n"


# --- Folders


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("train.jsonl", ["test.jsonl", "train.json", "trainer.jsonl"]),
        ("train.jsonl.gz", ["test.jsonl.gz", "train.txt.gz"]),
        ("train.parquet", ["test.parquet", "a-train.parquet"]),
        ("main/train-00000-of-00001.parquet", ["main/test-00000-of-00001.parquet", "README.md"]),
    ],
)
def test_the_files_of_a_split_are_found_by_their_names(tmp_path: Path, name: str, others: list[str]) -> None:
    for other in (name, *others):
        write(tmp_path / other)
    assert split_files(tmp_path, "train") == [tmp_path / name]


def test_files_below_the_folder_are_found_in_their_order(tmp_path: Path) -> None:
    names = ["a/train-00000-of-00002.parquet", "a/train-00001-of-00002.parquet", "b/train-00000-of-00001.parquet"]
    for name in reversed(names):
        write(tmp_path / name)
    assert split_files(tmp_path, "train") == [tmp_path / name for name in names]


def test_a_split_that_lies_there_in_two_formats_is_read_once(tmp_path: Path) -> None:
    for name in ("train.parquet", "train.jsonl.gz", "train.jsonl"):
        write(tmp_path / name)
    assert split_files(tmp_path, "train") == [tmp_path / "train.jsonl"]


def test_a_part_is_looked_for_in_its_own_folder_alone(tmp_path: Path) -> None:
    for name in ("a/train.jsonl", "b/train.jsonl", "b/test.jsonl"):
        write(tmp_path / name)
    assert split_files(tmp_path, "train", "a") == [tmp_path / "a" / "train.jsonl"]
    assert split_files(tmp_path / "a", "train", "a") == [tmp_path / "a" / "train.jsonl"]
    # Another part's files are never taken for it.
    for split, part in (("train", "c"), ("test", "a")):
        with pytest.raises(DataError) as caught:
            split_files(tmp_path, split, part)
        assert message(caught) == (
            f"{tmp_path / part} holds no file of the split '{split}'; put {split}.jsonl or {split}.jsonl.gz or "
            f"{split}.parquet or {split}-*.parquet there"
        )


@pytest.mark.parametrize(("given", "files"), [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"])])
def test_one_name_several_or_none(given: str | list[str] | None, files: list[str]) -> None:
    assert as_list(given) == files


# --- The hub


def test_rows_of_the_hub_are_named_by_data_set_part_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(repo: str, **options: Any) -> list[dict[str, Any]]:
        asked.append((repo, options))
        return ROWS

    monkeypatch.setattr("datasets.load_dataset", load)
    rows = list(hub_rows("some/set", "train", needs="", name="part", revision="0a1b"))
    assert asked == [("some/set", {"split": "train", "name": "part", "revision": "0a1b"})]
    assert [row.values for row in rows] == ROWS
    assert (rows[1].place, rows[1].id) == ("some/set/part (train): row 1", "some/set/part:train:1")
    assert next(hub_rows("some/set", "test", needs="")).id == "some/set:test:0"


def test_a_row_of_the_hub_that_cannot_be_decoded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[0]
        raise OverflowError("date value out of range")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())
    found = hub_rows("some/set", "train", needs="")
    assert next(found).values == ROWS[0]
    with pytest.raises(DataError, match=r"some/set \(train\): row 1 cannot be read \(date value out of range\)"):
        next(found)


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("no such\nconfig"), "no such"), (RuntimeError(), "RuntimeError")]
)
def test_whatever_the_hub_fails_with_is_one_line_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def load(repo: str, **options: Any) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(DataError) as caught:
        next(hub_rows("some/set", "train", needs="put x.jsonl there"))
    assert message(caught) == f"some/set cannot be loaded from the hub ({reason}); put x.jsonl there"
