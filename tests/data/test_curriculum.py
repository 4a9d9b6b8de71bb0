"""The curriculum: who rests, who comes more often, and that a resumed run draws the same."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from wst.data import Curriculum, QueryLoader
from wst.errors import ConfigError
from wst.types import Query

NAN = math.nan
QUERIES = [Query(f"q{i}", "?") for i in range(12)]


def rewards_of(query: str, step: int) -> list[float]:
    """q0 to q3 never succeed, q4 to q7 sometimes do, and q8 to q11 always."""
    number = int(query[1:])
    return [float(number >= 8)] * 2 if number not in range(4, 8) else [float(step % 3 == 0), float(step % 3 == 1)]


def drawn(loader: QueryLoader, steps: int, first: int = 0) -> list[list[str]]:
    """Make steps, and give the ids of each."""
    batches: list[list[str]] = []
    for epoch in range(first // len(loader), 10_000):
        loader.set_epoch(epoch)
        for batch in loader:
            batches.append([query.id for query in batch])
            assert loader.curriculum is not None
            loader.curriculum.observe(batches[-1], [rewards_of(query, len(batches) + first) for query in batches[-1]])
            if len(batches) == steps:
                return batches
    raise AssertionError


def test_settled_queries_rest_and_come_back_and_the_middling_come_most() -> None:
    batches = drawn(QueryLoader(QUERIES, 3, curriculum=Curriculum(patience=2, rest=5)), 400)
    assert all(len(set(batch)) == 3 for batch in batches)
    visits = {query.id: [step for step, batch in enumerate(batches) if query.id in batch] for query in QUERIES}
    wait = 5 * 4  # steps
    for query, steps in visits.items():
        assert max(later - earlier for earlier, later in pairwise([*steps, 400])) <= wait + 4, query
    counts = Counter({query: len(steps) for query, steps in visits.items()})
    # 1,200 places, of which the eight settled queries take about 8 * 400 / 20 = 160
    assert {query for query, _ in counts.most_common(4)} == {"q4", "q5", "q6", "q7"}
    assert sum(counts[f"q{i}"] for i in range(4, 8)) > 0.8 * counts.total()


def test_a_query_is_settled_only_by_the_same_reward_again_and_again() -> None:
    def alike(*visits: list[float]) -> int:
        curriculum = Curriculum()
        for visit in visits:
            curriculum.observe(["q0"], [visit])
        return int(curriculum.state_dict()["queries"]["q0"][1])

    assert alike([1, 1], [1, 1], [1, 1]) == 3
    assert alike([0, 0], [1, 1]) == 1
    assert alike([0, 0], [0, 1], [1, 1]) == 1
    assert alike([0, 0], [NAN, NAN], [0, NAN]) == 2
    assert alike([0], [0], [1], [1]) == 2
    assert alike([0, 1]) == 0


@pytest.mark.parametrize("seen", range(13))
def test_a_resumed_run_draws_the_same_in_every_rank(seen: int) -> None:
    whole = drawn(QueryLoader(QUERIES, 5, seed=3, curriculum=Curriculum(2, 2)), 13)
    before = QueryLoader(QUERIES, 5, seed=3, curriculum=Curriculum(2, 2))
    if seen:
        drawn(before, seen)
    state = before.state_dict()
    again = QueryLoader(QUERIES, 5, seed=3, curriculum=Curriculum(2, 2))
    again.load_state_dict(state)
    assert again.state_dict() == state
    if seen < 13:
        assert drawn(again, 13 - seen, first=seen) == whole[seen:]
    ranks = []
    for rank in range(2):
        part = QueryLoader(QUERIES, 3, rank, 2, seed=3, curriculum=Curriculum())
        assert part.curriculum is not None
        part.curriculum.load_state_dict(state["curriculum"])
        ranks.append([query.id for query in next(iter(part))])
    alone = Curriculum()
    alone.load_state_dict(state["curriculum"])
    assert ranks[0] + ranks[1] == [f"q{i}" for i in alone.choose(QUERIES, 6, 3, 0, 0)]


def test_an_unfinished_step_is_drawn_again() -> None:
    loader = QueryLoader(QUERIES, 5, curriculum=Curriculum())
    batch = next(iter(loader))
    loader.put_back()
    again = QueryLoader(QUERIES, 5, curriculum=Curriculum())
    again.load_state_dict(loader.state_dict())
    assert next(iter(again)) == batch


@pytest.mark.parametrize("saved", [None, Curriculum()], ids=["without", "with"])
def test_a_curriculum_comes_or_goes_only_if_that_is_meant(saved: Curriculum | None) -> None:
    state = QueryLoader(QUERIES, 5, curriculum=saved).state_dict()
    now = Curriculum() if saved is None else None
    with pytest.raises(ConfigError, match=f"it was made {'with' if saved else 'without'} a curriculum"):
        QueryLoader(QUERIES, 5, curriculum=now).load_state_dict(state)
    with pytest.warns(UserWarning, match="resuming anyway"):
        QueryLoader(QUERIES, 5, resume_changed=True, curriculum=now).load_state_dict(state)


@pytest.mark.parametrize("setting", [{"patience": 0}, {"rest": 0}, {"floor": 0.0}, {"decay": 1.5}], ids=str)
def test_impossible_settings_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Curriculum: {next(iter(setting))} must be"):
        Curriculum(**setting)


@pytest.mark.parametrize("state", [{}, {"step": 1, "queries": [1]}, {"step": 1, "queries": {"q0": [1]}}], ids=str)
def test_a_memory_of_something_else_is_refused(state: Any) -> None:
    whole = QueryLoader(QUERIES, 5, curriculum=Curriculum()).state_dict() | {"curriculum": state}
    with pytest.raises(ConfigError, match="its curriculum cannot be read"):
        QueryLoader(QUERIES, 5, curriculum=Curriculum()).load_state_dict(whole)
