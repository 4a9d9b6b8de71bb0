"""What the student answers on its own, for rewards that compare; and instructions that hold the answer."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from toys import FailingParrot, Lowercase, MoodyParrot, Parrot
from trainers import quiet_trainer

from wst import (
    ExactMatch,
    Instruction,
    LoRA,
    Prompt,
    Query,
    QueryDataModule,
    Response,
    Reward,
    Rollout,
    Student,
    Teacher,
    TeacherPrompt,
    Unaided,
    WeakToStrong,
)
from wst.data.datamodule import Split
from wst.errors import ConfigError
from wst.evaluation.metrics import gain_by_length
from wst.evaluation.rows import TEST_ARMS
from wst.training.record import StepRecord

pytestmark = pytest.mark.filterwarnings("ignore")

NAN = math.nan
TRAIN, HELD_OUT = 6, 4  #: queries


class Queries(QueryDataModule):
    """Queries by split, with targets or without."""

    def __init__(self, target: str | None = None, splits: Sequence[Split] = ("train", "val", "test")) -> None:
        super().__init__(batch_size=3, eval_batch_size=3)
        self.target = target
        self.splits = splits

    def load(self, split: Split) -> list[Query]:
        count = TRAIN if split == "train" else HELD_OUT
        rows = range(count if split in self.splits else 0)
        return [Query(f"{split}{i}", f"{split} query {10**i}", target=self.target) for i in rows]


def make(model: str, student: Student | None = None, reward: Reward | None = None, **settings: Any) -> WeakToStrong:
    torch.manual_seed(0)
    teacher = Teacher(model, TeacherPrompt("{query}"), LoRA(4, 8), dtype="float32", max_new_tokens=4)
    return WeakToStrong(teacher, student or Parrot(), reward or Lowercase(), **{"samples_per_query": 2} | settings)


def runner(folder: Path, steps: int = 2, **settings: Any) -> Trainer:
    return quiet_trainer(folder, max_steps=steps, num_sanity_val_steps=0, **settings)


def records(module: WeakToStrong) -> list[StepRecord]:
    """Keep the records of the steps to come."""
    kept: list[StepRecord] = []
    original = module.training_step

    def keep(batch: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        output = original(batch, batch_idx)
        kept.append(output["record"])
        return output

    module.training_step = keep  # type: ignore[method-assign]
    return kept


def unaided(prompts: Sequence[Prompt]) -> Counter[str]:
    """How often the student was asked each query on its own."""
    return Counter(prompt.messages[0].content for prompt in prompts if len(prompt.messages) == 1)


def telling(module: WeakToStrong, *texts: str) -> WeakToStrong:
    """Let the teacher's instructions read like these, in turn; what was sampled stays."""
    original = module.teacher.sample

    def sample(*args: Any, on_done: Callable[[int, Instruction], None], **settings: Any) -> list[Instruction]:
        def retold(place: int, z: Instruction) -> Instruction:
            return replace(z, text=texts[place % len(texts)])

        sampled = original(*args, on_done=lambda i, z: on_done(i, retold(i, z)), **settings)
        return [retold(i, z) for i, z in enumerate(sampled)]

    module.teacher.sample = sample  # type: ignore[method-assign]
    return module


# -------------------------------------------------------------------------------------------------- unaided answers


class Compares(Reward):
    """How much longer the answer is than the unaided one; keeps what it was given."""

    needs_unaided = True

    def __init__(self) -> None:
        self.seen: list[Rollout] = []

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        self.seen += rollouts
        return [float(len(r.response.text) - len(r.unaided.text)) if r.unaided else NAN for r in rollouts]


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
    module = make(tiny_model, student(), reward)
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
    runner(tmp_path).fit(telling(make(tiny_model, student, reward), "Be brief."), Queries(splits=["train"]))
    assert all(rollout.unaided is None for rollout in reward.seen)
    assert not unaided(student.asked)


