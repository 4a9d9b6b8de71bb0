"""The verdicts of the reward for mathematics on tables, its options, and its leaks."""

import math
from typing import Any

import pytest
from rewards.math_boxed import BOXED
from rewards.math_phrasings import READ
from rewards.math_rollouts import boxed, rollout_of

from wst.errors import ConfigError
from wst.rewards.math.compare import same_answer
from wst.rewards.math.reward import MathAnswer


@pytest.fixture(scope="module")
def verdicts(math_answer: MathAnswer) -> dict[tuple[str, str], float]:
    pairs = [(boxed(answer), gold) for answer, gold, _ in BOXED] + [(response, gold) for response, gold, _ in READ]
    return dict(zip(pairs, math_answer.score([rollout_of(*pair) for pair in pairs]), strict=True))


@pytest.mark.parametrize(("answer", "gold", "equal"), BOXED)
def test_answers_are_compared_by_value(
    verdicts: dict[tuple[str, str], float], answer: str, gold: str, equal: bool
) -> None:
    assert verdicts[boxed(answer), gold] == float(equal)


@pytest.mark.parametrize(("response", "target", "equal"), READ)
def test_where_the_answer_stands(
    verdicts: dict[tuple[str, str], float], response: str, target: str, equal: bool
) -> None:
    assert verdicts[response, target] == float(equal)


def test_equality_can_be_asked_for_alone() -> None:
    assert same_answer("x = 1/2", "0.5")
    assert not same_answer("x = 1/3", "0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, r"MathAnswer: timeout must be a finite number of seconds above 0, got 0"),
        ({"timeout": math.inf}, r"timeout must be a finite number"),
        ({"timeout": math.nan}, r"timeout must be a finite number"),
        ({"memory_mb": 255}, r"memory_mb must be at least 256, .*, got 255"),
        ({"workers": 0}, r"workers must be at least 1, got 0"),
        ({"unverified": "0"}, r"unverified must be one of 'wrong', 'nan', got '0'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MathAnswer(**options)


def test_only_the_tail_of_a_response_is_read(math_answer: MathAnswer) -> None:
    near, far = "word " * 3_000, "word " * 10_000
    responses = [boxed("7") + near, boxed("7") + far, f"{far}so $x = 7$.", boxed("7") + far + boxed("8")]
    assert math_answer.score([rollout_of(response, "7") for response in responses]) == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("instruction", "target", "leaks"),
    [
        ("Add 3 and 4, which is 7.", "#### 7", 1.0),
        ("Add 3 and 4.", "#### 7", 0.0),
        ("Do it in 7 steps.", "#### 7", 0.0),
        ("It is 7.0, I think.", "7", 1.0),
        ("It costs $1,200.", r"\$1,\!200", 1.0),
        ("Halve it.", r"\frac{1}{2}", 0.0),
        ("It is 0.5 of all.", r"\frac{1}{2}", 1.0),
        ("It is 1/2 of all.", r"\frac{1}{2}", 1.0),
        (r"It is $\frac{2}{4}$.", r"\frac{1}{2}", 1.0),
        ("Step 1, then step 2.", r"\frac{1}{2}", 0.0),
        (r"Say \boxed{90^\circ}.", r"90^\circ", 1.0),
        (r"Note that $x^2 + 1$ has no root.", "x^2+1", 1.0),
        ("Note that x^2 has one.", "x^2+1", 0.0),
        ("Ask who is Evelyn.", r"\text{Evelyn}", 1.0),
        ("Ask who is fastest.", r"\text{Evelyn}", 0.0),
        ("Evelynne is it.", r"\text{Evelyn}", 0.0),
        ("Choose (C).", r"\text{(C)}", 1.0),
        ("Choose among (A), (B) and (C).", r"\text{(C)}", 0.0),
        ("Use the point (3, \\frac{\\pi}{2}).", r"\left( 3, \frac{\pi}{2} \right)", 1.0),
        ("The roots are 2 and 1.", "1,2", 1.0),
        ("Add 1 and 2.", "1,2", 0.0),
        ("Choose between 1 and 2.", "1,2", 0.0),
        (r"So $2 \le x < 5$.", "[2,5)", 1.0),
        (r"2 \le x < 5", "[2,5)", 1.0),
        (r"Solve $2 \le x \le 5$.", "[2,5)", 0.0),
        ("(3, 4)", "(4, 3)", 0.0),
        ("1e999999999999999999 and " + "7" * 100_000, "7", 0.0),
    ],
)
def test_an_instruction_that_holds_the_answer_leaks(instruction: str, target: str, leaks: float) -> None:
    assert MathAnswer().leaks([rollout_of("", target, instruction)]) == [leaks]
