"""What the student answers on its own, for rewards and baselines that compare with it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from telling import HELD_OUT, Queries, runner, telling
from toys import FailingParrot, Lowercase, MoodyParrot, Parrot, small_module
from trainers import records

from wst import (
    Prompt,
    Response,
    Reward,
    Rollout,
    Unaided,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def unaided(prompts: Sequence[Prompt]) -> Counter[str]:
    """How often the student was asked each query on its own."""
    return Counter(prompt.messages[0].content for prompt in prompts if len(prompt.messages) == 1)


class Compares(Reward):
    """How much longer the answer is than the unaided one; keeps what it was given."""

    needs_unaided = True

    def __init__(self) -> None:
        self.seen: list[Rollout] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        self.seen += rollouts
        return [float(len(r.response.text) - len(r.unaided.text)) if r.unaided else math.nan for r in rollouts]


class Numbered(Parrot):
    """Answers with the last turn and how often it was asked by then: no two answers are alike."""

    deterministic = False

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        before = len(self.asked)
        return [replace(r, text=f"{r.text} #{before + i}") for i, r in enumerate(super().respond(prompts))]


@pytest.mark.parametrize("stage", ["training", "validation", "test"])
@pytest.mark.parametrize("student", [Parrot, Numbered])
def test_a_reward_that_compares_is_given_the_unaided_answer(
    tiny_model: str, tmp_path: Path, student: type[Parrot], stage: str
) -> None:
    reward = Compares()
    module = small_module(tiny_model, student(), reward)
    match stage:
        case "training":
            runner(tmp_path).fit(module, Queries(splits=["train"]))
        case "validation":
            runner(tmp_path).validate(module, Queries(), verbose=False)
        case _:
            module.trained_steps = 1
            runner(tmp_path).test(module, Queries(), verbose=False)
    assert any(rollout.instruction is not None for rollout in reward.seen)
    for rollout in reward.seen:
        assert rollout.unaided is not None
        assert rollout.unaided.text.split(" #")[0] == rollout.query.text
        if rollout.instruction is None:
            assert rollout.unaided == rollout.response
    if student is Numbered and stage != "training":  # one answer serves all that is compared of a query
        answers = {(rollout.query.id, rollout.unaided) for rollout in reward.seen}
        assert len(answers) == HELD_OUT


def test_a_reward_that_does_not_compare_is_given_none(tiny_model: str, tmp_path: Path) -> None:
    reward = Compares()
    reward.needs_unaided = False
    student = Parrot()
    runner(tmp_path).fit(telling(small_module(tiny_model, student, reward), "Be brief."), Queries(splits=["train"]))
    assert all(rollout.unaided is None for rollout in reward.seen)
    assert not unaided(student.asked)


@pytest.mark.parametrize("baseline", [None, Unaided])
@pytest.mark.parametrize("compares", [True, False])
def test_a_deterministic_student_is_asked_once_for_each_query(
    tiny_model: str, tmp_path: Path, baseline: type[Unaided] | None, compares: bool
) -> None:
    student, reward = Parrot(), Compares() if compares else Lowercase()
    module = telling(small_module(tiny_model, student, reward, baseline=baseline() if baseline else None), "Be brief.")
    runner(tmp_path, steps=4).fit(module, Queries())  # two epochs, two validations
    known = Queries().load("val") + (Queries().load("train") if compares or baseline else [])
    assert unaided(student.asked) == {query.text: 1 for query in known}
    student.asked.clear()
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert unaided(student.asked) == {query.text: 1 for query in Queries().load("test")}  # the arm itself


@pytest.mark.slow
@pytest.mark.parametrize("baseline", [None, Unaided])
@pytest.mark.parametrize("compares", [True, False])
def test_a_student_that_samples_is_asked_anew_in_each_step_but_once_in_each(
    tiny_model: str, tmp_path: Path, baseline: type[Unaided] | None, compares: bool
) -> None:
    student, reward = MoodyParrot(), Compares() if compares else Lowercase()
    module = telling(small_module(tiny_model, student, reward, baseline=baseline() if baseline else None), "Be brief.")
    early: list[Prompt] = []
    student.prefetch = early.append  # type: ignore[method-assign]
    runner(tmp_path, steps=4).fit(module, Queries())
    times = {query.text: 2 for query in Queries().load("val")}
    times |= {query.text: 2 for query in Queries().load("train")} if compares or baseline else {}
    assert unaided(student.asked) == times
    assert unaided(early) == times  # it learns of each in time
    student.asked.clear()
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert unaided(student.asked) == {query.text: 1 for query in Queries().load("test")}


def test_the_baseline_compares_with_the_answer_that_the_reward_compares_with(tiny_model: str, tmp_path: Path) -> None:
    module = small_module(tiny_model, Numbered(), Compares(), baseline=Unaided())
    kept = records(module)
    runner(tmp_path).fit(module, Queries(splits=["train"]))
    assert kept
    for record in kept:
        assert record.unaided is not None
        assert record.unaided.tolist() == [0.0] * len(record.unaided)  # as long as itself


def test_an_unaided_answer_that_failed_is_asked_for_again(tiny_model: str) -> None:
    student = FailingParrot()
    module = small_module(tiny_model, student, Compares())
    queries = Queries().load("train")[:2]
    first = module.environment.unaided_responses(queries)
    assert [first[query.id].error for query in queries] == ["timeout", None]
    student.asked = []
    module.environment.unaided_responses(queries)
    assert unaided(student.asked) == {queries[0].text: 1}