@pytest.mark.parametrize("baseline", [None, Unaided])
@pytest.mark.parametrize("compares", [True, False])
def test_a_deterministic_student_is_asked_once_for_each_query(
    tiny_model: str, tmp_path: Path, baseline: type[Unaided] | None, compares: bool
) -> None:
    student, reward = Parrot(), Compares() if compares else Lowercase()
    module = telling(make(tiny_model, student, reward, baseline=baseline() if baseline else None), "Be brief.")
    runner(tmp_path, steps=4).fit(module, Queries())  # two epochs, two validations
    known = Queries().load("val") + (Queries().load("train") if compares or baseline else [])
    assert unaided(student.asked) == {query.text: 1 for query in known}
    student.asked.clear()
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert unaided(student.asked) == {query.text: 1 for query in Queries().load("test")}  # the arm itself


@pytest.mark.parametrize("baseline", [None, Unaided])
@pytest.mark.parametrize("compares", [True, False])
def test_a_student_that_samples_is_asked_anew_in_each_step_but_once_in_each(
    tiny_model: str, tmp_path: Path, baseline: type[Unaided] | None, compares: bool
) -> None:
    student, reward = MoodyParrot(), Compares() if compares else Lowercase()
    module = telling(make(tiny_model, student, reward, baseline=baseline() if baseline else None), "Be brief.")
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
    module = make(tiny_model, Numbered(), Compares(), baseline=Unaided())
    kept = records(module)
    runner(tmp_path).fit(module, Queries(splits=["train"]))
    assert kept
    for record in kept:
        assert record.unaided is not None
        assert record.unaided.tolist() == [0.0] * len(record.unaided)  # as long as itself


def test_an_unaided_answer_that_failed_is_asked_for_again(tiny_model: str) -> None:
    student = FailingParrot()
    module = make(tiny_model, student, Compares())
    queries = Queries().load("train")[:2]
    first = module.environment.unaided_responses(queries)
    assert [first[query.id].error for query in queries] == ["timeout", None]
    student.asked = []
    module.environment.unaided_responses(queries)
    assert unaided(student.asked) == {queries[0].text: 1}


# ------------------------------------------------------------------------------------------------------------ leaks


