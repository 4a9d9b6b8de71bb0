"""MATH: competition mathematics (Hendrycks et al. 2021, arXiv 2103.03874), tested on MATH-500."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from wst.data.benchmark import Benchmark
from wst.data.fields import Row
from wst.data.sources import hub_rows
from wst.errors import ConfigError, DataError
from wst.rewards.math.extract import boxed_answer
from wst.settings import check_arguments
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
    `Query.extra`.

    Args:
        source: Folder with the problems; its test split must be the 500, unless ``test`` names them. None: the hub.
        train: File or files to train on, instead of the source's.
        test: File or files to test on, instead of the source's.
        train_levels: Levels of difficulty to train and validate on, from 1 to 5; None: all. The test has all levels.
        options: The other options of `Benchmark`.

    Raises:
        ConfigError: If a setting is impossible.
        DataError: If a named file or folder does not exist.
    """

    columns = "problem, solution and, unless the solution boxes it, answer"

    def __init__(
        self,
        source: str | None = None,
        train: str | list[str] | None = None,
        test: str | list[str] | None = None,
        train_levels: Sequence[int] | None = None,
        **options: Any,  # noqa: ANN401 - the command line takes names and types from Benchmark
    ) -> None:
        check_arguments(MATH, locals())
        super().__init__(source, train, test, **options)
        if train_levels is not None and not (train_levels and set(train_levels) <= set(range(1, 6))):
            raise ConfigError(f"MATH: train_levels are some of 1 to 5, or null for all, got {list(train_levels)}")
        self.train_levels = train_levels

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
        if split == "train" and self.train_levels is not None and _level(row) not in self.train_levels:
            return "of another level"
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


def _level(row: Row) -> int | None:
    """Return a problem's level, which is a number or "Level 3"; the hub has "Level ?" too."""
    found = re.fullmatch(r"(?:Level )?(\d)", str(row.values.get("level")))
    return int(found[1]) if found else None


def _folded(text: str) -> str:
    return "".join(text.split())
