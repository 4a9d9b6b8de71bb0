"""Reading JSON Lines: what comes out, and what each fault is called."""

import copy
import gzip
import json
import os
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from wst.data.fields import FieldMap
from wst.data.jsonl import check_file, read_rows
from wst.data.queries import Queries
from wst.data.sources import file_rows
from wst.errors import ConfigError, DataError
from wst.types import Query

GOOD = '{"text": "a", "label": "x"}'


def lines(*rows: dict[str, Any] | str) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def write(folder: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(path: str | Path, fields: FieldMap, need_target: bool = True) -> Queries:
    rows = file_rows(path, name=Path(path).name)
    return Queries((row.place, fields.read(row, need_target)) for row in rows)


def fault(path: Path, fields: FieldMap | None = None) -> str:
    """The message of the one error there is, which must be a single line."""
    with pytest.raises(DataError) as caught:
        read(path, fields or FieldMap())
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "; " in message, "no remedy"
    return message


def test_rows_become_queries(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"id": 7, "text": "Größe\u2028?", "label": "x", "topic": "t", "n": [1]}))
    assert list(read(path, FieldMap())) == [
        Query("rows.jsonl:1", "Größe\u2028?", "x", extra={"id": 7, "topic": "t", "n": [1]})
    ]
    assert list(read(path, FieldMap(query="topic", target=None, id="id"))) == [
        Query("7", "t", None, extra={"text": "Größe\u2028?", "label": "x", "n": [1]})
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (51.0, "51"),
        (-0.0, "0"),
        (-0.5, "-0.5"),
        (1e22, "1" + 22 * "0"),
        (2**70, str(2**70)),
        (True, "true"),
        ("51.0", "51.0"),
    ],
)
def test_targets_may_be_numbers_and_booleans(tmp_path: Path, value: object, text: str) -> None:
    assert read(write(tmp_path, lines({"text": "a", "label": value})), FieldMap())[0].target == text


