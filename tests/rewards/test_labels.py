"""Labels in prose: which ones a response names and denies, and which ones an instruction gives away."""

import pytest

from wst.rewards import LabelMatch
from wst.types import Instruction, Query, Response, Rollout

SENTIMENTS = ["positive", "negative", "neutral", "not positive"]
BINARY = ["positive", "negative"]


def reward_of(reward: LabelMatch, response: str, target: str) -> float:
    (value,) = reward.score([Rollout(Query("row-7", "?", target=target), None, Response(response))])
    return value


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
    ("response", "positive"),
    [
        ("The verdict is positive.", 1),
        ("It is positive, not negative.", 1),
        ("Not negative, positive.", 1),
        ("No doubt: positive", 1),
        ("It is not only positive, it is glowing.", 1),
        ("It could not be more positive.", 1),
        ("There are no complaints. Positive!", 1),
        ("*positive*", 1),
        ("`positive`", 1),
        ("___Positive___", 1),
        ("\uff30\uff4f\uff53\uff49\uff54\uff49\uff56\uff45", 1),
        ("It is positive? Yes.", 1),
        ("wasn't positive", 0),
        ("It isn\u2019t positive", 0),
        ("It cannot be called positive.", 0),
        ("I don't believe that this review is positive", 0),
        ("never positive", 0),
        ("hardly positive", 0),
        ("anything but positive", 0),
        ("non-positive", 0),
        ("nonpositive", 0),
        ("neither positive nor negative", 0),
        ("nothing positive here", 0),
        ("not yet positive", 0),
        ("isn't so positive", 0),
        ("not, in my view, positive", 0),
        ("Positive? No.", 0),
        ("Positive is wrong.", 0),
        ("Positive it is not, positive isn't right", 0),
        ("positive. Actually not positive.", 0),
        ("a false-positive", 0),
        ("a true positive", 0),
        ("EU-positive views", 0),
        ("a positive-sounding text", 0),
        ("nicht positive", 0),
        ("rather negative than positive", 0),
        ("un_positive", 0),
    ],
)
def test_what_a_clause_denies_is_not_named(response: str, positive: float) -> None:
    assert reward_of(LabelMatch(BINARY), response, "positive") == positive
    assert reward_of(LabelMatch(BINARY, "last"), response, "positive") == positive


@pytest.mark.parametrize(
    ("response", "target", "expected"),
    [
        ("No.", "no", 1),
        ("No, it does not.", "no", 1),
        ("The answer is no", "no", 1),
        ("no because it is wet", "no", 1),
        ("There is no doubt", "no", 0),
        ("no one knows", "no", 0),
        ("no-one", "no", 0),
        ("Yes, without a doubt.", "yes", 1),
        ("Yes, no question.", "yes", 1),
    ],
)
def test_no_is_a_label_only_as_an_answer(response: str, target: str, expected: float) -> None:
    assert reward_of(LabelMatch(["yes", "no"]), response, target) == expected


@pytest.mark.parametrize(
    ("response", "target", "expected"),
    [
        ("A", "A", 1),
        ("a", "A", 1),
        ("(a)", "A", 1),
        ("a)", "A", 1),
        ("**A**", "A", 1),
        ("A.", "A", 1),
        ("Answer: A", "A", 1),
        ("The answer is a.", "A", 1),
        ("It must be A because of the rain", "A", 1),
        ("A is right", "A", 1),
        ("Option B is a better one", "B", 1),
        ("C. A bird", "C", 1),
        ("A bird", "A", 0),
        ("It is a bird.", "A", 0),
        ("I saw a cat and a dog", "A", 0),
        ("Vitamin D", "D", 0),
        ("Plan B", "B", 0),
        ("an A+ effort", "A", 0),
        ("I like C++", "C", 0),
        ("D's answer", "D", 0),
        ("(A) or (B)", "A", 0),
    ],
)
def test_letters_are_labels_only_as_choices(response: str, target: str, expected: float) -> None:
    assert reward_of(LabelMatch(["A", "B", "C", "D"]), response, target) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("2", 1),
        ("2.", 1),
        ("The rating is 2.", 1),
        ("2 stars", 1),
        ("-2", 0),
        ("2.5", 0),
        ("0.2", 0),
        ("2%", 0),
        ("Step 2", 0),
        ("table 2", 0),
        ("#2", 0),
        ("22", 0),
        ("2nd", 0),
    ],
)
def test_numbers_are_labels_only_alone(response: str, expected: float) -> None:
    assert reward_of(LabelMatch(["1", "2", "3"]), response, "2") == expected


