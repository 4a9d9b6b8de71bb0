"""GSM8K: grade school mathematics (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wst.data.benchmark import Benchmark
from wst.data.sources import Row, hub_rows
from wst.errors import DataError
from wst.rewards.math.extract import after_hashes
from wst.types import Query


class GSM8K(Benchmark):
    """``openai/gsm8k``: 7,473 questions to train on, 1,319 to test on.

    The target is what follows ``####`` in the field ``answer``; the whole of it is kept as ``solution`` in
    `Query.extra`. See `Benchmark` for the arguments.
    """

    columns = "question, answer"

    def parts(self) -> list[str]:
        """Give the folder `main`, where there is one: beside it the hub has the same questions, solved otherwise."""
        return ["main"] if Path(self.source or "", "main").is_dir() else [""]

    def hub(self, split: str) -> Iterator[Row]:
        """Go through a split's rows on the hub."""
        return hub_rows("openai/gsm8k", split, name="main", needs=self.remedy)

    def read(self, row: Row, split: str) -> Query:
        """Make a query of a row.

        Raises:
            DataError: If a field is missing, or the answer has no ``####``.
        """
        solution = row.text("answer")
        answer = after_hashes(solution)
        if not answer:
            raise DataError(
                f"{row.place}: field 'answer' has no '#### ' with an answer behind it; add it, or take the row out"
            )
        return Query(row.id, row.text("question"), answer, extra={"solution": solution})
