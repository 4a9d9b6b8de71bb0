"""Rewards computed from the text alone."""

import math
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wst.errors import ConfigError, DataError
from wst.rewards import ExactMatch, LabelMatch, LastNumber, Length, Reward
from wst.rewards.text import last_number, normalize
from wst.types import Instruction, Query, Response, Rollout

SENTIMENTS = ["positive", "negative", "neutral", "not positive"]


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
        ({}, "", "", 1.0),
        ({}, "Paris", "", 0.0),
        ({}, "the cat", "cat", 0.0),
        ({"articles": True}, "the cat", "cat", 1.0),
        ({"lowercase": False}, "paris", "Paris", 0.0),
        ({"punctuation": False}, "Paris.", "Paris", 0.0),
        ({"punctuation": False}, "-", "+", 0.0),
        ({"punctuation": False}, "+", "+", 1.0),
    ],
)
def test_exact_match(options: dict[str, bool], response: str, target: str, expected: float) -> None:
    assert reward_of(ExactMatch(**options), response, target) == expected


@pytest.mark.parametrize(("options", "target"), [({}, "+"), ({"articles": True}, "A")])
def test_exact_match_refuses_a_target_of_which_nothing_is_left(options: dict[str, bool], target: str) -> None:
    with pytest.raises(DataError, match=r"'row-7': normalisation leaves nothing of the target '.'; set punctuation"):
        reward_of(ExactMatch(**options), "?", target)


@pytest.mark.parametrize(
    ("response", "target", "only", "first", "last"),
    [
        ("positive", "positive", 1, 1, 1),
        ("Sentiment: **POSITIVE**.", "Positive", 1, 1, 1),
        ("positive, positive", "positive", 1, 1, 1),
        ("positive or negative", "positive", 0, 1, 0),
        ("positive or negative", "negative", 0, 0, 1),
        ("positive or negative", "neutral", 0, 0, 0),
        ("It is not positive", "positive", 0, 0, 0),
        ("It is not\n positive", "not positive", 1, 1, 1),
        ("positive? not positive", "positive", 0, 1, 0),
        ("not positive but positive", "positive", 0, 0, 1),
        ("positively", "positive", 0, 0, 0),
        ("unpositive", "positive", 0, 0, 0),
        ("positive_label", "positive", 0, 0, 0),
        ("", "positive", 0, 0, 0),
    ],
)
def test_label_match(response: str, target: str, only: float, first: float, last: float) -> None:
    assert reward_of(LabelMatch(SENTIMENTS), response, target) == only
    assert reward_of(LabelMatch(SENTIMENTS, which="first"), response, target) == first
    assert reward_of(LabelMatch(SENTIMENTS, which="last"), response, target) == last


@pytest.mark.parametrize(
    ("labels", "response", "target", "expected"),
    [
        (["neutral", "slightly neutral"], "Slightly neutral!", "slightly neutral", 1.0),
        (["neutral", "slightly neutral"], "Slightly neutral!", "neutral", 0.0),
        (["neutral", "slightly neutral"], "slightly, neutral", "neutral", 1.0),
        (["C", "C++", "C#"], "I prefer C++.", "C++", 1.0),
        (["C", "C++", "C#"], "I prefer C++.", "C", 0.0),
        (["C", "C++", "C#"], "I prefer C.", "C", 1.0),
        (["C", "C++", "C#"], "c# it is", "C#", 1.0),
        (["yes", "n/a"], "(N/A)", "n/a", 1.0),
        (["yes", "n/a"], "nXa", "n/a", 0.0),
        (["1", "10"], "10", "1", 0.0),
        (["1", "-1"], "-1", "1", 0.0),
        (["1", "-1"], "-1", "-1", 1.0),
        (["Stra\u00dfe", "Weg"], "STRASSE", "stra\u00dfe", 1.0),
        (["not  sure", "sure"], "not sure", "Not sure", 1.0),
    ],
)
def test_label_match_of_overlapping_and_odd_labels(
    labels: list[str], response: str, target: str, expected: float
) -> None:
    assert reward_of(LabelMatch(labels), response, target) == expected


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
    ("text", "expected"),
    [
        ("42", "42"),
        ("It is 42.", "42"),
        ("3 and 4", "4"),
        ("work 3+4\n#### 7", "7"),
        ("1,234.5", "1234.5"),
        ("$1,234,567.", "1234567"),
        ("-3", "-3"),
        ("x=-3", "-3"),
        ("\u22123", "-3"),
        ("-$3.50", "-3.5"),
        ("$-3.50", "-3.5"),
        ("+3", "3"),
        ("50%", "50"),
        ("50 %", "50"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("...5", "5"),
        ("5-3", "3"),
        ("2010-2012", "2012"),
        ("(5)-3", "3"),
        ("GPT-4", "4"),
        ("- 42", "42"),
        ("answer--3", "3"),
        ("**-3**", "-3"),
        (r"\boxed{-42}", "-42"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        ("2e\u22122", "0.02"),
        ("2e", "2"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("3/4", "4"),
        ("1.2.3", "3"),
        ("007", "7"),
        ("-0", "0"),
        ("12km", "12"),
        ("\u0664\u0662", "42"),
        ("none", None),
        ("", None),
        ("-.,e%$", None),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    assert last_number(text) == (None if expected is None else Decimal(expected))


@given(st.integers(-(10**30), 10**30))
def test_last_number_reads_what_is_written_with_commas(number: int) -> None:
    assert last_number(f"1 {number:,}.") == number


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


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("7" * 1_000_000, True),
        ("1" + ",234" * 250_000, True),
        ("1" + ",234" * 250_000 + "5", True),
        ("0." + "1" * 1_000_000, True),
        ("1," * 500_000, True),
        ("1." * 500_000, True),
        ("1e" * 500_000, True),
        ("-" * 1_000_000 + "1", True),
        ("1e" + "9" * 1_000_000, False),
    ],
)
def test_huge_numbers_are_read_in_linear_time(text: str, same: bool) -> None:
    start = time.process_time()
    assert reward_of(LastNumber(), text, text) == same
    assert reward_of(LastNumber(), text, "0.5") == 0.0
    assert time.process_time() - start < 20


def test_last_digit_of_a_huge_number_counts() -> None:
    assert reward_of(LastNumber(), "7" * 100_000 + "8", "7" * 100_001) == 0.0
    assert reward_of(LastNumber(1.0), "7" * 100_000 + "8", "7" * 100_001) == 1.0


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_last_number_refuses_the_tolerance(tolerance: float) -> None:
    with pytest.raises(ConfigError, match=r"tolerance must be a finite number of at least 0, got"):
        LastNumber(tolerance)


def test_last_number_refuses_a_target_without_one() -> None:
    with pytest.raises(DataError, match=r"'row-7': the target 'forty-\\ntwo' contains no number") as caught:
        reward_of(LastNumber(), "42", "forty-\ntwo")
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
