"""HH-RLHF: dialogues become a query with its history and two answers, or are dropped and counted."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from wst.data import HHRLHF
from wst.data.datamodule import Split
from wst.data.hh_rlhf import TRANCHES, turns
from wst.data.sources import Row
from wst.errors import ConfigError, DataError
from wst.types import Message, Query

# Public benchmark files, where they lie beside the project.
PUBLIC = Path(__file__).parents[3] / "shared" / "data" / "hh-rlhf"
SPLITS: tuple[Split, ...] = ("train", "test")

Pair = dict[str, str]


def dialogue(*words: str) -> str:
    """Write turns as the data set does: the human begins."""
    return "".join(f"\n\n{('Human', 'Assistant')[number % 2]}: {text}" for number, text in enumerate(words))


def pair(*words: str, chosen: str = "good", rejected: str = "bad") -> Pair:
    return {"chosen": dialogue(*words, chosen), "rejected": dialogue(*words, rejected)}


def write(path: Path, pairs: Iterable[Pair]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in pairs).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return str(path)


def read(tmp_path: Path, *pairs: Pair, test: Iterable[Pair] = (), **options: Any) -> HHRLHF:
    """Return the data with the pairs read as training rows."""
    tested = list(test) or [pair("another first turn")]
    files = {"train": write(tmp_path / "train.jsonl", pairs), "test": write(tmp_path / "test.jsonl", tested)}
    data = HHRLHF(**files, val_share=0, **options)
    data.queries("train")
    return data


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def ids(queries: Iterable[Query]) -> list[str]:
    return [query.id for query in queries]


# --- Dialogues


def test_the_last_human_turn_is_the_query_and_the_turns_before_are_its_history(tmp_path: Path) -> None:
    rows = [pair("one"), pair("one", "two", "three\n\nin two paragraphs", "four", " five ", chosen="a\n\nb")]
    folder = tmp_path.name
    assert read(tmp_path, *rows).queries("train") == [
        Query(f"{folder}/train.jsonl:1", "one", extra={"chosen": "good", "rejected": "bad"}),
        Query(
            f"{folder}/train.jsonl:2",
            "five",
            history=(
                Message("user", "one"),
                Message("assistant", "two"),
                Message("user", "three\n\nin two paragraphs"),
                Message("assistant", "four"),
            ),
            extra={"chosen": "a\n\nb", "rejected": "bad"},
        ),
    ]


def test_turns_of_one_speaker_that_follow_each_other_become_one(tmp_path: Path) -> None:
    start = "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: \n\nAssistant: d\n\nHuman: e"
    rows = {key: f"{start}\n\nAssistant: {key}\n\nAssistant: end" for key in ("chosen", "rejected")}
    (query,) = read(tmp_path, rows).queries("train")
    assert query.text == "e"
    assert query.history == (Message("user", "a\n\nb"), Message("assistant", "c\n\nd"))
    assert query.extra == {"chosen": "chosen\n\nend", "rejected": "rejected\n\nend"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Human: a\n\nAssistant: b", ["a", "b"]),  # the empty lines before the first turn may be missing
        ("\n\nHuman: a: Human: b\nAssistant: c\n\nAssistant: d", ["a: Human: b\nAssistant: c", "d"]),
        ("\n\nHuman:a\n\nAssistant:", ["a", ""]),
        ("\n\nHuman: a\n\nhuman: b\n\nHumans: c", ["a\n\nhuman: b\n\nHumans: c"]),
    ],
)
def test_a_turn_begins_with_a_speaker_after_an_empty_line(text: str, words: list[str]) -> None:
    dialogue = turns(Row("", "", {"chosen": text}), "chosen")
    assert [turn.content for turn in dialogue] == words
    assert [turn.role for turn in dialogue] == ["user", "assistant"][: len(words)]


@pytest.mark.parametrize("text", ["\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "a\n\nHuman: b", "no dialogue"])
@pytest.mark.parametrize("field", ["chosen", "rejected"])
def test_a_dialogue_that_does_not_begin_with_a_human_is_named_by_file_and_line(
    tmp_path: Path, text: str, field: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, pair("a"), pair("a") | {field: text})
    place = f"{tmp_path / 'train.jsonl'}:2"
    assert message(caught).startswith(f"{place}: the dialogue in '{field}' does not begin with 'Human:'; fix the row")


# --- What is dropped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (pair("a", chosen="same", rejected="same"), "chosen equals rejected"),
        (pair("a", chosen="same", rejected=" same\n"), "chosen equals rejected"),
        (pair("tested", "b", "c"), "first turn also in the test set"),
        (pair("a", "b", "c") | {"rejected": dialogue("a", "other", "c", "bad")}, "the dialogues differ before"),
        (pair("a", "b", "c") | {"rejected": dialogue("a", "bad")}, "the dialogues differ before"),
        (pair("a", chosen=""), "no answer at the end"),
        (pair("a", rejected="  "), "no answer at the end"),
        (pair("a") | {"chosen": dialogue("a", "b", "c")}, "no answer at the end"),
        (pair("a") | {"rejected": dialogue("a")}, "no answer at the end"),
        (pair(" "), "no words in the last human turn"),
        (pair("a", "b", "c", "d", "e"), "more than 2 human turns"),
        (pair("a" * 12, "b" * 12, "c" * 12), "more than 35 characters"),
    ],
)
def test_a_pair_that_is_no_use_is_dropped_and_counted(tmp_path: Path, row: Pair, reason: str) -> None:
    limits = {"max_turns": 2, "max_characters": 35}
    data = read(tmp_path, pair("a" * 12, "b" * 12, "c" * 11), row, row, test=[pair("tested")], **limits)
    assert [query.text for query in data.queries("train")] == ["c" * 11]
    (found,) = (key for key in data.counts["train"] if key.startswith(reason))
    assert data.counts["train"] == {"in": 3, found: 2, "kept": 1}


def test_limits_of_length_are_off_unless_asked_for(tmp_path: Path) -> None:
    long = [pair(*["word"] * 41), pair("letters" * 10_000)]
    assert read(tmp_path, *long).counts["train"] == {"in": 2, "kept": 2}


def test_the_test_set_keeps_first_turns_that_it_has_twice(tmp_path: Path) -> None:
    data = read(tmp_path, pair("c"), test=[pair("a"), pair("a", "b", "c"), pair("d", rejected="good")])
    assert len(data.queries("test")) == 2
    assert data.counts["test"] == {"in": 3, "chosen equals rejected": 1, "kept": 2}


def test_the_first_turns_of_test_rows_that_are_dropped_are_not_trained_on_either(tmp_path: Path) -> None:
    data = read(tmp_path, pair("a"), pair("b"), test=[pair("a", rejected="good")])
    assert data.counts["train"] == {"in": 2, "first turn also in the test set": 1, "kept": 1}


def test_what_is_dropped_for_several_reasons_is_counted_once_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("wst.data.benchmark.rank_zero_info", said.append)
    rows = [pair("a"), pair("a", chosen="bad"), pair("t", chosen="bad"), pair("t", chosen=""), pair("b", rejected="")]
    counts = read(tmp_path, *rows, test=[pair("t")]).counts["train"]
    assert counts["in"] == sum(counts.values()) - counts["in"] == 5
    assert said == [
        "HHRLHF train: 5 rows in, 2 dropped (chosen equals rejected), 1 dropped (first turn also in the test set), "
        "1 dropped (no answer at the end), 1 kept"
    ]


# --- Tranches


def write_tranches(folder: Path, *tranches: str) -> str:
    for tranche in tranches:
        for split in SPLITS:
            write(folder / tranche / f"{split}.jsonl.gz", [pair(f"{tranche} {split} {n}") for n in range(2)])
    return str(folder)


def test_the_tranches_asked_for_are_read_in_their_order(tmp_path: Path) -> None:
    source = write_tranches(tmp_path, *TRANCHES)
    assert ids(HHRLHF(source).queries("test")) == [f"helpful-base/test.jsonl.gz:{n}" for n in (1, 2)]
    data = HHRLHF(source, tranches=["helpful-online", "harmless-base"], val_share=0)
    assert ids(data.queries("train")) == [
        f"{tranche}/train.jsonl.gz:{n}" for tranche in ("helpful-online", "harmless-base") for n in (1, 2)
    ]


def test_the_folder_may_be_that_of_the_tranche(tmp_path: Path) -> None:
    source = write_tranches(tmp_path, "helpful-base")
    assert HHRLHF(f"{source}/helpful-base").queries("test") == HHRLHF(source).queries("test")


def test_another_tranche_is_not_taken_for_the_one_asked_for(tmp_path: Path) -> None:
    data = HHRLHF(write_tranches(tmp_path, "harmless-base"), tranches=["helpful-base"])
    with pytest.raises(DataError) as caught:
        data.setup("test")
    assert message(caught).startswith(f"{tmp_path}/helpful-base holds no file of the split 'test'; put test.jsonl or ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tranches": ["helpful-base", "red-team"]}, "'red-team' is none of them"),
        ({"tranches": []}, "harmless-base, helpful-base, helpful-online, helpful-rejection-sampled; none is named"),
        ({"max_turns": 0}, "max_turns must be at least 1, or null for no limit, got 0"),
        ({"max_characters": -1}, "max_characters must be at least 1"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HHRLHF(**options)
    assert message(caught).startswith("HHRLHF: ")
    assert words in message(caught)


def test_a_tranche_is_a_folder_of_the_hubs_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(repo: str, **options: Any) -> list[Pair]:
        asked.append((repo, options))
        return [pair(f"{options['split']} {options['data_dir']}")]

    monkeypatch.setattr("datasets.load_dataset", load)
    tranches = ["helpful-online", "helpful-base"]
    data = HHRLHF(tranches=tranches, val_share=0)
    assert ids(data.queries("test")) == [f"Anthropic/hh-rlhf/{tranche}:test:0" for tranche in tranches]
    assert asked == [("Anthropic/hh-rlhf", {"data_dir": tranche, "split": "test"}) for tranche in tranches]
    assert [query.text for query in data.queries("train")] == [f"train {tranche}" for tranche in tranches]


# --- The public files


@pytest.mark.slow
@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public benchmark files do not lie beside the project")
def test_the_public_files_are_counted() -> None:
    online, sampled, base, harmless = (
        str(PUBLIC / f"{tranche}_test.jsonl.gz")
        for tranche in ("helpful-online", "helpful-rejection-sampled", "helpful-base", "harmless-base")
    )
    helpful = HHRLHF(train=[online, sampled], test=base)
    for stage in ("fit", "test"):
        helpful.setup(stage)
    assert helpful.counts == {
        "train": {
            "in": 3886,
            "chosen equals rejected": 34,
            "first turn also in the test set": 3,
            "no answer at the end": 5,
            "kept": 3844,
        },
        "test": {"in": 2354, "chosen equals rejected": 2, "no answer at the end": 4, "kept": 2348},
    }
    other = HHRLHF(test=harmless)
    other.setup("test")
    assert other.counts["test"] == {"in": 2312, "no answer at the end": 4, "kept": 2308}
    for queries in (helpful.queries("train"), helpful.queries("test"), other.queries("test")):
        assert all(query.text and query.extra["chosen"] and query.extra["rejected"] for query in queries)
        assert all(
            turn.role == ("user", "assistant")[n % 2] for query in queries for n, turn in enumerate(query.history)
        )