class Ranked(Reward):
    """Gives the four samples of a query 0, 1, 2 and 3 in their order."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(i % 4) for i in range(len(rollouts))]


TEST_NAMES = [arm for arm, _ in TEST_ARMS.values()]
TOLD = ("The answer is 42.", "Think of 4 and 2.", "Say 42!", "Count to 420.")


def test_leaks_are_logged_where_there_are_targets(tiny_model: str, tmp_path: Path) -> None:
    module = telling(make(tiny_model, samples_per_query=4), *TOLD)
    kept = records(module)
    trainer = runner(tmp_path)
    trainer.fit(module, Queries("42"))
    figures = trainer.callback_metrics
    assert float(figures["train/leak"]) == 0.5
    assert float(figures["val/leak"]) == 0.75  # of four greedy instructions, in batches of three and one: 1, 0, 1 and 1
    assert all(record.leaks is not None and record.leaks.tolist() == [[1, 0, 1, 0]] * 3 for record in kept)


def test_leaks_are_not_logged_without_targets(tiny_model: str, tmp_path: Path) -> None:
    module = telling(make(tiny_model, samples_per_query=4), *TOLD)
    trainer = runner(tmp_path)
    trainer.fit(module, Queries())
    assert {"train/reward", "val/reward"} <= set(trainer.callback_metrics)
    assert not [name for name in trainer.callback_metrics if "leak" in name]
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert {cell["leak"] for cell in cells(tmp_path).values()} == {None}
    rows = [json.loads(line) for line in (tmp_path / "test/rows.jsonl").read_text().splitlines()]
    assert {row["leak"] for row in rows} == {None}


def test_a_test_tells_how_often_each_teacher_leaks(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = make(tiny_model)
    original = module.teacher.sample

    def sample(queries: Sequence[Query], *args: Any, **settings: Any) -> list[Instruction]:
        untrained = not any(value.requires_grad and active(module) for value in module.trainable())
        leaky = "Say 42." if not untrained else "Think."
        return [
            replace(z, text=leaky if query.id != "test0" else "42 it is")
            for query, z in zip(queries, original(queries, *args, **settings), strict=True)
        ]

    module.teacher.sample = sample  # type: ignore[method-assign]
    module.trained_steps = 1
    tester = runner(tmp_path)
    tester.test(module, Queries("42"), verbose=False)
    assert [cells(tmp_path)[arm]["leak"] for arm in TEST_NAMES] == [None, 0.25, 1.0]
    assert float(tester.callback_metrics["test/leak/untrained"]) == 0.25
    assert float(tester.callback_metrics["test/leak/trained"]) == 1.0
    shown = capsys.readouterr().out
    assert "leak" in shown
    assert "25%" in shown
    rows = [json.loads(line) for line in (tmp_path / "test/rows.jsonl").read_text().splitlines()]
    by_arm = [[row["leak"] for row in rows if row["arm"] == arm] for arm in TEST_NAMES]
    assert by_arm == [[None] * 4, [1, 0, 0, 0], [1] * 4]


def cells(folder: Path) -> dict[str, Any]:
    """Return the figures of a test by arm."""
    figures: dict[str, Any] = json.loads((folder / "test/results.json").read_text())["students"]["student"]["arms"]
    return figures


def active(module: WeakToStrong) -> bool:
    """Whether the adapter is switched on."""
    layers = [layer for layer in module.teacher.policy.modules() if hasattr(layer, "disable_adapters")]
    return not any(layer.disable_adapters is True for layer in layers)


def test_a_penalty_is_taken_off_what_is_learnt_and_not_off_what_is_logged(tiny_model: str, tmp_path: Path) -> None:
    """Rewards 0, 1, 2, 3, of which the first and the third leak: less 0.5 each, -0.5, 1, 1.5, 3 are compared."""
    expected = {
        # a reward less the mean of the three others
        0.0: [0 - 2, 1 - 5 / 3, 2 - 4 / 3, 3 - 1],
        0.5: [-0.5 - 5.5 / 3, 1 - 4 / 3, 1.5 - 3.5 / 3, 3 - 2 / 3],
    }
    for penalty, advantages in expected.items():
        module = telling(make(tiny_model, reward=Ranked(), samples_per_query=4, leak_penalty=penalty), *TOLD)
        kept = records(module)
        trainer = runner(tmp_path, steps=1)
        trainer.fit(module, Queries("42", splits=["train"]))
        assert len(kept) == 1
        assert kept[0].rewards.tolist() == [[0, 1, 2, 3]] * 3
        torch.testing.assert_close(kept[0].advantages, torch.tensor([advantages] * 3), atol=1e-6, rtol=0)
        assert float(trainer.callback_metrics["train/reward"]) == 1.5
        assert float(trainer.callback_metrics["train/leak"]) == 0.5


def test_where_leaks_are_unknown_there_is_no_penalty(tiny_model: str, tmp_path: Path) -> None:
    module = telling(make(tiny_model, reward=Ranked(), samples_per_query=4, leak_penalty=9.0), *TOLD)
    kept = records(module)
    runner(tmp_path, steps=1).fit(module, Queries(splits=["train"]))
    assert kept[0].leaks is not None
    assert kept[0].leaks.isnan().all()
    torch.testing.assert_close(kept[0].advantages[0], torch.tensor([0 - 2, 1 - 5 / 3, 2 - 4 / 3, 3 - 1.0]))


@pytest.mark.parametrize("penalty", [-0.1, NAN, math.inf])
def test_a_penalty_is_a_finite_number_of_at_least_0(tiny_model: str, penalty: float) -> None:
    with pytest.raises(ConfigError, match="leak_penalty must be a finite number of at least 0, got"):
        make(tiny_model, leak_penalty=penalty)


# ------------------------------------------------------------------------------------------------------------ length


def table(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, dtype=float)


def test_a_gain_by_length_is_worked_by_hand() -> None:
    # Both arms get 0.1 a word; the first is 20 words longer.
    assert gain_by_length(table((3, 1), (4, 2)), table((30, 10), (40, 20))) == pytest.approx(2.0)
    # Less the means, lengths are -5, 5 and -1, 1, rewards -1, 1 and 1, -1: slope (5 + 5 - 1 - 1) / (25 + 25 + 1 + 1).
    assert gain_by_length(table((1, 4), (3, 2)), table((10, 4), (20, 6))) == pytest.approx(8 / 52 * 10)


def test_where_length_earns_nothing_no_gain_goes_with_it() -> None:
    assert gain_by_length(table((5, 2), (5, 2)), table((10, 1), (20, 2))) == 0.0
    # Within an arm the longer and the shorter are worth the same; that the longer arm is worth more is not length.
    assert gain_by_length(table((9, 1), (7, 3), (9, 1)), table((30, 2), (20, 1), (10, 0))) == pytest.approx(0.0)


def test_arms_of_one_length_gain_nothing_by_it() -> None:
    assert gain_by_length(table((5, 2), (6, 1)), table((10, 15), (15, 10))) == 0.0


def test_rows_that_are_not_known_are_left_out() -> None:
    rewards, lengths = [(3, 1), (4, 2)], [(30, 10), (40, 20)]
    more = table(*rewards, (NAN, 1), (50, NAN), (60, 7)), table(*lengths, (9, 9), (9, 9), (NAN, 7))
    assert gain_by_length(*more) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("rewards", "lengths"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (table((NAN, 1)), table((3, 4))),
        (table((1, 2)), table((3, 4))),
        (table((1, 2), (3, 4)), table((7, 5), (7, 5))),
    ],
    ids=["nothing", "nothing known", "one row", "one length an arm"],
)
def test_without_a_spread_of_lengths_nothing_can_be_said(rewards: np.ndarray, lengths: np.ndarray) -> None:
    assert math.isnan(gain_by_length(rewards, lengths))


def test_results_have_words_and_the_gain_by_length(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Words(Reward):
        """Half a point for each word."""

        def score(self, rollouts: Sequence[Rollout]) -> list[float]:
            return [len(rollout.response.text.split()) / 2 for rollout in rollouts]

    # The parrot repeats the instruction: three words or seven; on its own the query, which has three.
    module = telling(make(tiny_model, reward=Words()), "one two three", "one two three four five six seven")
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert module.results() == json.loads((tmp_path / "test/results.json").read_text())
    found = cells(tmp_path)
    # four queries in batches of three and one: 3, 7, 3 and 3 words
    assert [found[arm]["response_words"] for arm in TEST_NAMES] == [3.0, 4.0, 4.0]
    assert found["trained teacher"]["vs_unaided"]["mean"] == 0.5
    assert found["trained teacher"]["vs_unaided"]["by_length"] == pytest.approx(0.5)  # all of it
    assert found["trained teacher"]["vs_untrained"]["by_length"] == 0.0
    out = capsys.readouterr().out
    assert "by length" in out
    assert "words" in out


def test_results_without_a_spread_of_lengths_are_null(tiny_model: str, tmp_path: Path) -> None:
    module = telling(make(tiny_model), "one two three")
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    trained = cells(tmp_path)["trained teacher"]
    assert [trained[other]["by_length"] for other in ("vs_unaided", "vs_untrained")] == [None, None]


def test_an_answer_that_failed_has_no_length(tiny_model: str, tmp_path: Path) -> None:
    class Mute(Parrot):
        """Gives no answer to the first query, and none at all under an instruction."""

        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            failed = [len(prompt.messages) > 1 or prompt.messages[0].content.endswith(" 1") for prompt in prompts]
            return [
                Response("", error="timeout") if bad else answer
                for bad, answer in zip(failed, super().respond(prompts), strict=True)
            ]

    module = make(tiny_model, Mute())
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert [cell["response_words"] for cell in cells(tmp_path).values()] == [3.0, None, None]


def test_a_reward_of_exact_answers_knows_leaks_too() -> None:
    query = Query("q", "?", target="42")
    told = [Rollout(query, Instruction(text), Response("")) for text in TOLD]
    assert ExactMatch().leaks(told) == [1.0, 0.0, 1.0, 0.0]
