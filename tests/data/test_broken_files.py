"""Broken files of every form: each is refused in one line, with file and row."""

from pathlib import Path
from typing import Any

import pytest
from data_forms import module, write

from wst.errors import DataError

BBH = {"canary": "do not train", "examples": [{"input": "not ( True ) is", "target": "False"}]}
SYSTEM, HUMAN = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
BROKEN: dict[str, tuple[str, Any, list[str], str]] = {
    "empty target": ("x.csv", "text,label\na,1\nb,\n", [], ":3: field 'label' is empty; "),
    "infinite target": ("x.csv", 'text,label\n"a\nb",1\nc,inf\n', [], ":4: field 'label' is inf, which is no answer; "),
    "query that is a number": (
        "x.json",
        [{"text": "a", "label": 1}, {"text": 5, "label": 1}],
        [],
        ": row 2: field 'text' is a number, not text; ",
    ),
    "infinity in JSON": (
        "x.json",
        '[{"text": "a", "label": 1},\n{"text": "b", "label": 1e999}]',
        [],
        ": row 2: field 'label' holds a number that is not finite; ",
    ),
    "too long a row": ("x.tsv", "text\tlabel\na\t1\nb\t2\tc\n", [], ":3: the row has 3 cells, the header 2; "),
    "too short a row": ("x.csv", "text,label\n\na\n", [], ":3: the row has 1 cells, the header 2; "),
    "quote without end": ("x.csv", 'text,label\na,1\n"b,2\nc,3\n', [], ":3: invalid CSV ("),
    "bytes": ("x.csv", b"text,label\na,1\n\xe9,2\n", [], ":3: not UTF-8 at byte 1 of the line; "),
    "null in parquet": (
        "x.parquet",
        [{"text": "a", "label": "x"}, {"text": "b", "label": None}],
        [],
        ": row 2: field 'label' is null, not text or a number; ",
    ),
    "no answer among several": (
        "x.json",
        {"rows": [{"text": "a", "label": ["x", ""]}]},
        ["records=rows"],
        ": row 1: field 'label' is empty; ",
    ),
    "no acceptable answer": (
        "x.parquet",
        [{"text": "a", "label": ["x"]}, {"text": "b", "label": []}],
        [],
        ": row 2: field 'label' is an empty list; ",
    ),
    "role": (
        "x.jsonl",
        [{"text": [{"role": "tool", "content": "a"}], "label": "x"}],
        [],
        ":1: field 'text', message 0: its role is 'tool'; ",
    ),
    "content": (
        "x.jsonl",
        [{"text": [{"role": "user", "content": [{"type": "image"}]}], "label": "x"}],
        [],
        ":1: field 'text', message 0: its content is a list, not text; ",
    ),
    "no question": (
        "x.jsonl",
        [{"text": [SYSTEM], "label": "x"}],
        [],
        ":1: the chat in field 'text' has no user turn; ",
    ),
    "no answer": (
        "x.jsonl",
        [{"text": [SYSTEM, HUMAN], "label": "x"}],
        ["fields.target=text", "fields.query=text"],
        ":1: the chat in field 'text' does not end with an answer; ",
    ),
    "list of texts": (
        "x.jsonl",
        [{"text": ["a"], "label": "x"}],
        [],
        ":1: field 'text' is a list, not text or a chat ",
    ),
    "field of a template": (
        "x.json",
        [{"a": "x", "label": 1}],
        ["fields.query={a} {b}"],
        ": row 1: field 'b' is missing (there are 'a', 'label'); ",
    ),
    "empty template": (
        "x.json",
        [{"a": "", "b": None, "label": 1}],
        ["fields.query={a} {b}"],
        ": row 1: the fields of '{a} {b}' are all empty; ",
    ),
    "row that is a text": ("x.json", [{"text": "a", "label": 1}, "b"], [], ": row 2 is a string, not an object; "),
    "syntax": ("x.json", '[{"text": "a"},\n{"text" "b"}]', [], ":2: invalid JSON at column 9 ("),
    "surrogate": (
        "x.json",
        '[{"text": "a", "o": ["\\ud800"], "label": 1}]',
        [],
        ": row 1: field 'o' holds a lone surrogate, ",
    ),
    "depth": (
        "x.json",
        '[{"text": "a", "o": ' + 101 * "[" + 101 * "]" + "}]",
        [],
        ": row 1: field 'o' is nested too deeply; ",
    ),
    "no records named": (
        "x.json",
        BBH,
        [],
        ": it is an object, not a list of records; there are 'canary', 'examples'; name ",
    ),
    "records that are not there": (
        "x.json",
        BBH,
        ["records=examplse"],
        ": there are no records at 'examplse' (there are 'canary', 'examples'); name ",
    ),
    "header alone": ("x.csv", "text,label\n", [], " holds no rows; "),
    "nothing": ("x.json", "[]", [], " holds no rows; "),
    "header that names a field twice": ("x.csv", "text,text\na,b\n", [], ":1: the header names a field twice; "),
    "cut off": ("x.csv.gz", "text,label\na,1\n", [], ":3: the gzip file is truncated here; "),
    "cut off parquet": ("x.parquet.gz", [{"text": "a", "label": "x"}], [], ": row 1 cannot be read ("),
    "id given twice": (
        "x.csv",
        "text,label\na,1\na,2\n",
        ["fields.id=text"],
        ":3: id 'a' was already given to {path}:2; ",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_file_and_row(case: str, tmp_path: Path) -> None:
    name, content, options, fault = BROKEN[case]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    if case.startswith("cut off"):
        path.write_bytes(path.read_bytes()[:-6])
    data = module(f"train={path}", *options)
    with pytest.raises(DataError) as caught:
        data.setup("fit")
    message = str(caught.value)
    assert message.startswith(f"{path}{fault.replace('{path}', str(path))}")
    assert len(message.splitlines()) == 1
    assert "; " in message, "no remedy"
