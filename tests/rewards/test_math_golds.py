"""The mathematical reward on the gold answers of public data."""

import json
import re
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rewards.math_rollouts import rollout_of

from wst.rewards.math.reward import MathAnswer

ROOT = Path(__file__).parents[2]


def gsm8k() -> list[tuple[str, str]]:
    """Worked solutions with their answers."""
    rows = read("gsm8k/test.jsonl")
    return [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def math500() -> list[tuple[str, str]]:
    return [(row["solution"], row["answer"]) for row in read("math/math500_test.jsonl")]


def read(name: str) -> list[dict[str, Any]]:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text().splitlines()]


def made() -> list[tuple[str, str]]:
    """Rows of our own, in the style of both."""
    golds = [
        r"\frac{1}{2}",
        "(1,2)",
        "x^2+1",
        r"\text{Evelyn}",
        r"11,\! 111",
        "6 - 5i",
        r"\text{(C)}",
        "x=5",
        "5",
        "2516_8",
    ]
    boxes = [(rf"First \boxed{{0}} seems right, but it is $\boxed{{{gold}}}$.", gold) for gold in golds]
    return boxes + [(f"{n} * {n} = <<{n}*{n}={n * n}>>{n * n}\n#### {n * n:,}", f"{n * n:,}") for n in range(30, 50)]


def check_rows(reward: MathAnswer, rows: list[tuple[str, str]], name: str) -> None:
    """See that each gold answer gets 1.0, and one that is another row's 0.0 unless they are the same."""
    reward.score([rollout_of("1", "1")])  # started
    reward._verdicts.clear()
    start = time.monotonic()
    from_solution = reward.score([rollout_of(solution, answer, name=solution) for solution, answer in rows])
    from_answer = reward.score([rollout_of(answer, answer, name=solution) for solution, answer in rows])
    others = [answer for _, answer in rows[1:] + rows[:1]]
    shifted = reward.score([rollout_of(answer, other) for (_, answer), other in zip(rows, others, strict=True)])
    verified, seconds = len(reward._verdicts), time.monotonic() - start
    coincide = [(a, other) for (_, a), other, value in zip(rows, others, shifted, strict=True) if value]
    print(
        f"{name}: gold {sum(from_solution):.0f} and {sum(from_answer):.0f} of {len(rows)}, shifted {sum(shifted):.0f} "
        f"of {len(rows)}; {verified} verified in {seconds:.1f} s, {60 * verified / seconds:,.0f} a minute"
    )
    assert from_solution == from_answer == [1.0] * len(rows)
    assert all(bare(a) == bare(other) for a, other in coincide), coincide
    assert not any(bare(a) == bare(b) for (_, a), b, value in zip(rows, others, shifted, strict=True) if not value)


def bare(answer: str) -> str | Decimal:
    """An answer in a form that is the same for those of the data that are equal in value: by another way than ours."""
    answer = re.sub(r"^[xy]\s*=|\\text|\\[!$]|\^\\circ|[\s{}]|\\left|\\right", "", answer).replace("dfrac", "frac")
    number = re.fullmatch(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+", answer)
    return Decimal(answer.replace(",", "")) if number and not re.search(r",\d{1,2}\b", answer) else answer


def test_golds_of_rows_made_here(math_answer: MathAnswer) -> None:
    check_rows(math_answer, made(), "made")


@pytest.mark.parametrize(("rows", "every"), [(gsm8k, 4), (math500, 5)])
def test_golds_of_public_data(math_answer: MathAnswer, rows: Callable[[], list[tuple[str, str]]], every: int) -> None:
    check_rows(math_answer, rows()[::every], rows.__name__)


@pytest.mark.long
@pytest.mark.parametrize(("rows", "count"), [(gsm8k, 1319), (math500, 500)])
def test_golds_of_all_public_data(rows: Callable[[], list[tuple[str, str]]], count: int) -> None:
    reward = MathAnswer()
    assert len(rows()) == count
    check_rows(reward, rows(), rows.__name__)
    reward.close()


@pytest.mark.long
def test_verdicts_on_other_rows_golds_are_those_of_math_verify(math_answer: MathAnswer) -> None:
    from math_verify import parse, verify

    answers = [answer for _, answer in math500()]
    parsed = [parse(f"${answer}$", parsing_timeout=None) for answer in answers]
    ours = math_answer.score([rollout_of(answers[i], answers[i - 1]) for i in range(len(answers))])
    theirs = [verify(parsed[i - 1], parsed[i], timeout_seconds=None) for i in range(len(answers))]
    assert ours == [float(value) for value in theirs]
