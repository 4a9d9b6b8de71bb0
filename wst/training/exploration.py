"""Samples of a query that differ: a student that is asked the same twice says nothing new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from wst.teacher import Teacher
from wst.types import Instruction, Query


def sample_distinct(
    teacher: Teacher,
    queries: Sequence[Query],
    samples: int,
    tries: int,
    on_done: Callable[[int, Instruction], None] | None = None,
) -> list[Instruction]:
    """Sample instructions, and sample again, a bounded number of times, those that a query has already.

    Texts that differ in white space alone are the same. The samples are then no longer independent draws of the policy:
    an instruction of probability p that takes part in a step does so more evenly than K draws would, and the gradient
    is biased towards rare instructions, by at most the share of samples that were replaced. With no tries it is exact.

    Args:
        teacher: The policy.
        queries: Any number.
        samples: Instructions a query, K.
        tries: Times that an instruction is sampled again at most; after that it stays as it is.
        on_done: Called with each instruction that stays and its index in the result, as soon as it has ended.

    Returns:
        ``len(queries) * samples`` instructions; the K of a query are neighbours.
    """
    if not tries:
        return teacher.sample(queries, samples, on_done=on_done)
    written: dict[int, Instruction] = {}
    texts: list[set[str]] = [set() for _ in queries]

    def take(places: Sequence[int], last: bool, row: int, instruction: Instruction) -> None:
        place = places[row]
        text = "".join(instruction.text.split())
        if place in written or (text in texts[place // samples] and not last):
            return
        texts[place // samples].add(text)
        written[place] = instruction
        if on_done is not None:
            on_done(place, instruction)

    places = list(range(len(queries) * samples))
    for left in range(tries, -1, -1):
        done = partial(take, places, left == 0)
        first = left == tries
        asked = queries if first else [queries[place // samples] for place in places]
        for row, instruction in enumerate(teacher.sample(asked, samples if first else 1, on_done=done)):
            done(row, instruction)  # a teacher need not call on_done
            if places[row] in written:
                written[places[row]] = instruction  # a subclass may return another one than it announced
        places = [place for place in places if place not in written]
        if not places:
            break
    return [written[place] for place in range(len(queries) * samples)]
