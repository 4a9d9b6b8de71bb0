"""Rewards computed from the text alone."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wst.errors import ConfigError, DataError
from wst.rewards import ExactMatch, LabelMatch, LastNumber, Length, Reward
from wst.rewards.text import normalize
from wst.types import Instruction, Query, Response, Rollout


def reward_of(reward: Reward, response: str, target: str | None = None, instruction: str | None = None) -> float:
    rollout = Rollout(
        Query("row-7", "?", target=target),
        None if instruction is None else Instruction(instruction),
        Response(response),
    )
    (value,) = reward.score([rollout])
    return value


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("  two \t words\n", {}, "two words"),
        ("Paris.", {}, "paris"),
        ("Paris.", {"lowercase": False}, "Paris"),
        ("Paris.", {"punctuation": False}, "paris."),
        ("well-known", {}, "wellknown"),
        ("\u201cdon\u2019t\u201d \u2014 $5", {}, "dont 5"),
        ("a\u00a0b", {}, "a b"),
        ("The cat, an owl", {}, "the cat an owl"),
        ("The cat, an owl", {"articles": True}, "cat owl"),
        ("The cat", {"articles": True, "lowercase": False}, "cat"),
        ("theatre", {"articles": True}, "theatre"),
        ("Stra\u00dfe", {}, "strasse"),
        ("cafe\u0301", {}, "caf\u00e9"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", {}, "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("", {}, ""),
        ("?!", {}, ""),
    ],
)
def test_normalize(text: str, options: dict[str, bool], expected: str) -> None:
    assert normalize(text, **options) == expected


@given(st.text())
def test_normalize_is_idempotent_in_spacing(text: str) -> None:
    once = normalize(text, lowercase=False, punctuation=False)
    assert normalize(once, lowercase=False, punctuation=False) == once


@pytest.mark.parametrize(
    ("options", "response", "target", "expected"),
    [
        ({}, "paris.", "Paris", 1.0),
        ({}, "It is Paris.", "Paris", 0.0),
        ({}, "", "Paris", 0.0),
        ({}, "the cat", "cat", 0.0),
        ({"articles": True}, "the cat", "cat", 1.0),
        ({"lowercase": False}, "paris", "Paris", 0.0),
        ({"punctuation": False}, "Paris.", "Paris", 0.0),
        ({"punctuation": False}, "-", "+", 0.0),
        ({"punctuation": False}, "+", "+", 1.0),
        ({}, "\u22125.", "-5", 1.0),
        ({}, "-5", "5", 0.0),
        ({}, "3.5", "35", 0.0),
        ({}, "7/2", "72", 0.0),
        ({}, "7/2", "7/2", 1.0),
        ({}, "0.50", "0.5", 1.0),
        ({}, "1,250", "1250", 1.0),
        ({}, "12,50", "1250", 0.0),
        ({}, "1, 2", "1,2", 1.0),
        ({}, "[0,1]", "(0,1)", 0.0),
        ({}, "007", "7", 0.0),
        ({}, "Python 3.10", "Python 3.1", 0.0),
        ({}, "5%", "5", 0.0),
        ({}, "$5", "\u20ac5", 0.0),
        ({}, "5!", "5", 0.0),
        ({}, "2026-01-02", "20260102", 0.0),
        ({}, "9:15", "915", 0.0),
        ({}, "C#", "C", 0.0),
        ({}, "a|b", "ab", 0.0),
        ({}, "a = b", "a=b", 1.0),
        ({}, "x^2", "x2", 0.0),
        ({}, "n/a", "na", 0.0),
        ({}, "it's", "its", 0.0),
        ({}, "**Paris**", "Paris", 1.0),
        ({}, "`Paris`.", "Paris", 1.0),
        ({}, "\u201cParis\u201d", "Paris", 1.0),
        ({}, "'Paris, France'", "Paris France", 1.0),
        ({}, "(b)", "B", 1.0),
        ({}, "U.S.", "US", 1.0),
        ({}, "e-mail", "email", 1.0),
        ({}, "New-York", "New York", 1.0),
        ({}, "\uff30\uff41\uff52\uff49\uff53", "Paris", 1.0),
        ({}, "don\u2019t", "don't", 1.0),
        ({}, "snake_case", "snakecase", 0.0),
        ({}, "2*3*4", "234", 0.0),
        ({"lowercase": False}, "1e3", "1000", 1.0),
    ],
)
def test_exact_match(options: dict[str, bool], response: str, target: str, expected: float) -> None:
    assert reward_of(ExactMatch(**options), response, target) == expected


@pytest.mark.parametrize("target", ["", " \n"])
def test_exact_match_refuses_an_empty_target(target: str) -> None:
    with pytest.raises(DataError, match=r"'row-7': the target is empty; give an answer or drop the row"):
        reward_of(ExactMatch(), "", target)


@pytest.mark.parametrize(("options", "target"), [({}, "?"), ({"articles": True}, "A")])
def test_exact_match_refuses_a_target_of_which_nothing_is_left(options: dict[str, bool], target: str) -> None:
    with pytest.raises(DataError, match=r"'row-7': normalisation leaves nothing of the target '.'; set punctuation"):
        reward_of(ExactMatch(**options), "?", target)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([], {}, r"labels is empty"),
        (["yes", "  "], {}, r"label 1 of labels is empty"),
        (["Yes", "no", "yes"], {}, r"labels lists 'yes' twice"),
        (["not sure", "not  sure"], {}, r"labels lists 'not  sure' twice"),
        (["yes", "no"], {"which": "frist"}, r"which must be one of 'only', 'first', 'last', got 'frist'"),
    ],
)
def test_label_match_refuses(labels: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelMatch(labels, **options)


@pytest.mark.parametrize("target", ["maybe", "", "yes or\nno"])
def test_label_match_refuses_a_target_that_is_no_label(target: str) -> None:
    with pytest.raises(DataError, match=r"'row-7'.* is not one of the labels of LabelMatch \('yes', 'no'\)") as caught:
        reward_of(LabelMatch(["yes", "no"]), "yes", target)
    assert repr(target) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tolerance", "response", "target", "expected"),
    [
        (0.0, "So 1,200 in all.", "1200", 1.0),
        (0.0, "42.0", "#### 42", 1.0),
        (0.0, "41, then 42", "7 #### 42", 1.0),
        (0.0, "42, then 41", "42", 0.0),
        (0.0, "no idea", "42", 0.0),
        (0.0, "-3", "3", 0.0),
        (0.0, "0.1", "0.10000000000000000000000000000000000000000000000001", 0.0),
        (0.1, "0.3", "0.2", 1.0),
        (0.1, "0.1", "0.2", 1.0),
        (0.1, "0.30000000000000000000000000000000000000000000000001", "0.2", 0.0),
        (0.1, "0.29999999999999999999999999999999999999999999999999", "0.2", 1.0),
        (1, "1e999999999", "1e999999999", 1.0),
        (1, "1e999999999", "1", 0.0),
        (1, "1e-999999999", "1", 1.0),
        (0.0, "1e-999999999", "0", 0.0),
        (1, "1e99999999999999999999999999", "1", 0.0),
        (1, "-1e999999999999999999", "9e999999999999999999", 0.0),
    ],
)
def test_last_number_reward(tolerance: float, response: str, target: str, expected: float) -> None:
    assert reward_of(LastNumber(tolerance), response, target) == expected


def test_last_digit_of_a_huge_number_counts() -> None:
    assert reward_of(LastNumber(), "7" * 100_000 + "8", "7" * 100_001) == 0.0
    assert reward_of(LastNumber(1.0), "7" * 100_000 + "8", "7" * 100_001) == 1.0


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_last_number_refuses_the_tolerance(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"tolerance must be a finite number of at least 0, got"):
        LastNumber(tolerance)


def test_last_number_refuses_a_target_without_one() -> None:
    with pytest.raises(DataError, match=r"'row-7': the target 'some\\nthing' contains no number, or several") as caught:
        reward_of(LastNumber(), "42", "some\nthing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reward", [ExactMatch(), LabelMatch(["yes"]), LastNumber()], ids=lambda r: type(r).__name__)
def test_a_missing_target_is_named_with_the_remedy(reward: Reward) -> None:
    with pytest.raises(DataError, match=rf"'row-7': .*{type(reward).__name__} needs; map a target field") as caught:
        reward_of(reward, "yes", None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "response", "instruction", "expected"),
    [
        ({"limit": 4}, "", None, 1.0),
        ({"limit": 4}, "one two  three\nfour", None, 1.0),
        ({"limit": 4}, "a b c d e", None, 0.75),
        ({"limit": 4}, "a b c d e f g h", None, 0.0),
        ({"limit": 4}, "a b c d e f g h i", None, 0.0),
        ({"limit": 4, "unit": "characters"}, "abcd", None, 1.0),
        ({"limit": 4, "unit": "characters"}, "abc ef", None, 0.5),
        ({"limit": 2, "of": "instruction"}, "a b c d e", "be brief", 1.0),
        ({"limit": 2, "of": "instruction"}, "", "please be brief", 0.5),
        ({"limit": 2, "of": "instruction"}, "a b c d e", None, 1.0),
        ({"limit": 2}, "", "please be very brief", 1.0),
        ({"limit": 4}, "\u4f60\u597d\uff0c\u4e16\u754c\u3002", None, 1.0),
        ({"limit": 4}, "\u4f60\u597d\uff0c\u4e16\u754c\u5927\u5bb6\u597d", None, 0.25),
        ({"limit": 4}, "\u3068\u3066\u3082\u9577\u3044\u6587", None, 0.5),
        ({"limit": 2}, "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a", None, 0.5),
    ],
)
def test_length(options: dict[str, Any], response: str, instruction: str | None, expected: float) -> None:
    assert reward_of(Length(**options), response, instruction=instruction) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, r"limit must be at least 1, got 0"),
        ({"limit": -3}, r"limit must be at least 1, got -3"),
        ({"limit": 1, "unit": "tokens"}, r"unit must be one of 'words', 'characters', got 'tokens'"),
        ({"limit": 1, "of": "query"}, r"of must be one of 'response', 'instruction', got 'query'"),
    ],
)
def test_length_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Length(**options)


def test_rewards_answer_in_order() -> None:
    rollouts = [Rollout(Query(text, "?", target="2"), None, Response(text)) for text in ("1", "2", "3", "2")]
    for reward in (ExactMatch(), LabelMatch(["1", "2", "3"]), LastNumber()):
        assert reward.score(rollouts) == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("reward", "instruction", "target", "leaks"),
    [
        (LabelMatch(["positive", "negative"]), "This review is Negative.", "negative", 1.0),
        (LabelMatch(["positive", "negative"]), "This review is positive.", "negative", 0.0),
        (LabelMatch(["positive", "negative"]), "Say positive or negative.", "negative", 0.0),
        (LastNumber(), "The sum of 3 and 4 is 7, so say so.", "#### 7", 1.0),
        (LastNumber(), "Add 3 and 4.", "#### 7", 0.0),
        (LastNumber(), "Add 3 and 17.", "7", 0.0),
        (LastNumber(tolerance=0.5), "It is about 7.3.", "#### 7", 1.0),
        (ExactMatch(), "I think it is the US.", "U.S.", 1.0),
        (ExactMatch(), "It is in  new\nYORK, I think", "New York", 1.0),
        (ExactMatch(), "It is in New Yorkshire", "New York", 0.0),
    ],
)
def test_an_instruction_that_holds_the_answer_leaks(
    reward: Reward, instruction: str, target: str, leaks: float
) -> None:
    rollout = Rollout(Query("1", "?", target=target), Instruction(instruction), Response(""))
    assert reward.leaks([rollout]) == [leaks]


def test_a_leak_is_unknown_without_instruction_or_target() -> None:
    alone = Rollout(Query("1", "?", target="yes"), None, Response(""))
    open_question = Rollout(Query("1", "?"), Instruction("yes"), Response(""))
    assert all(map(math.isnan, ExactMatch().leaks([alone, open_question])))
