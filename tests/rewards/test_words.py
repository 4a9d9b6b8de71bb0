"""Whether an instruction gives an answer away, and the form in which words are compared."""

import pytest

from wst.rewards import ExactMatch, MathAnswer
from wst.rewards.words import gives_away, unify
from wst.types import Instruction, Query, Response, Rollout


@pytest.mark.parametrize(
    ("instruction", "answer", "given"),
    [
        ("Say Madrid.", "Madrid", True),
        ("Say MADRID!", "Madrid", True),
        ("It is Madrid's own.", "Madrid", True),
        ("Say M\u00e1drid", "Madrid", True),
        ("Say Mad\u200brid", "Madrid", True),
        ("Say m a d r i d", "Madrid", True),
        ("Say M-a-d-r-i-d", "Madrid", True),
        ("Say TWFkcmlk", "Madrid", True),
        ("He lives in San-Marino now", "San Marino", True),
        ("It is the US.", "U.S.", True),
        ("It is in Madridville", "Madrid", False),
        ("Be quick.", "Madrid", False),
        ("Say true.", "True", True),
        ("Is it true or false?", "True", False),
        ("Answer yes or no.", "no", False),
        ("Answer no.", "no", True),
        ("Give a hint.", "a", False),
        ("Choose C.", "C", True),
        ("It is (b).", "(B)", True),
        ("(A), (B) or (C)?", "(B)", False),
        ("(A) is wrong, (B) is right", "(B)", True),
        ("The point is (1, 2).", "(1,2)", True),
        ("It is x\u00b2 + 1.", "x^2+1", True),
        ("It is 12.", "2", False),
        ("Any text", "", False),
        ("Any text", " ?! ", False),
    ],
)
def test_an_answer_is_given_away(instruction: str, answer: str, given: bool) -> None:
    assert gives_away(instruction, answer) == given
    if answer.strip():
        rollout = Rollout(Query("1", "?", target=answer), Instruction(instruction), Response(""))
        assert ExactMatch().leaks([rollout]) == [given]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("instruction", "target", "leaks"),
    [
        ("1. Read.\n2. Add.\n3. Answer.", "3", 0),
        ("Answer in 3 steps.", "3", 0),
        ("It is seven.", "7", 1),
        ("It is 25%.", r"\frac{1}{4}", 1),
        ("It is 1{,}400.", "1400", 1),
        ("The point is (1, 2).", "(1,2)", 1),
        ("It is x\u00b2 + 1.", "x^2+1", 1),
        (r"The answer is \sqrt{12}.", r"2\sqrt{3}", 1),
        ("The answer is 2 times the square root of 3.", r"2\sqrt{3}", 1),
        ("The answer is the square root of 2.5.", r"\sqrt{2}", 0),
        ("The answer is the square root of 3/2.", r"\frac{\sqrt{3}}{2}", 0),
        ("The answer is (x+2)(x-2).", "x^2-4", 1),
        ("Multiply (x+2)(x-2) out; the answer is a polynomial.", "x^2-4", 0),
        ("Say whether the answer is larger than (x+2)(x-2).", "x^2-5", 0),
        ("Choose C.", r"\text{(C)}", 1),
        ("(A) or (C)?", r"\text{(C)}", 0),
    ],
)
def test_leaks_of_mathematical_answers(instruction: str, target: str, leaks: float) -> None:
    rollout = Rollout(Query("1", "?", target=target), Instruction(instruction), Response(""))
    assert MathAnswer().leaks([rollout]) == [leaks]


def test_what_only_looks_different_is_unified() -> None:
    assert unify("\uff21\u2019\u201c\u2014\u2212\u200b") == "A'\"\u2014-"
