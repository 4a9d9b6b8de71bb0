"""GSM8K: grade school mathematics (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wst.data.benchmark import Benchmark
from wst.data.fields import Row
from wst.data.sources import hub_rows
from wst.errors import DataError
from wst.rewards.math.extract import after_hashes
from wst.settings import check_counts
from wst.types import Query


class GSM8K(Benchmark):
    """``openai/gsm8k``: 7,473 questions to train on, 1,319 to test on.

    The target is what follows ``####`` in the field ``answer``; the whole field is kept as ``solution`` in
    `Query.extra`.

    Args:
        source: As in `Benchmark`.
        train: As in `Benchmark`.
        test: As in `Benchmark`.
        max_calculations: Leave out questions to train and validate on whose solution has more calculations (``<<…>>``)
            than that: a student that never solves a question teaches nothing. None: leave out none.
        options: As in `Benchmark`.

    Raises:
        ConfigError: If a setting is impossible.
        DataError: If a named file or folder does not exist.
    """

    columns = "question, answer"

    def __init__(
        self,
        source: str | None = None,
        train: str | list[str] | None = None,
        test: str | list[str] | None = None,
        max_calculations: int | None = None,
        **options: Any,  # noqa: ANN401 - the command line takes names and types from Benchmark
    ) -> None:
        super().__init__(source, train, test, **options)
        check_counts("GSM8K", max_calculations=max_calculations)
        self.max_calculations = max_calculations

    def parts(self) -> list[str]:
        """Return the folder `main` if there is one: its sibling repeats the questions with other solutions."""
        return ["main"] if Path(self.source or "", "main").is_dir() else [""]

    def hub(self, split: str) -> Iterator[Row]:
        """Iterate over a split's rows on the hub."""
        return hub_rows("openai/gsm8k", split, name="main", needs=self.remedy)

    def read(self, row: Row, split: str) -> Query | str:
        """Return a row as a query, or the reason why it is dropped.

        Raises:
            DataError: If a field is missing, or the answer has no ``####``.
        """
        solution = row.text("answer")
        answer = after_hashes(solution)
        if not answer:
            raise DataError(
                f"{row.place}: field 'answer' has no '#### ' followed by an answer; add it, or remove the row"
            )
        if split == "train" and self.max_calculations is not None and solution.count("<<") > self.max_calculations:
            return f"more than {self.max_calculations} calculations"
        return Query(row.id, row.text("question"), answer, extra={"solution": solution})
