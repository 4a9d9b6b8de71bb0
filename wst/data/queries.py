"""Many queries in little memory."""

from __future__ import annotations

import copy
import pickle
from array import array
from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from wst.errors import DataError
from wst.types import Message, Query


class Queries(Sequence[Query]):
    """A sequence of queries that are unpacked at each access: as objects they would take four times the memory.

    Args:
        placed: Each query, after the place it comes from, for messages: a text that ends with the number of the row.

    Raises:
        DataError: If two queries have the same id, or one holds what cannot be packed.
    """

    def __init__(self, placed: Iterable[tuple[str, Query]]) -> None:
        self._content = bytearray()
        self._ends = array("Q", [0])
        self._numbers = array("I")
        self._sources: list[tuple[int, str, str]] = []  # first row, and what its place and its id begin with
        hashes = array("q")  # of ids: a set of a million strings would take 100 MB
        for place, query in placed:
            source = place.rstrip("0123456789")
            number = place[len(source) :]
            if not self._sources or self._sources[-1][1] != source:
                self._sources.append((len(hashes), source, query.id.removesuffix(number)))
            self._numbers.append(int(number))
            identity = None if query.id == self._sources[-1][2] + number else query.id
            history = [(turn.role, turn.content) for turn in query.history]
            try:
                self._content += pickle.dumps((identity, query.text, query.target, history, dict(query.extra)), 5)
            except Exception as error:  # whatever an object of the user's raises
                raise DataError(f"{place}: a field cannot be stored ({type(error).__name__}); leave it out") from error
            self._ends.append(len(self._content))
            hashes.append(hash(query.id))
        self._rows: Sequence[int] = range(len(hashes))
        numbers = np.frombuffer(hashes, np.int64)
        numbers.sort()
        if (numbers[1:] == numbers[:-1]).any():
            self._check_ids()

    def _check_ids(self) -> None:
        first: dict[str, int] = {}
        for row, query in enumerate(self):
            if query.id in first:
                raise DataError(
                    f"{self._place(row)}: id {query.id!r} was already given to {self._place(first[query.id])}; make "
                    "ids unique, and name each file once"
                )
            first[query.id] = row

    def _source(self, row: int) -> tuple[int, str, str]:
        return self._sources[bisect(self._sources, row, key=lambda source: source[0]) - 1]

    def _place(self, row: int) -> str:
        return f"{self._source(row)[1]}{self._numbers[row]}"

    def select(self, indices: Sequence[int]) -> Queries:
        """Return the queries at the given indices, without copying them."""
        selected = copy.copy(self)
        selected._rows = array("Q", [self._rows[index] for index in indices])
        return selected

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Query: ...

    @overload
    def __getitem__(self, index: slice) -> list[Query]: ...

    def __getitem__(self, index: int | slice) -> Query | list[Query]:
        """Unpack one query, or several."""
        if isinstance(index, slice):
            return [self._unpacked(row) for row in self._rows[index]]
        return self._unpacked(self._rows[index])

    def _unpacked(self, row: int) -> Query:
        packed = self._content[self._ends[row] : self._ends[row + 1]]
        identity, text, target, history, extra = pickle.loads(packed)
        if identity is None:  # as most rows have it: the file's name and the row's number
            identity = f"{self._source(row)[2]}{self._numbers[row]}"
        return Query(identity, text, target, tuple(Message(role, words) for role, words in history), extra)
