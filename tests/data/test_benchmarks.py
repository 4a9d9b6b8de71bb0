"""GSM8K and MATH, and what they have in common with other benchmarks: sources, splits, limits, counts."""

import gzip
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pyarrow
import pytest
from pyarrow import parquet

from wst.data import GSM8K, HHRLHF, MATH, Benchmark
from wst.data.datamodule import Split
from wst.data.math import SUBJECTS
from wst.errors import ConfigError, DataError
from wst.types import Query

SPLITS: tuple[Split, ...] = ("train", "test")
VAL = ["5", "11", "33", "34"]


def sums(numbers: Iterable[int]) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1:,}"} for n in numbers]


def problems(numbers: Iterable[int], **more: Any) -> list[dict[str, Any]]:
    return [{"problem": f"Find $x = {n}$.", "solution": rf"It is $\boxed{{{n}}}$.", **more} for n in numbers]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def ids(queries: Iterable[Query]) -> list[str]:
    return [query.id for query in queries]


def adds_up(data: Benchmark) -> bool:
    return all(count["in"] == sum(count.values()) - count["in"] for count in data.counts.values())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a folder with 40 sums to train on and 8 to test on."""
    write(tmp_path / "sums" / "train.jsonl", sums(range(40)))
    write(tmp_path / "sums" / "test.jsonl", sums(range(100, 108)))
    return tmp_path / "sums"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """Catch what the first process says; whether Lightning passes it on to the root logger varies."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger=logger.name):
        yield caplog
    logger.removeHandler(caplog.handler)


