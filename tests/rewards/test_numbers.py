"""Numbers in prose: which one is the answer, and which ones an instruction mentions."""

import time
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wst.rewards.numbers import last_number, numbers


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
        ("5-3", None),
        ("2010-2012", None),
        ("(5)-3", None),
        ("GPT-4", None),
        ("- 42", "42"),
        ("answer--3", "3"),
        ("**-3**", "-3"),
        (r"\boxed{-42}", "-42"),
        ("1e3", "1000"),
        ("1.5E-3", "0.0015"),
        ("2e\u22122", "0.02"),
        ("2e", "2"),
        ("1,2,3", None),
        ("1,2345", "1.2345"),
        ("3/4", "0.75"),
        ("1.2.3", None),
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
    assert last_number(f"It is {number:,}.") == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He paid 8 in 1999.", "8"),
        ("It was built in 1999", "1999"),
        ("3,75", "3.75"),
        ("1.250,50", "1250.50"),
        ("12 500 people", "12500"),
        ("7\u00a0300", "7300"),
        (r"$4{,}500$", "4500"),
        (r"2\,000", "2000"),
        ("3\u2019400", "3400"),
        ("9 EUR (roughly 10 USD)", "9"),
        ("(12)", "12"),
        ("twelve (12)", "12"),
        ("x = 3 (mod 7)", "3"),
        ("It is 8 [2].", "8"),
        ("5/8", "0.625"),
        ("10/4 = 2.5", "2.5"),
        ("1 1/2 cups", "1.5"),
        ("7/0", None),
        ("on 2023-11-05", None),
        ("05/11/2023", None),
        ("12 of them by 05/11/2023", "12"),
        ("at 10:30", None),
        ("1) red\n2) blue", None),
        ("1. First add.\n2. So it is 14.", "14"),
        ("#### 14\n1. I added.", "14"),
        (r"\boxed{14} since 3 + 11", "14"),
        (r"\boxed{\text{14}}", "14"),
        ("The final answer is: **14**. I used 2 rules.", "14"),
        ("The answer is 3 + 11 = 14 for 2 people.", "14"),
        ("The answer is 14. Wait, I forgot one: 15", "15"),
        ("The answer is not 14. It is 15.", "15"),
        ("Answer:\n14", "14"),
        ("Answer (see step 3): 14", "14"),
        ("2 million", "2000000"),
        ("3.5 thousand", "3500"),
        ("2.5k", "2500"),
        ("5 km", "5"),
        ("9-4", None),
        ("9 - 4", None),
        ("9 - 4 = 5", "5"),
        ("9 to 14", None),
        ("rose from 9 to 14", "14"),
        ("9 or 14", None),
        ("between 9 and 14", None),
        ("9 + 14", None),
        ("9 x 14", None),
        ("3^4", "81"),
        ("20 m^2", "20"),
        ("20 m\u00b2", "20"),
        ("x_1 = 6", "6"),
        ("H2O: 6 litres of H2O", "6"),
        ("7 8 9", None),
        ("7, 8, 9", None),
        ("7 and then 8", "8"),
        ("negative 6", "-6"),
        ("20 minus 6", None),
        ("forty-two", "42"),
        ("one hundred and five", "105"),
        ("minus three", "-3"),
        ("The answer is one.", "1"),
        ("one", "1"),
        ("No one knows.", None),
        ("page 12", None),
        ("14. It took 3 steps.", "14"),
        ("$5", "5"),
        ("USD5", "5"),
    ],
)
def test_the_number_that_is_the_answer(text: str, expected: str | None) -> None:
    assert last_number(text) == (None if expected is None else Decimal(expected))


@pytest.mark.parametrize(
    ("instruction", "target", "mentioned"),
    [
        ("It is seven.", 7, True),
        ("Say 1{,}400.", 1400, True),
        ("Compute 3 * 14.", 42, True),
        ("Compute 84/2.", 42, True),
        ("Compute 40 + 2.", 42, True),
        ("Compute 50 - 8.", 42, True),
        (r"It is \sqrt{49}.", 7, True),
        ("It is the square root of 49.", 7, True),
        ("It is two less than 9.", 7, True),
        ("It is twice 21.", 42, True),
        ("It lies between 6 and 8.", 7, True),
        ("The digits are 1, 4 and 2.", 142, True),
        ("It is 0x10.", 16, True),
        ("It is XIV.", 14, True),
        ("It is 1.4k.", 1400, True),
        ("It is one.", 1, True),
        ("1. Read the problem.\n2. Add.\n3. Check.", 3, False),
        ("1) read 2) add 3) check", 3, False),
        ("(1) read, (2) add, (3) check", 3, False),
        ("Step 1: read. Step 2: add.", 2, False),
        ("- 1. Read\n- 2. Add", 2, False),
        ("1. Read. 2. Write 7 as the answer.", 7, True),
        ("Answer in 3 sentences.", 3, False),
        ("Work in two steps.", 2, False),
        ("Round to 2 decimal places.", 2, False),
        ("Write one number only.", 1, False),
        ("Add 3 and 4.", 7, False),
        ("I will mix the MIX.", 1009, True),
        ("Give the ID of the DVD, not the IC.", 1, False),
        ("It is 12 or 1e999999999.", 12, True),
    ],
)
def test_numbers_that_an_instruction_mentions(instruction: str, target: int, mentioned: bool) -> None:
    assert (Decimal(target) in numbers(instruction)) == mentioned


_PIECES = [
    *("ID", "DVD", "IIX", "XIV", "Ⅷ", "½", "²", "٣", "one", "dozen", "minus", "hundred thousand", "twice 3", "half 7"),
    *("5 more than 2", "0x1F", r"\sqrt{4}", "√9", r"\boxed{", "}", "####", "answer is", "1e999999", "1e9", "NaN", "∞"),
    *("0/0", "1/2", "..5", "1,000", "%", "-", "+", "^", "to", "or", "between", "digits 1 2", "10:30", "(", "[", "MTI="),
]


@given(st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=3)), max_size=8), st.sampled_from(["", " "]))
def test_no_text_is_an_error(pieces: list[str], between: str) -> None:
    text = between.join(pieces)
    last_number(text)
    assert all(isinstance(number, Decimal) for number in numbers(text))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7" * 1_000_000, True),
        ("1" + ",234" * 250_000, True),
        ("0." + "1" * 1_000_000, True),
        ("-" * 1_000_000 + "1", True),
        ("1e" + "9" * 1_000_000, True),
        *(("1" + separator, False) for separator in (",", ".", " ", "/", "-")),
        ("1" + ",234" * 250_000 + "5", False),
        *(
            (piece, None)
            for piece in ("1e", "1'", "(1", "a1 ", "1. a ", "answer is ", "one ", r"\boxed{", "between 1 and ")
        ),
    ],
)
def test_long_texts_are_read_in_linear_time(text: str, number: bool | None) -> None:
    text = text if len(text) > 20 else text * 50_000  # a quadratic search would take minutes
    start = time.process_time()
    found = last_number(text)
    assert number in (None, found is not None)
    numbers(text)
    assert time.process_time() - start < 30
