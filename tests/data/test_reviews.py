"""Checks of the review data set in data/reviews/."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "data" / "reviews"
ROWS = {"train": 420, "val": 104, "test": 220}
SPLITS = tuple(ROWS)
FIELDS = ["id", "text", "label", "topic"]
LABELS = {"positive", "negative"}
MIN_WORDS, MAX_WORDS = 8, 28
MIN_TOPICS = 60
LONGEST_RUN = 12

Ngram = tuple[str, ...]


@cache
def load(split: str) -> tuple[dict[str, str], ...]:
    lines = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line) for line in lines)


def all_rows() -> list[dict[str, str]]:
    return [row for split in SPLITS for row in load(split)]


def ngrams(text: str, n: int) -> set[Ngram]:
    """Word n-grams, lower-cased, with punctuation both removed and split at.

    "well-known" counts as "wellknown" and as "well known", so that neither
    way of dropping punctuation hides an overlap.
    """
    lowered = text.lower()
    found: set[Ngram] = set()
    for replacement in ("", " "):
        words = re.sub(r"[^\w\s]", replacement, lowered).split()
        found.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return found


def split_ngrams(split: str, n: int) -> set[Ngram]:
    return {gram for row in load(split) for gram in ngrams(row["text"], n)}


def test_ngrams_see_through_case_and_punctuation() -> None:
    assert ("a", "b") in ngrams("A, b!", 2)
    assert ("well", "known") in ngrams("Well-known", 2)
    assert ("dont",) in ngrams("Don't", 1)
    assert ngrams("one two", 3) == set()


@pytest.mark.parametrize("split", SPLITS)
def test_row_count(split: str) -> None:
    assert len(load(split)) == ROWS[split]


@pytest.mark.parametrize("split", SPLITS)
def test_fields(split: str) -> None:
    for row in load(split):
        assert list(row) == FIELDS
        assert all(isinstance(value, str) for value in row.values()), row["id"]
        assert all(value and value == value.strip() for value in row.values()), row["id"]
        assert row["label"] in LABELS, row["id"]


@pytest.mark.parametrize("split", SPLITS)
def test_ids_are_numbered_in_order(split: str) -> None:
    expected = [f"{split}-{number:04d}" for number in range(1, ROWS[split] + 1)]
    assert [row["id"] for row in load(split)] == expected


def test_ids_are_unique() -> None:
    ids = [row["id"] for row in all_rows()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced(split: str) -> None:
    counts = Counter(row["label"] for row in load(split))
    assert counts["positive"] == counts["negative"] == ROWS[split] // 2


@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_every_topic(split: str) -> None:
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in load(split):
        counts[row["topic"]][row["label"]] += 1
    uneven = {topic: c for topic, c in counts.items() if c["positive"] != c["negative"]}
    assert uneven == {}


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_shuffled(split: str) -> None:
    labels = [row["label"] for row in load(split)]
    run = longest = 1
    for before, after in pairwise(labels):
        run = run + 1 if before == after else 1
        longest = max(longest, run)
    assert longest <= LONGEST_RUN
    half = len(labels) // 2
    assert 0.35 < labels[:half].count("positive") / half < 0.65


@pytest.mark.parametrize("split", SPLITS)
def test_word_counts(split: str) -> None:
    for row in load(split):
        assert MIN_WORDS <= len(row["text"].split()) <= MAX_WORDS, row["id"]


@pytest.mark.parametrize("split", SPLITS)
def test_texts_do_not_name_a_label(split: str) -> None:
    for row in load(split):
        assert not re.search("positiv|negativ", row["text"].lower()), row["id"]


def test_topic_count() -> None:
    assert len({row["topic"] for row in all_rows()}) >= MIN_TOPICS


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_topic(one: str, other: str) -> None:
    assert {r["topic"] for r in load(one)} & {r["topic"] for r in load(other)} == set()


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_four_words(one: str, other: str) -> None:
    assert split_ngrams(one, 4) & split_ngrams(other, 4) == set()


def test_no_text_occurs_twice() -> None:
    texts = [" ".join(re.sub(r"[^\w\s]", "", r["text"].lower()).split()) for r in all_rows()]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("split", SPLITS)
def test_texts_in_a_split_share_no_six_words(split: str) -> None:
    owner: dict[Ngram, str] = {}
    for row in load(split):
        for gram in ngrams(row["text"], 6):
            first = owner.setdefault(gram, row["id"])
            assert first == row["id"], (gram, first, row["id"])
