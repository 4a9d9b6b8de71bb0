"""GSM8K: grade school mathematics (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from wst.data.benchmark import Benchmark
from wst.data.fields import Row
from wst.data.sources import hub_rows
from wst.errors import DataError
from wst.rewards.math.extract import after_hashes
from wst.types import Query


class GSM8K(Benchmark):
    """``openai/gsm8k``: 7,473 questions to train on, 1,319 to test on.

    The target is what follows ``####`` in the field ``answer``; the whole field is kept as ``solution`` in
    `Query.extra`. See `Benchmark` for the arguments.
    """

    columns = "question, answer"

    def parts(self) -> list[str]:
        """Return the folder `main` if there is one: its sibling repeats the questions with other solutions."""
        return ["main"] if Path(self.source or "", "main").is_dir() else [""]

    def hub(self, split: str) -> Iterator[Row]:
        """Iterate over a split's rows on the hub."""
        return hub_rows("openai/gsm8k", split, name="main", needs=self.remedy)

    def read(self, row: Row, split: str) -> Query:
        """Return a row as a query.

        Raises:
            DataError: If a field is missing, or the answer has no ``####``.
        """
        solution = row.text("answer")
        answer = after_hashes(solution)
        if not answer:
            raise DataError(
                f"{row.place}: field 'answer' has no '#### ' followed by an answer; add it, or remove the row"
            )
        return Query(row.id, row.text("question"), answer, extra={"solution": solution})
