"""Queries that need not all be in memory."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from wst.types import Query


class Queries(Sequence[Query]):
    """Queries of which each is read when it is asked for, while the ids are at hand."""

    @abstractmethod
    def read(self, place: int) -> Query:
        """Read the query at a place; a negative one counts from the end."""

    @abstractmethod
    def id(self, place: int) -> str:
        """Give the id of the query at a place, from 0, without reading it."""

    @overload
    def __getitem__(self, place: int) -> Query: ...

    @overload
    def __getitem__(self, place: slice) -> list[Query]: ...

    def __getitem__(self, place: int | slice) -> Query | list[Query]:
        """Read a query, or several."""
        if isinstance(place, slice):
            return [self.read(i) for i in range(*place.indices(len(self)))]
        return self.read(place)


class Chosen(Queries):
    """Some of the queries, in the order that they have among all.

    Args:
        queries: All.
        places: Which of them, in any order.
    """

    def __init__(self, queries: Queries, places: Iterable[int]) -> None:
        self.queries = queries
        self.places = array("Q", sorted(places))

    def __len__(self) -> int:
        """Give the number of queries."""
        return len(self.places)

    def read(self, place: int) -> Query:
        """Read the query at a place."""
        return self.queries.read(self.places[place])

    def id(self, place: int) -> str:
        """Give the id of the query at a place."""
        return self.queries.id(self.places[place])


def chosen(queries: Sequence[Query], places: Iterable[int]) -> Sequence[Query]:
    """Give some of the queries, in their order: of what is in memory a list, otherwise what reads them."""
    if isinstance(queries, Queries):
        return Chosen(queries, places)
    return [queries[place] for place in sorted(places)]


def ids(queries: Sequence[Query]) -> Iterator[str]:
    """Give the ids, without reading the queries where that can be spared."""
    if isinstance(queries, Queries):
        return map(queries.id, range(len(queries)))
    return (query.id for query in queries)
