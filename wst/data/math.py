"""MATH: competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874), tested on MATH-500."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain

from wst.data.benchmark import Benchmark
from wst.data.fields import Row
from wst.data.sources import hub_rows
from wst.errors import DataError
from wst.rewards.math.extract import boxed_answer
from wst.types import Query

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class MATH(Benchmark):
    r"""Tested on the 500 problems of ``HuggingFaceH4/MATH-500`` (Lightman et al. 2023, arXiv 2305.20050).

    Trained on the problems of both splits of ``EleutherAI/hendrycks_math`` that are not among the 500. The target is
    the field ``answer`` or, without one, the last ``\boxed`` of the field ``solution``; the solution is kept in
    `Query.extra`. See `Benchmark` for the arguments; the test split of a ``source`` folder must be the 500, unless
    ``test`` names them.
    """

    columns = "problem, solution and, unless the solution boxes it, answer"

    def hub(self, split: str) -> Iterator[Row]:
        """Iterate over a split's rows on the hub."""
        if split == "test":
            return hub_rows("HuggingFaceH4/MATH-500", "test", needs=self.remedy)
        return chain.from_iterable(
            hub_rows("EleutherAI/hendrycks_math", part, name=subject, needs=self.remedy)
            for subject in SUBJECTS
            for part in ("train", "test")
        )

    @cached_property
    def _tested(self) -> set[str]:
        return {_folded(row.text("problem")) for row in self.rows("test")}

    def read(self, row: Row, split: str) -> Query | str:
        """Return a row as a query, or the reason why it is dropped.

        Raises:
            DataError: If a field is missing, or there is neither an answer nor a boxed one.
        """
        problem, solution = row.text("problem"), row.text("solution")
        if split == "train" and _folded(problem) in self._tested:
            return "also in the test set"
        answer = row.values.get("answer")
        if answer is not None:
            answer = row.text("answer")
        elif not (answer := boxed_answer(solution)):
            raise DataError(
                f"{row.place}: there is no field 'answer' and no \\boxed answer in 'solution'; add one of them, or "
                "remove the row"
            )
        extra = {"solution": solution} | {key: row.values[key] for key in ("subject", "level") if key in row.values}
        return Query(row.id, problem, answer, extra=extra)


def _folded(text: str) -> str:
    return "".join(text.split())
