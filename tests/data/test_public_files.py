"""The public files of GSM8K and MATH, where they lie beside the project: no row is lost."""

from pathlib import Path

import pytest

from wst.data import GSM8K, MATH, Benchmark
from wst.data.datamodule import Split

PUBLIC = Path(__file__).parents[3] / "shared" / "data"
SPLITS: tuple[Split, ...] = ("train", "test")


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public benchmark files do not lie beside the project")
@pytest.mark.parametrize(
    ("kind", "train", "test", "rows"),
    [
        (GSM8K, "gsm8k/train.jsonl", "gsm8k/test.jsonl", (7473, 1319)),
        (MATH, "math/math_train1000.jsonl", "math/math500_test.jsonl", (1000, 500)),
    ],
)
def test_all_rows_of_the_public_files_are_kept(
    kind: type[Benchmark], train: str, test: str, rows: tuple[int, int]
) -> None:
    data = kind(train=str(PUBLIC / train), test=str(PUBLIC / test))
    data.setup("fit")
    data.setup("test")
    assert data.counts == {split: {"in": n, "kept": n} for split, n in zip(SPLITS, rows, strict=True)}
    assert len(data.queries("train")) + len(data.queries("val")) == rows[0]
    assert all(query.target and query.extra["solution"] for split in SPLITS for query in data.queries(split))
