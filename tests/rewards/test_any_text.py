"""No answer, instruction or target makes a reward fail, hang or take two things for one."""

from fractions import Fraction

import pytest

from wst import ExactMatch, Instruction, LabelMatch, LastNumber, MathAnswer, Query, Response, Reward, Rollout
from wst.rewards.labels import Labels
from wst.rewards.math.normalize import tidy
from wst.rewards.math.numerals import read_number
from wst.rewards.math.parts import parse_compound
from wst.rewards.numbers import last_number, numbers
from wst.rewards.verdicts import read_score
from wst.rewards.words import comparable, gives_away

MANY = "1" * 5000


def rollout(instruction: str, response: str, target: str) -> Rollout:
    return Rollout(Query("1", "q", target), Instruction(instruction), Response(response))


@pytest.mark.parametrize(
    ("instruction", "target"),
    [
        ("Give the ID of the DVD.", "7"),
        ("Answer tw\u0131ce 5.", "7"),
        ("TW\u0130CE 5", "7"),
        ("5 - 1e1000000", "7"),
        ("10^1e9999999", "7"),
        ("Between 1e1000000 and 2.", "7"),
        ("Think of $\u017fix$ apples.", "7"),
        ("\\boxed{s\u0131x}", "7"),
        ("minus \u017feven", "7"),
        (rf"\boxed{{\frac{{{MANY}}}{{3}}}}", "7"),
        (f"say 1/{MANY}", "7"),
        (rf"$0.{MANY}\overline{{3}}$", "7"),
        (f"${MANY} thousand$", "7"),
        ("$5" + " hundred" * 3000 + "$", "7"),
        pytest.param(r"\boxed{" + r"a\in " * 1500 + "b}", "(1,2)", marks=pytest.mark.slow),
        ("1and " * 60 + "10", "7"),
    ],
    ids=lambda text: str(text)[:20],
)
@pytest.mark.parametrize("reward", [LastNumber(), MathAnswer()], ids=["LastNumber", "MathAnswer"])
def test_an_instruction_that_gives_nothing_away(reward: Reward, instruction: str, target: str) -> None:
    if isinstance(reward, LastNumber):
        target = "7"
    row = rollout(instruction, instruction, target)
    assert list(reward.leaks([row])) == [0.0]


@pytest.mark.parametrize("response", ["10^1e9999999", "5 - 1e1000000", "tw\u0131ce 5", "the ID"])
def test_an_answer_that_is_wrong(response: str) -> None:
    assert list(LastNumber().score([rollout("x", response, "7")])) == [0.0]


@pytest.mark.parametrize(
    "text",
    [f"It is not {'-' * 60}> positive", f"It is not {'-' * 60} [positive]", f"no\u2013{'-' * 60}/positive"],
)
def test_an_arrow_after_a_negation(text: str) -> None:
    """A search that tries each way to part the dashes would not end."""
    LabelMatch(labels=["positive", "negative"]).score([rollout("x", text, "positive")])
    assert Labels(["positive", "negative"]).find("It is not-at-all 'really' - positive") != "positive"


def test_blanks_in_a_target() -> None:
    assert not gives_away("x" + "_" * 60 + "y", "x" + "_" * 58 + "z")
    assert gives_away("It is n a m e.", "name")


@pytest.mark.slow
def test_long_runs_of_one_character_are_read_in_linear_time() -> None:
    many = 100_000
    comparable("." * many + "x")
    comparable("!" * many + "x")
    last_number("answer" + "*" * many)
    last_number("answer" + " " * many)
    tidy("x" + "~" * many + "5")
    tidy("\\ " * many)
    read_number("5" * many + "_8")
    read_score('"' * 20_000, "10")
    numbers("1and " * 20_000 + "10")


def test_numbers_of_many_digits_are_told_apart() -> None:
    assert comparable("1" * 40 + "1") != comparable("1" * 40 + "2")
    assert ExactMatch().score([rollout("x", "1" * 40 + "2", "1" * 40 + "1")]) == [0.0]
    number = read_number("5.")
    assert number is not None
    assert number.value == Fraction(5)
    compound = parse_compound(r"x \in y \in [1,2)")
    assert compound is not None
    assert compound.parts == ("1", "2")
