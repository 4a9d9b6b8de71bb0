"""Where in a response the answer stands."""

import pytest

from wst.rewards.math.extract import after_hashes, boxed_answer, final_answer, gold_answer, last_boxed
from wst.rewards.math.verdict import is_correct


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{ 5 }", "5"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\boxed{\frac{1}{2}} and }", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1} \boxed{}", "1"),
        (r"$\boxed 5$.", "5"),
        (r"\[\boxed 5\]", "5"),
        (r"\boxed 5.", "5"),
        (r"\boxed", None),
        (r"\boxedness{5}", None),
        ("5", None),
        (r"\boxed{" * 100_000, None),
        (r"\boxed{" * 100_000 + "7" + "}" * 100_000, "7"),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n#### 7", "7"), ("#### 1\n#### 2\nb", "2"), ("####\n 7\n8", "7"), ("####", None), ("# 7", None)],
)
def test_after_hashes(text: str, expected: str | None) -> None:
    assert after_hashes(text) == expected


def test_a_box_beats_hashes() -> None:
    assert gold_answer("\\boxed{1}\n#### 2") == "1"
    assert gold_answer("#### 2") == "2"
    assert gold_answer("2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$x = \boxed{3}$ and $y = \boxed{4}$", "x = 3, y = 4"),
        (r"\boxed{3}. \boxed{3}", "3"),
        (r"\boxed{3}, no, \boxed{4}", "4"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"it is \boxed{\frac{1}{2}", r"\frac{1}{2}"),
        ("5", None),
    ],
)
def test_boxed_answer(text: str, expected: str | None) -> None:
    assert boxed_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 7 eggs", ("7 eggs", True)),
        ("#### Evelyn", ("Evelyn", True)),
        ("#### Step 1\nso 7", ("#### Step 1\nso 7", False)),
        ("#### 1. Add\nso 7", ("#### 1. Add\nso 7", False)),
        ("<answer>\n7\n</answer>", ("7", False)),
        ("7", ("7", False)),
    ],
)
def test_final_answer(text: str, expected: tuple[str, bool]) -> None:
    assert final_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "marker"),
    [
        ("1. Find the number of apples.\n2. Find the number of pears.", "2"),
        ("1. Find the apples.\n2. Find the pears.\n3. Add all of them.", "3"),
        ("**Step 4:** Add them all.", "4"),
    ],
)
def test_the_number_of_a_step_is_no_answer(text: str, marker: str) -> None:
    assert not is_correct(text, False, marker)
    assert is_correct(f"{text}\nSo there are 18 apples.", False, "18")
