"""Data as people have them: each form is loaded by options alone."""

import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import polars
import pyarrow
import pytest
from data_forms import module, write
from pyarrow import parquet

from wst import FieldMap, Message, Query, QueryDataModule
from wst.errors import ConfigError, DataError

SVAMP = [
    {"ID": "chal-1", "Body": "There are 87 oranges in 94 baskets.", "Question": "How many per basket?", "Answer": 51.0},
    {"ID": "chal-2", "Body": "Paco had 26 cookies.", "Question": "How many are left?", "Answer": 0.5},
]
BBH = {"canary": "do not train", "examples": [{"input": "not ( True ) is", "target": "False"}]}
NAMED = {
    "nq-1": {"question": "Largest US city?", "answers": ["New York", "NYC", "NYC"]},
    "nq-2": {"question": "?", "answers": ["x"]},
}
GSM8K = [{"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in (3, 4)]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris"},
]
TICKETS = 'id,text,queue,urgent\n7,"It leaks,\nsince ""yesterday"".",billing,True\n8,NA,null,False\n'


def short(queries: Any) -> list[tuple[str, Any]]:
    return [(query.text, query.target) for query in queries]


SUMS = [("What is 3 + 1?", "One more.\n#### 4"), ("What is 4 + 1?", "One more.\n#### 5")]
ANSWERS = [("Largest US city?", ("New York", "NYC")), ("?", "x")]
QUESTION = ["fields.query=question", "fields.target=answer"]
FORMS: dict[str, tuple[dict[str, Any], list[str], list[tuple[str, Any]]]] = {
    "SVAMP": (
        {"svamp.json": SVAMP},
        ["train=svamp.json", "fields.query={Body} {Question}", "fields.target=Answer", "fields.id=ID"],
        [
            ("There are 87 oranges in 94 baskets. How many per basket?", "51"),
            ("Paco had 26 cookies. How many are left?", "0.5"),
        ],
    ),
    "BBH": (
        {"bbh.json.gz": BBH},
        ["train=bbh.json.gz", "records=examples", "fields.query=input", "fields.target=target"],
        [("not ( True ) is", "False")],
    ),
    "records within records": (
        {"x.json": {"data": {"parts": [{"rows": BBH["examples"]}]}}},
        ["train=x.json", "records=data.parts.0.rows", "fields.query=input", "fields.target=target"],
        [("not ( True ) is", "False")],
    ),
    "dictionary of examples": (
        {"nq.json": NAMED},
        ["train=nq.json", "fields.query=question", "fields.target=answers"],
        ANSWERS,
    ),
    "dictionary of columns": (
        {"nq.json": {"q": ["Largest US city?", "?"], "a": [["New York", "NYC"], ["x"]]}},
        ["train=nq.json", "fields.query=q", "fields.target=a"],
        ANSWERS,
    ),
    "JSON Lines called JSON": (
        {"x.json": "\n".join(map(json.dumps, GSM8K))},
        ["train=x.json", *QUESTION],
        SUMS,
    ),
    "GSM8K": ({"train.parquet": GSM8K}, ["train=train.parquet", *QUESTION], SUMS),
    "GSM8K gzipped": ({"train.parquet.gz": GSM8K}, ["train=train.parquet.gz", *QUESTION], SUMS),
    "dotted paths": (
        {"x.parquet": [{"q": {"text": ["a", "b"]}, "answers": {"text": ["x", "y"], "start": [0, 1]}}]},
        ["train=x.parquet", "fields.query=q.text.1", "fields.target=answers.text"],
        [("b", ("x", "y"))],
    ),
    "tickets": (
        {"tickets.csv": "\ufeff" + TICKETS},
        ["train=tickets.csv", "fields.target=queue", "fields.id=id"],
        [('It leaks,\nsince "yesterday".', "billing"), ("NA", "null")],
    ),
    "numbers in a table": (
        {"t.tsv.gz": "text\tlabel\na, b\t51.0\n\nc\t007\nd\t2.50\n"},
        ["train=t.tsv.gz"],
        [("a, b", "51"), ("c", "007"), ("d", "2.50")],
    ),
    "text of a template, as it is": (
        {"x.csv": "name,version,label\nNan,3.0,x\nnan,,y\n"},
        ["train=x.csv", "fields.query={name} {version}"],
        [("Nan 3.0", "x"), ("nan ", "y")],
    ),
    "booleans": (
        {"x.jsonl": [{"text": "a", "label": True}, {"text": "b", "label": 2.0}]},
        ["train=x.jsonl"],
        [("a", "true"), ("b", "2")],
    ),
    "several files": (
        {"a/x.csv": "text,label\na,1\n", "b/x.csv": "text,label\nb,2\n"},
        ["train=[a/x.csv,b/x.csv]"],
        [("a", "1"), ("b", "2")],
    ),
    "glob": (
        {"p/2.jsonl": [{"text": "b", "label": 2}], "p/1.csv": "text,label\na,1\n", "p/notes.md": "none"},
        ["train=p/[0-9].*"],
        [("a", "1"), ("b", "2")],
    ),
    "hub, as a folder": (
        {"set/main/train-00000-of-00001.parquet": GSM8K, "set/socratic/train-00000-of-00001.parquet": GSM8K[:1]},
        ["hub=set", "hub_config=main", "train=train", *QUESTION],
        SUMS,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_loaded_by_options_alone(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, options, expected = FORMS[form]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "getaddrinfo", None)  # nobody is called
    for name, content in files.items():
        write(tmp_path / name, content)
    data = module(*options)
    data.setup("fit")
    assert short(data.queries("train")) == expected
    ids = [query.id for query in data.queries("train")]
    assert len(set(ids)) == len(ids)


def test_a_chat_becomes_history_query_and_target(tmp_path: Path) -> None:
    write(tmp_path / "chat.jsonl", [{"messages": CHAT, "topic": "t"}, {"messages": CHAT[1:2] + CHAT[4:], "topic": "u"}])
    train = f"train={tmp_path / 'chat.jsonl'}"
    first, second = module(train, "fields.query=messages", "fields.target=messages").queries("train")
    turns = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."))
    assert first == Query("chat.jsonl:1", "Capital of France?", "Paris", turns, {"topic": "t"})
    assert second == Query("chat.jsonl:2", "Hi", "Paris", (), {"topic": "u"})
    assert module(train, "fields.query=messages", "fields.target=topic").queries("train")[0].target == "t"


FRAME = {"q": ["a", "b"], "gold": [51.0, 0.5], "who": ["me", None]}


@pytest.mark.parametrize(
    "records",
    [
        [{"q": "a", "gold": 51, "who": "me"}, {"q": "b", "gold": "0.5", "who": None}],
        FRAME,
        pandas.DataFrame(FRAME),
        polars.DataFrame(FRAME),
        datasets.Dataset.from_dict(FRAME),
        datasets.Dataset.from_dict(FRAME).to_iterable_dataset(),
        [Query("train:0", "a", "51", extra={"who": "me"}), Query("train:1", "b", "0.5", extra={"who": None})],
    ],
    ids=["dicts", "columns", "pandas", "polars", "datasets", "iterable", "queries"],
)
def test_objects_in_memory(records: Any) -> None:
    fields = FieldMap(query="q", target="gold")
    for data in (
        QueryDataModule.from_records(records, fields=fields),
        QueryDataModule(loader={"train": records}.get, fields=fields),
    ):
        data.setup("fit")
        assert short(data.queries("train")) == [("a", "51"), ("b", "0.5")]
        assert [query.id for query in data.queries("train")] == ["train:0", "train:1"]
        assert [query.extra["who"] or None for query in data.queries("train")][:1] == ["me"]


def test_what_a_frame_lacks_is_empty_in_a_template() -> None:
    frame = pandas.DataFrame({"a": ["x", None], "b": [1.0, float("nan")], "label": ["y", "z"]})
    data = QueryDataModule.from_records(frame, fields=FieldMap(query="{a}-{b}"))
    assert [query.text for query in data.queries("train")] == ["x-1", "-"]


def test_values_of_frames() -> None:
    frame = pandas.DataFrame({"text": list("abcd"), "label": [[1.0, 2], ("x", "y"), True, None]})
    frame.at[3, "label"] = pandas.Series([7]).to_numpy()
    rows = QueryDataModule.from_records(frame, predict=frame[:1].assign(label=float("nan")))
    assert [query.target for query in rows.queries("train")] == [("1", "2"), ("x", "y"), "true", "7"]
    assert rows.queries("predict")[0].target is None
    labelled = datasets.Dataset.from_dict({"text": ["a"], "label": [1]})
    labelled = labelled.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    assert QueryDataModule.from_records(labelled).queries("train")[0].target == "pos"


def test_the_shares_of_objects_in_memory() -> None:
    rows = [{"text": str(n), "label": n} for n in range(20)]
    data = QueryDataModule.from_records(rows, test=rows[:3], val_share=0.25)
    assert [len(data.queries(split)) for split in ("train", "val", "test", "predict")] == [15, 5, 3, 3]


def loader(split: str) -> list[dict[str, str]] | None:
    return [{"text": f"{split} {n}", "label": "x"} for n in range(4)] if split == "train" else None


def test_a_function_is_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    data = module("loader=test_forms.loader", "val_share=0.5")
    assert sorted(short([*data.queries("train"), *data.queries("val")])) == [(f"train {n}", "x") for n in range(4)]
    assert list(data.queries("test")) == []


def test_a_target_may_have_many_digits(tmp_path: Path) -> None:
    digits = "7" * 400  # more than a float holds
    (query,) = QueryDataModule.from_records([{"text": "a", "label": int(digits)}], val_share=0).queries("train")
    assert query.target == digits
    for name in ("x.csv", "x.jsonl"):
        rows = f"text,label\na,{digits}\n" if name == "x.csv" else f'{{"text": "a", "label": {digits}}}\n'
        (tmp_path / name).write_text(rows)
        (query,) = QueryDataModule(str(tmp_path / name), val_share=0).queries("train")
        assert query.target == digits


@pytest.mark.parametrize(
    ("records", "fault"),
    [
        ([{"text": "a", "label": 1}, {"text": "b", "label": float("inf")}], "train: row 1: field 'label' is inf, "),
        (pandas.DataFrame({"text": ["a"], "label": [float("nan")]}), "train: row 0: field 'label' is nan, "),
        (pandas.DataFrame({"text": ["a"], "label": [pandas.NA]}), "train: row 0: field 'label' is null, "),
        (pandas.Series(["a"]), "train: row 0 is a string, not a dict "),
        ([{"text": "\ud800", "label": 1}], "train: row 0: field 'text' holds a lone surrogate"),
        ([{"text": "a", "label": 1}, ["b"]], "train: row 1 is a list, not a dict "),
        ([{"text": "a", "label": 1, "f": lambda: 0}], "train: row 0: a field cannot be stored ("),
        ([Query("a", "x"), Query("a", "y")], "train: row 1: id 'a' was already given to train: row 0; "),
    ],
)
def test_a_broken_record_is_refused_with_its_row(records: Any, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        QueryDataModule.from_records(records).setup("fit")
    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: QueryDataModule.from_records("rows.csv"), "train must be a list of dicts, "),
        (lambda: QueryDataModule.from_records(5), "train must be a list of dicts, a frame, .* got a number"),
        (
            lambda: QueryDataModule.from_records(datasets.DatasetDict(train=datasets.Dataset.from_dict(FRAME))),
            "train must be .* got an object; of a dict",
        ),
        (lambda: QueryDataModule.from_records([], test=[], test_share=0.1), "test and test_share are both given"),
        (lambda: QueryDataModule(train=pandas.DataFrame(FRAME)), "train must be a path .*from_records"),  # type: ignore[arg-type]
        (lambda: QueryDataModule(loader=loader, train="x.csv"), "loader and train are both given"),
        (lambda: QueryDataModule(loader=5), "loader must be a function"),  # type: ignore[arg-type]
        (lambda: QueryDataModule(hub_config="main"), "hub_config and hub_revision are given without hub"),
        (lambda: QueryDataModule(train="rows-*.csv"), "train: no file matches rows-\\*.csv"),
        (lambda: FieldMap(query="{Body} {"), "fields.query .* is no template"),
        (lambda: FieldMap(query="{} {a}"), "fields.query .* write the name of a field"),
        (lambda: FieldMap(query="{a!r}"), "fields.query .* write the name of a field"),
    ],
)
def test_a_wrong_option_is_refused_where_it_is_given(make: Callable[[], Any], fault: str) -> None:
    with pytest.raises((ConfigError, DataError), match=fault):
        make()


