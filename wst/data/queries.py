"""Queries that need not all be in memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from wst.data.jsonl import QueryFile
from wst.rollout import Query


class Chosen(Sequence[Query]):
    """Some of the queries, in the order that they have among all.

    Args:
        queries: All.
        places: Which of them, in any order.
    """

    def __init__(self, queries: Sequence[Query], places: Iterable[int]) -> None:
        self.queries = queries
        self.places = array("Q", sorted(places))

    def __len__(self) -> int:
        """Give the number of queries."""
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> Query: ...

    @overload
    def __getitem__(self, place: slice) -> list[Query]: ...

    def __getitem__(self, place: int | slice) -> Query | list[Query]:
        """Give a query, or several."""
        if isinstance(place, slice):
            return [self.queries[i] for i in self.places[place]]
        return self.queries[self.places[place]]


def chosen(queries: Sequence[Query], places: Iterable[int]) -> Sequence[Query]:
    """Give some of the queries: of a list a list, otherwise what reads them when they are asked for."""
    if isinstance(queries, Chosen):
        some = Chosen(queries.queries, [queries.places[place] for place in places])
    else:
        some = Chosen(queries, places)
    return some[:] if isinstance(queries, list) else some


def ids(queries: Sequence[Query]) -> Iterator[str]:
    """Give the ids, without reading the queries where that can be spared."""
    if isinstance(queries, QueryFile):
        yield from map(queries.id, range(len(queries)))
    elif isinstance(queries, Chosen) and isinstance(queries.queries, QueryFile):
        yield from map(queries.queries.id, queries.places)
    else:
        yield from (query.id for query in queries)