def test_blank_lines_and_byte_order_mark_are_skipped_and_lines_still_counted(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + lines(GOOD, "", " \t") + b"\r\n" + GOOD.encode() + b"\r\n\n" + GOOD.encode()
    assert [line for line, _ in read_rows(write(tmp_path, content))] == [1, 5, 7]


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    content = '{"text": "a\u2028b\x85c", "label": "x"}\n'.encode()
    assert [row["text"] for _, row in read_rows(write(tmp_path, content))] == ["a\u2028b\x85c"]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl"])
def test_gzip_is_told_by_content(tmp_path: Path, name: str) -> None:
    packed = read(write(tmp_path, gzip.compress(lines(GOOD, GOOD)), name), FieldMap())
    plain = read(write(tmp_path, lines(GOOD, GOOD), name), FieldMap())
    assert list(packed) == list(plain)
    assert [query.id for query in packed] == [f"{name}:1", f"{name}:2"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system")
def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(gzip.compress(lines(GOOD)),), daemon=True)
    writer.start()
    assert len(read(path, FieldMap())) == 1
    writer.join()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        pytest.param('{"text": "a" "label": "x"}', ["column 14"], id="invalid"),
        pytest.param('{"text": "a', ["column 10"], id="cut off"),
        pytest.param('{"text": "NaN", "label": -Infinity}', ["-Infinity is not"], id="not JSON's number"),
        pytest.param('{"text": "a", "label": ' + "9" * 5000 + "}", ["invalid JSON"], id="endless number"),
        pytest.param("[" * 200_000, ["nested"], id="deep"),
        # Each of its quotes might begin another string, so that a search from each takes minutes.
        pytest.param('{"text": "' + "[" * 101 + r"\"" * 150_000, ["column 10"], id="a string without an end"),
        pytest.param("{'text': 'a'}", ["column 2"], id="python"),
        pytest.param('["a"]', ["a list", "object"], id="list"),
        pytest.param("null", ["null", "object"], id="null row"),
        pytest.param('"a"', ["a string", "object"], id="string row"),
        pytest.param('{"txt": "a", "label": "x"}', ["'text'", "'txt', 'label'", "fields.query"], id="no query"),
        pytest.param('{"text": "a", "gold\\n": 1}', ["'label'", "'text', 'gold\\n'", "fields.target"], id="no target"),
        pytest.param("{}", ["'text'", "no fields"], id="no fields"),
        pytest.param('{"text": null, "label": "x"}', ["'text'", "null"], id="null query"),
        pytest.param('{"text": "a", "label": null}', ["'label'", "null"], id="null target"),
        pytest.param('{"text": "", "label": "x"}', ["'text'", "empty"], id="empty query"),
        pytest.param('{"text": " \\n", "label": "x"}', ["'text'", "empty"], id="blank query"),
        pytest.param('{"text": 5, "label": "x"}', ["'text'", "a number", "not text"], id="number as query"),
        pytest.param('{"text": ["a"], "label": "x"}', ["'text'", "a list"], id="list as query"),
        pytest.param('{"text": "a", "label": []}', ["'label'", "empty list"], id="no answer"),
        pytest.param('{"text": "a", "label": ["x", [1]]}', ["'label'", "a list"], id="list among answers"),
        pytest.param('{"text": "a", "label": ["x", " "]}', ["'label'", "empty"], id="blank answer"),
        pytest.param('{"text": "a", "label": {"b": 1}}', ["'label'", "an object"], id="object as target"),
        pytest.param('{"text": "a", "label": ""}', ["'label'", "empty", "fields.target"], id="empty target"),
        pytest.param('{"text": "a", "label": " "}', ["'label'", "empty"], id="blank target"),
        pytest.param('{"text": "a", "label": 1e400}', ["1e400 is too large"], id="infinite target"),
        pytest.param('{"text": "a", "label": "x", "n": [-1e999]}', ["-1e999 is too large"], id="infinite field"),
        pytest.param('{"text": "a", "label": "x", "n": ' + 101 * "[" + 101 * "]" + "}", ["nested"], id="deep field"),
        pytest.param('{"text": "\\ud800", "label": "x"}', ["'text'", "surrogate"], id="surrogate"),
        pytest.param('{"text": "a", "label": "x", "o": [{"\\udfff": 1}]}', ["'o'", "surrogate"], id="deep surrogate"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, bad: str, words: list[str]) -> None:
    path = write(tmp_path, lines(GOOD, "", bad, GOOD))
    message = fault(path)
    assert message.startswith(f"{path}:3: ")
    assert len(message) < len(str(path)) + 300
    for word in words:
        assert word in message


def test_a_whole_surrogate_pair_is_text(tmp_path: Path) -> None:
    path = write(tmp_path, lines('{"text": "\\ud83d\\ude00", "label": "x"}'))
    assert read(path, FieldMap())[0].text == "😀"


def test_columns_are_counted_without_the_byte_order_mark(tmp_path: Path) -> None:
    assert "column 1 " in fault(write(tmp_path, b"\xef\xbb\xbf" + lines("x")))


@pytest.mark.parametrize(
    ("bad", "byte"), [(b'{"text": "\xe9"}', 11), (b'{"text": "\xed\xa0\x80"}', 11), ('{"a": 1}'.encode("utf-16"), 1)]
)
def test_other_encodings_are_named(tmp_path: Path, bad: bytes, byte: int) -> None:
    path = write(tmp_path, lines(GOOD) + bad)
    message = fault(path)
    assert message.startswith(f"{path}:2: not UTF-8 at byte {byte} ")


@pytest.mark.parametrize("name", ["", "x", "x\n.jsonl"])
def test_missing_file_or_folder(tmp_path: Path, name: str) -> None:
    message = fault(tmp_path / name)
    assert ("is a folder" if name == "" else "does not exist") in message
    with pytest.raises(DataError, match=r"^train: "):
        check_file(tmp_path / name, option="train")


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)], ids=["empty", "blank", "mark", "packed"]
)
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, content)
    assert fault(path).startswith(f"{path} is empty; ")


def test_gzip_cut_off_or_damaged(tmp_path: Path) -> None:
    packed = gzip.compress(lines(GOOD, GOOD))
    assert "rows.jsonl:3: the gzip file is truncated" in fault(write(tmp_path, packed[:-6]))
    assert "rows.jsonl:1: the gzip file is truncated" in fault(write(tmp_path, packed[:2]))
    for damaged in (packed[:12] + b"\xff\xff\xff\xff" + packed[16:], packed[:-8] + b"\0" * 8):
        assert "the gzip file is damaged" in fault(write(tmp_path, damaged))