class Hub:
    """Stands in for `datasets.load_dataset`: writes down what it is asked for, and gives two rows each time."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, repo: str, **options: Any) -> list[dict[str, Any]]:
        self.asked.append((repo, options))
        numbers = range(2 * len(self.asked), 2 * len(self.asked) + 2)
        return sums(numbers) if "gsm8k" in repo else problems(numbers, level="Level 1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr("datasets.load_dataset", stand_in)
    return stand_in


# --- Sources


@pytest.mark.parametrize("end", [".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_queries(tmp_path: Path, end: str) -> None:
    files = {split: write(tmp_path / "named" / f"{split}{end}", sums(range(3))) for split in SPLITS}
    for data in (GSM8K(**files, val_share=0), GSM8K(str(tmp_path / "named"), val_share=0)):
        for split in SPLITS:
            assert data.queries(split) == [
                Query(f"named/{split}{end}:{n + 1}", f"What is {n} + 1?", str(n + 1), extra={"solution": row["answer"]})
                for n, row in enumerate(sums(range(3)))
            ]


def test_the_main_questions_are_taken_of_the_hubs_folders(tmp_path: Path) -> None:
    for kind, start in (("main", 0), ("socratic", 50)):
        for split in SPLITS:
            write(tmp_path / kind / f"{split}-00000-of-00001.parquet", sums(range(start, start + 4)))
    data = GSM8K(str(tmp_path), val_share=0)
    assert ids(data.queries("train")) == [f"main/train-00000-of-00001.parquet:{n}" for n in range(1, 5)]
    assert len(data.queries("test")) == 4


def test_the_folder_may_have_another_one_in_it(tmp_path: Path) -> None:
    for split in SPLITS:
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", sums(range(4)))
    assert len(GSM8K(str(tmp_path), val_share=0).queries("train")) == 4


def test_all_subjects_of_a_folder_are_read(tmp_path: Path) -> None:
    for number, subject in enumerate(SUBJECTS):
        rows = problems(range(3 * number, 3 * number + 3))
        write(tmp_path / subject / "train-00000-of-00001.parquet", rows)
    write(tmp_path / "test.jsonl", problems([100]))
    data = MATH(str(tmp_path), val_share=0)
    assert [query.target for query in data.queries("train")] == [str(number) for number in range(21)]
    assert len(set(ids(data.queries("train")))) == 21
    assert ids(data.queries("train"))[3] == "counting_and_probability/train-00000-of-00001.parquet:1"


def test_files_named_stand_before_the_folders(tmp_path: Path, folder: Path) -> None:
    other = [write(tmp_path / name / "more.jsonl", sums([number])) for number, name in enumerate("ab")]
    data = GSM8K(str(folder), train=other, val_share=0)
    assert ids(data.queries("train")) == ["a/more.jsonl:1", "b/more.jsonl:1"]
    assert len(data.queries("test")) == 8


def test_what_is_named_is_looked_for_at_once(tmp_path: Path) -> None:
    for option in SPLITS:
        with pytest.raises(DataError) as caught:
            GSM8K(**{option: [str(tmp_path / "x.jsonl")]})
        assert message(caught).startswith(f"{option}: {tmp_path / 'x.jsonl'} does not exist; ")
    for source in (tmp_path / "nowhere", Path(write(tmp_path / "x.jsonl", sums([1])))):
        with pytest.raises(ConfigError) as caught_:
            MATH(str(source))
        assert message(caught_) == f"MATH: source '{source}' is no folder; name one, or null for the hub"


def test_a_folder_without_the_split_says_what_to_put_there(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", sums(range(3)))
    with pytest.raises(DataError) as caught:
        GSM8K(str(tmp_path)).setup("test")
    assert message(caught).startswith(f"{tmp_path} holds no file of the split 'test'; put test.jsonl or ")


def test_rows_that_would_have_one_id_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name / "x" / "train.jsonl", sums(range(3))) for name in "ab"]
    # The same file twice is refused as well.
    for first, second in (files, files[:1] * 2):
        data = GSM8K(train=[first, second])
        with pytest.raises(DataError) as caught:
            data.queries("train")
        assert message(caught) == (
            f"{second}:1: its id 'x/train.jsonl:1' was already given to {first}:1; name each file once, and put "
            "files of the same name into folders of different names"
        )


@pytest.mark.filterwarnings("ignore")
def test_options_can_be_parsed(folder: Path) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GSM8K, "data")
    for files in (f"{folder}/train.jsonl", f"[{folder}/train.jsonl]"):
        config = parser.parse_args([f"--data.source={folder}", f"--data.train={files}", "--data.limit_train=5"])
        assert len(parser.instantiate_classes(config).data.queries("train")) == 5


# --- The hub


def test_gsm8k_of_the_hub(hub: Hub) -> None:
    data = GSM8K(val_share=0)
    assert hub.asked == []
    assert [query.target for query in data.queries("train")] == ["3", "4"]
    assert ids(data.queries("test")) == ["openai/gsm8k/main:test:0", "openai/gsm8k/main:test:1"]
    assert hub.asked == [("openai/gsm8k", {"name": "main", "split": split}) for split in SPLITS]


def test_math_of_the_hub_is_both_splits_of_all_subjects_but_the_500(hub: Hub) -> None:
    data = MATH(val_share=0)
    train = data.queries("train")
    assert len(SUBJECTS) == 7
    parts = [
        ("EleutherAI/hendrycks_math", {"name": subject, "split": split}) for subject in SUBJECTS for split in SPLITS
    ]
    test = ("HuggingFaceH4/MATH-500", {"split": "test"})
    # The 500 are asked for once, when the first problem is compared with them.
    assert hub.asked.count(test) == 1
    assert [call for call in hub.asked if call != test] == parts
    assert len(set(ids(train))) == len(train) == 28
    assert ids(train)[:3] == [f"EleutherAI/hendrycks_math/algebra:{id_}" for id_ in ("train:0", "train:1", "test:0")]
    hub.asked.clear()
    assert ids(data.queries("test")) == ["HuggingFaceH4/MATH-500:test:0", "HuggingFaceH4/MATH-500:test:1"]
    assert hub.asked == [test]


@pytest.mark.parametrize(
    ("kind", "repo", "words"),
    [
        (GSM8K, "openai/gsm8k", "put train.jsonl and test.jsonl (fields question, answer; "),
        (MATH, "HuggingFaceH4/MATH-500", "put train.jsonl and test.jsonl (fields problem, solution and, "),
        (HHRLHF, "Anthropic/hh-rlhf", "put helpful-base/train.jsonl.gz and helpful-base/test.jsonl.gz (fields chosen"),
    ],
)
def test_without_a_hub_it_is_said_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Benchmark], repo: str, words: str
) -> None:
    # What may have been fetched earlier must not be found.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    data = kind()  # nothing is asked of the hub yet
    with pytest.raises(DataError) as caught:
        data.setup("test")
    text = message(caught)
    assert text.startswith(f"{repo} cannot be loaded from the hub (")
    assert f"); {words}" in text
    assert "data.init_args.source" in text
    assert text.endswith("data.init_args.train and test")


# --- Splits and limits


def test_validation_queries_are_training_rows_and_training_queries_are_the_others(folder: Path) -> None:
    data = GSM8K(str(folder), val_share=0.25)
    train, val, test = (ids(data.queries(split)) for split in ("train", "val", "test"))
    assert [len(train), len(val), len(test)] == [30, 10, 8]
    assert sorted(train + val) == sorted(f"sums/train.jsonl:{n}" for n in range(1, 41))
    assert test == [f"sums/test.jsonl:{n}" for n in range(1, 9)]
    assert ids(data.queries("predict")) == test


def test_validation_depends_on_the_seed_and_not_on_limits(folder: Path) -> None:
    def val(**options: Any) -> list[str]:
        return ids(GSM8K(str(folder), val_share=0.25, **options).queries("val"))

    assert val() == val(limit_train=3, limit_test=2)
    assert val(split_seed=1) != val()
    assert set(val(limit_val=4)) < set(val())
    # Written down, so that a split which changes between runs or releases is noticed.
    assert [id_.partition(":")[2] for id_ in val(limit_val=4)] == VAL


def test_limits_leave_some_of_each_split(folder: Path) -> None:
    free, limited = (
        GSM8K(str(folder), val_share=0.25, limit_train=limit, limit_val=limit, limit_test=limit) for limit in (None, 5)
    )
    for split in ("train", "val", "test"):
        assert len(limited.queries(split)) == 5
        assert set(ids(limited.queries(split))) < set(ids(free.queries(split)))
    # What is counted is what the files hold.
    assert limited.counts == {"train": {"in": 40, "kept": 40}, "test": {"in": 8, "kept": 8}}


def test_stages_read_what_they_need_once(folder: Path, said: pytest.LogCaptureFixture) -> None:
    data = GSM8K(str(folder))
    data.setup("fit")
    data.setup("validate")
    assert list(data.counts) == ["train"]
    data.setup("test")
    data.setup("predict")
    assert said.messages == ["GSM8K train: 40 rows in, 40 kept", "GSM8K test: 8 rows in, 8 kept"]


def test_a_share_of_few_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        GSM8K(train=write(tmp_path / "x.jsonl", sums(range(4)))).setup("fit")
    assert message(caught) == "val_share 0.05 of 4 rows is none; raise it"


# --- GSM8K


@pytest.mark.parametrize("answer", ["It is 5.", "It is 5.\n####", "#### \n \n"])
def test_an_answer_without_hashes_is_named_by_file_and_line(tmp_path: Path, answer: str) -> None:
    path = write(tmp_path / "x.jsonl", [*sums([1]), {"question": "What?", "answer": answer}])
    with pytest.raises(DataError) as caught:
        GSM8K(train=path).setup("fit")
    assert message(caught).startswith(f"{path}:2: field 'answer' has no '#### ' followed by an answer; ")


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (GSM8K, sums([1])[0]),
        (MATH, problems([1])[0]),
        (HHRLHF, {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
    ],
)
def test_a_field_that_is_missing_empty_or_no_text_is_named(
    tmp_path: Path, kind: type[Benchmark], row: dict[str, Any]
) -> None:
    assert len(kind(test=write(tmp_path / "good.jsonl", [row])).queries("test")) == 1
    for field in row:
        for value, fault in (
            (..., "field {} is missing (there are "),
            ("", "field {} is empty"),
            (5, "field {} is a number, not text"),
        ):
            bad = {key: kept for key, kept in row.items() if key != field} | ({} if value is ... else {field: value})
            path = write(tmp_path / "bad.jsonl", [bad])
            with pytest.raises(DataError) as caught:
                kind(test=path).setup("test")
            assert message(caught).startswith(f"{path}:1: {fault.format(repr(field))}")


# --- MATH


def test_the_answer_is_the_field_or_else_what_is_boxed_last(tmp_path: Path) -> None:
    rows = [
        *problems([1], answer="one", subject="Algebra", level=3, unique_id="x/1"),
        *problems([2], answer=None, type="Algebra"),
        {"problem": "p", "solution": r"$\boxed{0}$, no, $\boxed{\frac{1}{2}}$."},
    ]
    # In parquet all rows have all fields.
    for name in ("test.jsonl", "test.parquet"):
        queries = MATH(test=write(tmp_path / name, rows)).queries("test")
        assert [query.target for query in queries] == ["one", "2", r"\frac{1}{2}"]
        assert [query.extra["solution"] for query in queries] == [row["solution"] for row in rows]
        assert queries[0].extra == {"solution": rows[0]["solution"], "subject": "Algebra", "level": 3}


def test_a_problem_without_any_answer_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [*problems([1]), {"problem": "p", "solution": r"It is \boxed{}."}])
    with pytest.raises(DataError) as caught:
        MATH(test=path).setup("test")
    assert message(caught).startswith(f"{path}:2: there is no field 'answer' and no \\boxed answer in 'solution'; ")


def test_problems_that_are_tested_on_are_not_trained_on(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    test = write(tmp_path / "test.jsonl", [*problems([3, 5]), {"problem": "Is\n it  $ 1$?", "solution": r"\boxed 1"}])
    rows = [*problems(range(8)), {"problem": " Is it $1$?\n", "solution": r"\boxed 1"}]
    data = MATH(train=write(tmp_path / "train.jsonl", rows), test=test, val_share=0.5)
    kept = [*data.queries("train"), *data.queries("val")]
    assert sorted(str(query.target) for query in kept) == ["0", "1", "2", "4", "6", "7"]
    assert len(data.queries("val")) == 3
    assert data.counts["train"] == {"in": 9, "also in the test set": 3, "kept": 6}
    assert len(data.queries("test")) == 3  # whole, and read for itself
    assert adds_up(data)
    assert said.messages == [
        "MATH train: 9 rows in, 3 dropped (also in the test set), 6 kept",
        "MATH test: 3 rows in, 3 kept",
    ]


def test_training_may_keep_to_some_levels_and_the_test_has_all(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    levels = [1, 2, "Level 1", "Level 5", "Level ?", None]
    rows = [row for number, level in enumerate(levels) for row in problems([number], level=level)]
    files = {"train": write(tmp_path / "a.jsonl", rows[1:]), "test": write(tmp_path / "b.jsonl", rows[:1])}
    data = MATH(**files, train_levels=[1, 5], val_share=0)
    assert [query.target for query in data.queries("train")] == ["2", "3"]
    assert len(MATH(**files, train_levels=[5]).queries("test")) == 1
    assert "MATH train: 5 rows in, 3 dropped (of another level), 2 kept" in said.messages
    assert adds_up(data)
    for wrong in ([], [0], [1, 6]):
        with pytest.raises(ConfigError) as caught:
            MATH(**files, train_levels=wrong)
        assert message(caught) == f"MATH: train_levels are some of 1 to 5, or null for all, got {wrong}"


def test_the_limit_of_the_test_set_frees_none_of_its_problems(tmp_path: Path) -> None:
    files = {
        split: write(tmp_path / f"{split}.jsonl", problems(numbers))
        for split, numbers in (("train", range(9)), ("test", range(4)))
    }
    data = MATH(**files, val_share=0, limit_test=1)
    assert len(data.queries("test")) == 1
    assert len(data.queries("train")) == 5