@pytest.mark.parametrize(
    ("labels", "response", "expected"),
    [
        (["\u597d\u8bc4", "\u5dee\u8bc4"], "\u8fd9\u662f\u597d\u8bc4", 1),
        (["\u597d\u8bc4", "\u5dee\u8bc4"], "\u7b54\u6848\uff1a\u597d\u8bc4\u3002", 1),
        (["\u597d\u8bc4", "\u5dee\u8bc4"], "\u8fd9\u4e0d\u662f\u597d\u8bc4", 0),
        (["\u597d\u8bc4", "\u5dee\u8bc4"], "\u975e\u597d\u8bc4", 0),
        (["\u597d\u8bc4", "\u5dee\u8bc4"], "\u597d\u8bc4\u548c\u5dee\u8bc4", 0),
        (["\u80af\u5b9a", "\u5426\u5b9a"], "\u80af\u5b9a\u7684\u3067\u3059", 1),
        (["\u30dd\u30b8\u30c6\u30a3\u30d6"], "\u30dd\u30b8\u30c6\u30a3\u30d6\u3067\u3059", 1),
        (["\u30dd\u30b8\u30c6\u30a3\u30d6"], "\u30dd\u30b8\u30c6\u30a3\u30d6\u3067\u306f\u306a\u3044", 0),
        (["\uae0d\uc815"], "\uae0d\uc815\uc785\ub2c8\ub2e4", 1),
        (["\uae0d\uc815"], "\uae0d\uc815\uc774 \uc544\ub2c8\ub2e4", 0),
        (["d\u00e9j\u00e0 vu", "nouveau"], "De\u0301ja\u0300 vu", 1),
        (["very_good", "bad"], "very good", 1),
        (["very good", "bad"], "VERY_GOOD", 1),
        (["very good", "bad"], "very_good_thing", 0),
    ],
)
def test_labels_of_other_scripts_and_spellings(labels: list[str], response: str, expected: float) -> None:
    assert reward_of(LabelMatch(labels), response, labels[0]) == expected


@pytest.mark.parametrize(
    ("labels", "instruction", "target", "leaks"),
    [
        (BINARY, "Say that it is positive.", "positive", 1),
        (BINARY, "It is positive, not negative.", "positive", 1),
        (BINARY, "The mood is not positive.", "negative", 1),
        (BINARY, "Describe how negatively it is written.", "negative", 1),
        (BINARY, "n e g a t i v e", "negative", 1),
        (BINARY, "Is it positive or negative?", "negative", 0),
        (BINARY, "Weigh the positive points.", "positive", 0),
        (BINARY, "Answer with one word.", "positive", 0),
        (["A", "B"], "Give a reason.", "A", 0),
        (["A", "B"], "Choose B.", "B", 1),
        (["A", "B"], "Choose A or B.", "B", 0),
        (["red", "blue", "green"], "It is not red and not blue.", "green", 1),
        (["red", "blue", "green"], "It is not red.", "green", 0),
    ],
)
def test_an_instruction_leaks_if_it_singles_the_label_out(
    labels: list[str], instruction: str, target: str, leaks: float
) -> None:
    rollout = Rollout(Query("1", "?", target=target), Instruction(instruction), Response(""))
    assert LabelMatch(labels).leaks([rollout]) == [leaks]