def test_a_format_that_cannot_be_read_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "tickets.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"train: .*tickets\.xlsx cannot be read; convert it to \.csv"):
        module(f"train={tmp_path / 'tickets.xlsx'}")


def test_a_data_set_of_the_hub_is_named_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(repo: str, **options: Any) -> list[dict[str, str]]:
        asked.append((repo, options))
        return GSM8K

    monkeypatch.setattr("datasets.load_dataset", load)
    data = module("hub=openai/gsm8k", "hub_config=main", "hub_revision=v1", "train=train[:9]", "test=test", *QUESTION)
    assert asked == []
    assert short(data.queries("train")) == short(data.queries("test")) == SUMS
    assert [query.id for query in data.queries("test")] == ["openai/gsm8k/main:test:0", "openai/gsm8k/main:test:1"]
    options = {"name": "main", "revision": "v1"}
    assert asked == [("openai/gsm8k", {"split": split, **options}) for split in ("train[:9]", "test")]


def test_a_split_that_the_hub_does_not_have_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write(tmp_path / "set" / "train.jsonl", GSM8K)
    with pytest.raises(DataError, match=r"cannot be loaded from the hub \(.*; check hub, hub_config and test, or "):
        module(f"hub={tmp_path / 'set'}", "train=train", "test=tset").setup("test")


