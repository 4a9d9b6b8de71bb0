"""Several acceptable answers: any one is right, and each is a leak; and reward functions with TRL's signature."""

import asyncio
import math
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from wst import (
    ExactMatch,
    FunctionReward,
    Instruction,
    Judge,
    LabelMatch,
    LastNumber,
    MathAnswer,
    Message,
    Prompt,
    Query,
    Response,
    Reward,
    Rollout,
    TRLReward,
)
from wst.cli.check import wrong_golds
from wst.errors import ConfigError, ContractError, DataError
from wst.rewards.base import score
from wst.students.function import FunctionStudent
from wst.types import rollout_row


def rollout(target: Any, response: str, instruction: str | None = None, **extra: Any) -> Rollout:
    hint = None if instruction is None else Instruction(instruction)
    return Rollout(Query("q", "Which?", target, extra=extra), hint, Response(response))


CASES: list[tuple[Reward, list[str], list[str], list[str], list[str], list[str]]] = [
    # reward, targets, right answers, wrong ones, instructions that leak, and that do not
    (ExactMatch(), ["NYC", "New York"], ["nyc.", "new york"], ["Boston"], ["Say New York."], ["Name the city."]),
    (
        LabelMatch(["billing", "account", "other"]),
        ["billing", "account"],
        ["Billing", "It is account."],
        ["other", "none"],
        ["It is billing.", "billing or account", "It is not other."],
        ["Choose billing, account or other.", "other"],
    ),
    (LastNumber(), ["3", "4"], ["It is 3", "4.0"], ["5", "none"], ["The answer is 4."], ["Count twice."]),
    (MathAnswer(workers=1), ["1/2", "7"], ["0.5", r"\boxed{7}"], ["8"], ["It is 7."], ["Divide first."]),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
def test_any_of_several_answers_is_right_and_each_is_a_leak(case: Any) -> None:
    reward, targets, right, wrong, leaking, harmless = case
    try:
        rows = [rollout(targets, answer) for answer in (*right, *wrong)]
        assert reward.score(rows) == [1.0] * len(right) + [0.0] * len(wrong)
        told = [rollout(targets, "", words) for words in (*leaking, *harmless)]
        assert reward.leaks(told) == [1.0] * len(leaking) + [0.0] * len(harmless)
        # One right answer among two rows; the wrong one is not rescued by its neighbour.
        assert reward.score([rollout(targets[0], right[0]), rollout(targets[1], right[0])]) == [1.0, 0.0]
        assert wrong_golds(reward, [Query("a", "?", targets), Query("b", "?", targets[1])]) == []
        for none in (None, []):
            with pytest.raises(DataError, match="it has no target"):
                reward.score([rollout(none, "x")])
            assert all(map(math.isnan, reward.leaks([rollout(none, "x", "x")])))
    finally:
        reward.close()


def test_every_answer_is_checked_whichever_matches() -> None:
    with pytest.raises(DataError, match="'red' is not one of the labels"):
        LabelMatch(["a", "b"]).score([rollout(["b", "red"], "b")])
    # A gold answer that its own reward gets wrong is found, although the other one is right.
    only_a = FunctionReward(lambda rollouts: [float(row.response.text == "a") for row in rollouts])
    assert wrong_golds(only_a, [Query("1", "?", ["a", "b"]), Query("2", "?", ["a"])]) == [Query("1", "?", ("a", "b"))]


def test_a_query_holds_its_answers_as_text_or_tuple() -> None:
    assert [Query("q", "?", target).targets for target in (None, "a", ["a", "b"], ("a",))] == [  # type: ignore[arg-type]
        (),
        ("a",),
        ("a", "b"),
        ("a",),
    ]
    assert Query("q", "?", ["a", "b"]) == Query("q", "?", ("a", "b"))
    assert rollout_row(rollout(["a", "b"], "x"))["target"] == ("a", "b")


def test_a_judge_reads_all_answers() -> None:
    asked: list[str] = []

    def judge(messages: list[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return "Verdict: 10"

    reward = Judge(FunctionStudent(judge), rubric="{query} {target} {response} {mark}")
    assert reward.score([rollout(["NYC", "New York"], "nyc")]) == [1.0]
    assert "Which? NYC or New York nyc" in asked[0]


# --- TRL


def accuracy(prompts: list[Any], completions: list[Any], answer: list[Any], **columns: list[Any]) -> list[float | None]:
    """Write down what it gets; None where a row has no unit."""
    SEEN.update(columns, prompts=prompts, completions=completions, answer=answer)
    rows = zip(completions, answer, columns["unit"], strict=True)
    return [None if unit is None else float(str(gold) in str(text)) for text, gold, unit in rows]


async def accuracy_later(**columns: Any) -> list[float | None]:
    return accuracy(**columns)


SEEN: dict[str, Any] = {}


@pytest.mark.parametrize("function", [accuracy, accuracy_later])
def test_a_reward_function_of_trl_gets_the_columns(function: Any) -> None:
    rows = [rollout("5", "5 m", unit="m"), rollout("6", "5 m", unit="m"), rollout(["5", "V"], "5", length=1)]
    scores = TRLReward(function, target="answer").score(rows)
    assert scores[:2] == [1.0, 0.0]
    assert math.isnan(scores[2])
    assert SEEN == {
        "prompts": ["Which?"] * 3,
        "completions": ["5 m", "5 m", "5"],
        "answer": ["5", "6", ["5", "V"]],
        "unit": ["m", "m", None],
        "length": [None, None, 1],
    }
    query = Query("q", "And now?", "1", (Message("user", "Hi"), Message("assistant", "Ho")), {"unit": "m"})
    TRLReward(function, target="answer", chat=True).score([Rollout(query, None, Response("1"))])
    assert [turn["content"] for turn in SEEN["prompts"][0]] == ["Hi", "Ho", "And now?"]
    assert SEEN["completions"] == [[{"role": "assistant", "content": "1"}]]


def test_async_functions_run_where_an_event_loop_runs_already() -> None:
    async def cell() -> tuple[list[float], list[Response]]:  # of a notebook
        student = FunctionStudent(lambda messages: asyncio.sleep(0, messages[-1]["content"]))
        asked = [Prompt((Message("user", "Hi"),))]
        return TRLReward(accuracy_later, target="answer").score([rollout("5", "5", unit="m")]), student.respond(asked)

    assert asyncio.run(cell()) == ([1.0], [Response("Hi")])


def test_a_reward_function_of_trl_in_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    options = ["--reward=wst.TRLReward", f"--reward.function={Path(__file__).stem}.accuracy", "--reward.target=answer"]
    reward = parser.instantiate_classes(parser.parse_args(options)).reward
    assert reward.score([rollout("5", "5 m", unit="m")]) == [1.0]
    assert reward.identity() == ["test_several_answers.accuracy", "answer", False]


@pytest.mark.parametrize("values", [None, 1.0])
def test_a_function_that_returns_no_list_is_one_line(values: Any) -> None:
    with pytest.raises(ContractError, match="TRLReward"):
        score(TRLReward(lambda **_: values), [rollout("5", "5")])


def test_columns_that_a_function_lacks_are_named() -> None:
    with pytest.raises(ConfigError, match=r"accuracy: missing a required argument: 'answer'; there are unit, target, "):
        TRLReward(accuracy).score([rollout("5", "5", unit="m")])
    with pytest.raises(ConfigError, match="expected a function"):
        TRLReward("accuracy")  # type: ignore[arg-type]
