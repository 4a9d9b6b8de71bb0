"""The judge: how it is asked and asked again, how it compares in both orders, and how it serves as a reward."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from endpoints import FakeServer, last_user_text
from juries import NAN, ONE, PAIR, Jury, inside, rewards, rollout
from toys import Parrot, TooFew

from wst import AnswerCache, Budget, EndpointStudent, LocalStudent, Prices
from wst.errors import ConfigError, ContractError, StudentStopped
from wst.rewards import ExactMatch, Reward, WeightedSum
from wst.rewards.base import score
from wst.rewards.judge import Judge
from wst.types import Instruction, Query, Response, Rollout

CPU = torch.device("cpu")


# --------------------------------------------------------------------------------------------------- asking, again


def test_one_call_for_the_batch_and_one_for_all_repeats() -> None:
    def says(turns: list[str]) -> str:
        response = inside(turns[0])
        if len(turns) > 1:
            return {"late": "Verdict: 4", "never": "I will not."}[response]
        return {"good": "Verdict: 10", "bad": "Verdict: 1"}.get(response, f"{response}, I think")

    jury = Jury(says)
    batch = [rollout(text) for text in ("late", "good", "never", "good", "bad", "late")]
    scores = score(Judge(jury, rubric=ONE), batch)
    assert scores.total == pytest.approx([1 / 3, 1, NAN, 1, 0, 1 / 3], nan_ok=True)
    assert scores.parts == {"unparsed": [1, 0, 1, 0, 0, 1]}
    first, second = jury.batches
    assert [prompt.messages[0].content for prompt in first] == ["<late>", "<good>", "<never>", "<bad>"]
    assert [[(m.role, m.content) for m in prompt.messages[:2]] for prompt in second] == [
        [("user", "<late>"), ("assistant", "late, I think")],
        [("user", "<never>"), ("assistant", "never, I think")],
    ]
    for prompt in second:
        assert [m.role for m in prompt.messages] == ["user", "assistant", "user"]
        assert prompt.messages[2].content.endswith('the line "Verdict: X", X being a number from 1 to 10.')
    assert {prompt.sample for prompt in first} == {0}


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"scale": (0, 0.5)}, r'the line "Verdict: X", X being a number from 0 to 0.5.'),
        ({"mode": "pairwise"}, r'the line "Verdict: X", X being A, B or tie.'),
        ({"verdict": "<(.)>"}, r"a number from 1 to 10, in the form asked for above."),
        ({"verdict": "<(.)>", "mode": "pairwise"}, r"A, B or tie, in the form asked for above."),
    ],
)
def test_the_repeat_asks_for_the_form_that_is_read(options: dict[str, Any], form: str) -> None:
    jury = Jury(lambda _: "Hm.")
    score(Judge(jury, **options), [rollout("x", "y")])
    assert jury.batches[1][0].messages[-1].content.endswith(form)


def test_an_empty_answer_gets_no_turn() -> None:
    jury = Jury(lambda turns: "Verdict: 10" if "no verdict" in turns[-1] else " \n")
    assert rewards(Judge(jury, rubric=ONE), rollout("x")) == [1]
    (message,) = jury.batches[1][0].messages
    assert message.content.startswith("<x>\n\nYour answer holds no verdict")


def test_a_failed_call_is_not_repeated() -> None:
    def says(turns: list[str]) -> str | Response:
        if "<down>" in turns[0]:
            return Response("Verdict: 10", error="timeout\nat 3")
        if len(turns) > 1:
            return Response("", error="reset")
        return "Hm." if "<later>" in turns[0] else "Verdict: 10"

    jury = Jury(says)
    judge = Judge(jury, rubric=ONE)
    with pytest.warns(UserWarning, match=r"2 of 4 calls of the judge failed \(timeout at 3\)") as caught:
        scores = score(judge, [rollout("down"), rollout("later"), rollout("up")])
    assert len(caught) == 1
    assert scores.total == pytest.approx([NAN, NAN, 1], nan_ok=True)
    assert scores.parts["unparsed"] == pytest.approx([NAN, 1, 0], nan_ok=True)
    assert [len(batch) for batch in jury.batches] == [3, 1]


def test_a_refusal_is_an_answer_without_verdict() -> None:
    jury = Jury(lambda _: Response("I cannot help with that.", refused=True))
    assert rewards(Judge(jury), rollout("x")) == [NAN]
    assert len(jury.batches) == 2


def test_the_judge_is_held_to_the_contract_of_students() -> None:
    with pytest.raises(ContractError, match="student TooFew: expected a list of 2 responses"):
        Judge(TooFew()).score([rollout("x"), rollout("y")])


def test_failed_responses_are_not_judged() -> None:
    jury = Jury(lambda _: "Verdict: 10")
    failed = Rollout(Query("f", "?"), None, Response("", error="timeout"), Response("y"))
    assert rewards(Judge(jury), failed, rollout("x")) == [NAN, 1]
    assert len(jury.batches[0]) == 1


# ------------------------------------------------------------------------------------------------------- both orders

#: Verdicts of judges with various preferences, given the texts of responses A and B.
JUDGES: dict[str, Callable[[str, str], str]] = {
    "first": lambda a, b: "A",
    "second": lambda a, b: "B",
    "longer": lambda a, b: "A" if len(a) > len(b) else "B",
    "mine": lambda a, b: "A" if a == "mine" else "B",
    "nobody": lambda a, b: "tie",
    "mine or nobody": lambda a, b: "A" if a == "mine" else "tie",
    "other or nobody": lambda a, b: "A" if a == "other" else "tie",
    "silent on mine first": lambda a, b: "?" if a == "mine" else "B",
    "silent on mine second": lambda a, b: "?" if b == "mine" else "A",
}


@pytest.mark.parametrize(
    ("judge", "reward", "bias", "unparsed"),
    [
        ("first", 0.5, 1, 0),
        ("second", 0.5, 1, 0),
        ("longer", 0, 0, 0),
        ("mine", 1, 0, 0),
        ("nobody", 0.5, 0, 0),
        ("mine or nobody", 0.75, 1, 0),
        ("other or nobody", 0.25, 1, 0),
        ("silent on mine first", NAN, NAN, 0.5),
        ("silent on mine second", NAN, NAN, 0.5),
    ],
)
def test_both_orders_count(judge: str, reward: float, bias: float, unparsed: float) -> None:
    jury = Jury(lambda turns: f"Verdict: {JUDGES[judge](*inside(turns[0]).split())}")
    scores = score(Judge(jury, "pairwise", PAIR), [rollout("mine", "other")])
    assert scores.total == pytest.approx([reward], nan_ok=True)
    assert scores.parts["position_bias"] == pytest.approx([bias], nan_ok=True)
    assert scores.parts["unparsed"] == [unparsed]
    assert [inside(prompt.messages[0].content) for prompt in jury.batches[0]] == ["mine other", "other mine"]


def test_pairs_keep_their_order_and_equal_ones_are_asked_once() -> None:
    jury = Jury(lambda turns: f"Verdict: {JUDGES['longer'](*inside(turns[0]).split())}")
    failed = Rollout(Query("q", "?"), None, Response("mine"), Response("", error="timeout"))
    batch = [rollout("aaa", "bb"), failed, rollout("same", "same"), rollout("a", "bb"), rollout("aaa", "bb")]
    scores = score(Judge(jury, "pairwise", PAIR), batch)
    assert scores.total == pytest.approx([1, NAN, 0.5, 0, 1], nan_ok=True)
    assert scores.parts["position_bias"] == pytest.approx([0, NAN, NAN, 0, 0], nan_ok=True)
    assert scores.parts["unparsed"] == pytest.approx([0, NAN, NAN, 0, 0], nan_ok=True)
    assert [len(batch) for batch in jury.batches] == [4]
    # What loses to the other wins the other way round: the same two questions.
    assert rewards(Judge(jury, "pairwise", PAIR), rollout("aaa", "bb"), rollout("bb", "aaa")) == [1, 0]
    assert len(jury.batches[1]) == 2


def test_where_all_texts_are_equal_nobody_is_asked() -> None:
    jury = Jury(lambda _: "Verdict: A")
    assert rewards(Judge(jury, "pairwise"), rollout("x", "x"), rollout("", "")) == [0.5, 0.5]
    assert jury.batches == []


def test_pairwise_needs_the_unaided_answer() -> None:
    jury = Jury(lambda _: "Verdict: A")
    judge = Judge(jury, "pairwise")
    assert judge.needs_unaided
    assert not Judge(jury).needs_unaided
    assert not Judge.needs_unaided
    with pytest.raises(ContractError, match=r"query 'row of x' has no unaided answer.*Rollout\(unaided") as caught:
        judge.score([rollout("y", "z"), rollout("x")])
    assert "\n" not in str(caught.value)
    assert jury.batches == []


# ----------------------------------------------------------------------------------------------------- being a reward


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "rank"}, r"Judge: mode must be one of 'score', 'pairwise', got 'rank'"),
        ({"rubric": "{query}"}, r"Judge: rubric has no place for \{response\}; put"),
        ({"rubric": ""}, r"Judge: rubric has no place for \{response\}; put"),
        ({"rubric": "{response}", "mode": "pairwise"}, r"rubric has no place for \{response_a\}; put"),
        ({"rubric": "{response_a}", "mode": "pairwise"}, r"rubric has no place for \{response_b\}; put"),
        ({"scale": (1,)}, r"scale must be two finite numbers, the lowest score first, got \[1\]"),
        ({"scale": (10, 1)}, r"scale must be two finite numbers"),
        ({"scale": (1, 1)}, r"scale must be two finite numbers"),
        ({"scale": (0, math.inf)}, r"scale must be two finite numbers"),
        ({"scale": (math.nan, 1)}, r"scale must be two finite numbers"),
        ({"verdict": "(\\d+"}, r"verdict '\(\\\\d\+' is not a regular expression \(missing \)"),
        ({"verdict": "\\d+"}, r"must have one group that captures the verdict, got 0; write \( \) around"),
        ({"verdict": "(a)(\nb)"}, r"must have one group that captures the verdict, got 2"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Judge(Parrot(), **options)
    assert "\n" not in str(caught.value)


def test_the_judge_is_checked_set_up_and_closed() -> None:
    jury = Jury(lambda _: "")
    judge = Judge(jury)
    judge.check()
    judge.setup(CPU)
    judge.close()
    assert jury.events == ["check", CPU, "close"]
    Judge(Parrot()).check()  # a student without a check


def test_parts_nest_in_a_weighted_sum() -> None:
    jury = Jury(lambda turns: "Verdict: 1" if "<x>" in turns[0] else "Hm.")
    both = WeightedSum({"match": ExactMatch(), "judge": Judge(jury, rubric=ONE)}, {"judge": 0.5})
    scores = score(both, [rollout("x", target="x"), rollout("y", target="x")])
    assert scores.total == pytest.approx([1, NAN], nan_ok=True)
    assert scores.parts["judge"] == pytest.approx([0, NAN], nan_ok=True)
    assert scores.parts["judge/unparsed"] == [0, 1]


def test_leaks_are_those_of_every_reward() -> None:
    told = Rollout(Query("q", "?", target="Paris"), Instruction("It is paris."), Response(""))
    assert Judge(Parrot()).leaks([told]) == [1]


def test_a_local_student_judges(tiny_model: str) -> None:
    local = LocalStudent(tiny_model, dtype="float32", max_new_tokens=8)
    judge = Judge(local, verdict=r"(?s)^.*?([\x21-\x7e])", scale=(0, 9))  # its text is random
    judge.setup(CPU)
    scores = judge.score_parts([rollout(text) for text in ("x", "y", "x")])
    judge.close()
    assert set(scores.parts["unparsed"]) <= {0, 1}
    total = scores.total
    assert total[0] == pytest.approx(total[2], nan_ok=True)
    assert all(math.isnan(value) or 0 <= value <= 1 for value in total)


def verdict_of(body: dict[str, Any]) -> str:
    """Answer with the length of the response as its score; for the response "?", only when asked again."""
    if len(body["messages"]) > 1:
        return "Verdict: 2"
    response = inside(last_user_text(body))
    return "Hm." if response == "?" else f"Verdict: {len(response)}"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(answer=verdict_of) as fake:
        yield fake


def test_no_verdict_of_an_endpoint_is_paid_for_twice(server: FakeServer, tmp_path: Path) -> None:
    batch = [rollout("a" * n) for n in (1, 4, 10)] + [rollout("?"), rollout("[status 400]"), rollout("a")]
    wanted = pytest.approx([0, 1 / 3, 1, 1 / 9, NAN, 0], nan_ok=True)
    for calls in (6, 7):  # on the second pass only the failed call is sent again
        cache = AnswerCache(str(tmp_path / "verdicts.sqlite"))
        endpoint = EndpointStudent("fake", server.url, None, retries=0, cache=cache, prices=Prices(1, 1))
        judge = Judge(endpoint, rubric=ONE)
        judge.check()
        judge.setup(CPU)
        with pytest.warns(UserWarning, match=r"1 of 6 calls of the judge failed"):
            assert judge.score(batch) == wanted
        judge.close()
        assert len(server.requests) == calls
    assert endpoint.accounts.take()["calls"] == 1


def test_a_spent_budget_of_the_judge_ends_the_run(server: FakeServer) -> None:
    judge = Judge(EndpointStudent("fake", server.url, None, cache=False, budget=Budget(calls=1)), rubric=ONE)
    judge.setup(CPU)
    with pytest.raises(StudentStopped, match=r"1 of 1 calls are made"):
        judge.score([rollout("a"), rollout("b")])
    judge.close()


def test_constructible_from_a_configuration() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    student = {
        "class_path": "wst.students.endpoint.EndpointStudent",
        "init_args": {"model": "judge", "base_url": "http://127.0.0.1:1/v1", "prices": {"prompt": 1, "completion": 2}},
    }
    options = {"mode": "pairwise", "rubric": PAIR, "scale": [0, 5], "verdict": r"winner=(\w+)"}
    config = {"class_path": "wst.rewards.judge.Judge", "init_args": {"judge": student, **options}}
    reward = parser.instantiate(parser.parse_object({"reward": config})).reward
    assert isinstance(reward, Judge)
    assert isinstance(reward.judge, EndpointStudent)
    assert reward.judge.accounts.prices == Prices(1, 2)
    assert (reward.mode, reward.rubric, reward.scale, reward.verdict) == ("pairwise", PAIR, (0, 5), r"winner=(\w+)")
    with pytest.raises(jsonargparse.ArgumentError, match="scale"):
        parser.parse_object({"reward": config | {"init_args": {"judge": student, "scale": [1, 2, 3]}}})