@pytest.mark.parametrize("form", ["pandas", "polars", "parquet", "datasets"])
def test_narrow_numbers_keep_their_digits(tmp_path: Path, form: str) -> None:
    frame = pandas.DataFrame({"text": ["a", "b"], "label": np.array([0.1, 19.99], "float32")})
    if form == "parquet":
        frame.to_parquet(tmp_path / "x.parquet")
        data = QueryDataModule(str(tmp_path / "x.parquet"))
    else:
        forms = {"pandas": frame, "polars": polars.from_pandas(frame), "datasets": datasets.Dataset.from_pandas(frame)}
        data = QueryDataModule.from_records(forms[form])
    assert [query.target for query in data.queries("train")] == ["0.1", "19.99"]


def test_class_labels_in_a_list_count_by_name() -> None:
    label = datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "cow"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [[0, 2], [1]]}, features=features)
    queries = QueryDataModule.from_records(rows).queries("train")
    assert [query.targets for query in queries] == [("cat", "cow"), ("dog",)]


def test_a_date_beyond_all_calendars_is_one_line(tmp_path: Path) -> None:
    times = pyarrow.array([10**15], pyarrow.timestamp("s"))
    parquet.write_table(pyarrow.table({"text": ["a"], "label": ["b"], "t": times}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: row 1 cannot be read"):
        QueryDataModule(str(tmp_path / "x.parquet")).queries("train")
    (tmp_path / "y.parquet.gz").write_bytes(gzip.compress(b"x" * 1000)[:-20] + b"damaged" * 3)
    with pytest.raises(DataError, match=r"y\.parquet\.gz: row 1 cannot be read"):
        QueryDataModule(str(tmp_path / "y.parquet.gz")).queries("train")