def test_a_file_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("wst.data.jsonl.open", refuse, raising=False)
    path = write(tmp_path, lines(GOOD))
    assert fault(path).startswith(f"{path}: cannot be read (Permission denied); ")


@pytest.mark.parametrize(("first", "second"), [("a", "a"), (1, "1")])
def test_an_id_given_twice(tmp_path: Path, first: object, second: object) -> None:
    rows = [{"text": "a", "label": "x", "key": key} for key in (first, "other", second)]
    path = write(tmp_path, lines(rows[0], rows[1], "", rows[2]))
    message = fault(path, FieldMap(id="key"))
    assert message.startswith(f"{path}:4: id {str(first)!r} was already given to {path}:1; ")


@pytest.mark.parametrize(
    ("row", "words"),
    [({}, "'key' is missing"), ({"key": None}, "is null"), ({"key": ""}, "empty"), ({"key": [1]}, "a list")],
)
def test_a_bad_id(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    message = fault(write(tmp_path, lines({"text": "a", "label": "x", **row})), FieldMap(id="key"))
    assert "rows.jsonl:1: " in message
    assert words in message
    assert "fields.id" in message


def test_the_target_may_be_left_out_where_it_is_not_needed(tmp_path: Path) -> None:
    path = write(tmp_path, lines({"text": "a"}, *({"text": "a", "label": label} for label in (None, "", 1))))
    queries = read(path, FieldMap(), need_target=False)
    assert [query.target for query in queries] == [None, None, None, "1"]
    assert all("label" not in query.extra for query in queries)


@pytest.mark.parametrize("option", ["query", "target", "id"])
def test_field_names_must_not_be_empty(option: str) -> None:
    with pytest.raises(ConfigError, match=rf"fields\.{option} is empty; "):
        FieldMap(**{option: ""})


@pytest.mark.parametrize("option", ["query", "target", "id"])
@pytest.mark.parametrize("name", [["text"], {"a": 1}, 5, True])
def test_field_names_must_be_text(option: str, name: object) -> None:
    with pytest.raises(ConfigError, match=rf"fields\.{option} is .*; name one field"):
        FieldMap(**{option: name})


def test_brackets_within_text_are_no_nesting(tmp_path: Path) -> None:
    text = 200 * '["\\' + 200 * "{"
    assert read(write(tmp_path, lines({"text": text, "label": "x"})), FieldMap())[0].text == text


def test_a_row_of_ten_megabytes_is_read(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, lines({"text": 10**7 * "a", "label": "x"})), FieldMap())[0].text) == 10**7


def test_relative_paths_start_at_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, lines(GOOD))
    monkeypatch.chdir(tmp_path)
    assert len(read("rows.jsonl", FieldMap())) == 1
    with pytest.raises(DataError, match=r"^other\.jsonl does not exist"):
        read("other.jsonl", FieldMap())


@pytest.mark.slow
@pytest.mark.parametrize("fields", [FieldMap(), FieldMap(id="id")])
def test_rows_take_little_more_memory_than_the_file(tmp_path: Path, fields: FieldMap) -> None:
    rows = [{"text": f"{i}: " + 40 * "ab", "label": "x", "id": f"q{i}"} for i in range(20_000)]
    path = write(tmp_path, b"\n\n".join(json.dumps(row).encode() for row in rows))
    tracemalloc.start()
    queries = read(path, fields)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1.25 * path.stat().st_size + 20 * len(rows)
    some = queries.select([3, 1_999])
    assert [query.text[:4] for query in some] == ["3: a", "1999"]
    assert [query.id for query in some] == (["q3", "q1999"] if fields.id else ["rows.jsonl:7", "rows.jsonl:3999"])
    assert list(some.select([1])) == list(some)[1:]
    assert copy.deepcopy(queries)[3] == queries[3] == some[0]
    assert [query.text for query in queries[-2:]] == [row["text"] for row in rows[-2:]]
    with pytest.raises(IndexError):
        queries[20_000]


def test_a_file_that_changes_after_it_was_read_does_not_matter(tmp_path: Path) -> None:
    path = write(tmp_path, lines(GOOD, GOOD))
    queries = read(path, FieldMap())
    path.write_bytes(lines({"text": "other", "label": "y"}))
    assert [query.text for query in queries] == ["a", "a"]
