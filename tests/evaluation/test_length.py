"""The gain that goes with length, by hand and in the results of a test."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from telling import TEST_NAMES, Queries, cells, runner, telling
from toys import Parrot, small_module

from wst import (
    Prompt,
    Response,
    Reward,
    Rollout,
)
from wst.evaluation.metrics import gain_by_length

math.nan = math.nan
TRAIN, HELD_OUT = 6, 4  #: queries

pytestmark = pytest.mark.filterwarnings("ignore")


def table(*rows: tuple[float, float]) -> np.ndarray:
    return np.array(rows, dtype=float)


def test_a_gain_by_length_is_worked_by_hand() -> None:
    # Both arms get 0.1 a word; the first is 20 words longer.
    assert gain_by_length(table((3, 1), (4, 2)), table((30, 10), (40, 20))) == pytest.approx(2.0)
    # Less the means, lengths are -5, 5 and -1, 1, rewards -1, 1 and 1, -1: slope (5 + 5 - 1 - 1) / (25 + 25 + 1 + 1).
    assert gain_by_length(table((1, 4), (3, 2)), table((10, 4), (20, 6))) == pytest.approx(8 / 52 * 10)


def test_where_length_earns_nothing_no_gain_goes_with_it() -> None:
    assert gain_by_length(table((5, 2), (5, 2)), table((10, 1), (20, 2))) == 0.0
    # Within an arm the longer and the shorter are worth the same; that the longer arm is worth more is not length.
    assert gain_by_length(table((9, 1), (7, 3), (9, 1)), table((30, 2), (20, 1), (10, 0))) == pytest.approx(0.0)


def test_arms_of_one_length_gain_nothing_by_it() -> None:
    assert gain_by_length(table((5, 2), (6, 1)), table((10, 15), (15, 10))) == 0.0


def test_rows_that_are_not_known_are_left_out() -> None:
    rewards, lengths = [(3, 1), (4, 2)], [(30, 10), (40, 20)]
    more = table(*rewards, (math.nan, 1), (50, math.nan), (60, 7)), table(*lengths, (9, 9), (9, 9), (math.nan, 7))
    assert gain_by_length(*more) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("rewards", "lengths"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2))),
        (table((math.nan, 1)), table((3, 4))),
        (table((1, 2)), table((3, 4))),
        (table((1, 2), (3, 4)), table((7, 5), (7, 5))),
    ],
    ids=["nothing", "nothing known", "one row", "one length an arm"],
)
def test_without_a_spread_of_lengths_nothing_can_be_said(rewards: np.ndarray, lengths: np.ndarray) -> None:
    assert math.isnan(gain_by_length(rewards, lengths))


def test_results_have_words_and_the_gain_by_length(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Words(Reward):
        """Half a point for each word."""

        def score(self, rollouts: Sequence[Rollout]) -> list[float]:
            return [len(rollout.response.text.split()) / 2 for rollout in rollouts]

    # The parrot repeats the instruction: three words or seven; on its own the query, which has three.
    module = telling(small_module(tiny_model, reward=Words()), "one two three", "one two three four five six seven")
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert module.results() == json.loads((tmp_path / "test/results.json").read_text())
    found = cells(tmp_path)
    # four queries in batches of three and one: 3, 7, 3 and 3 words
    assert [found[arm]["response_words"] for arm in TEST_NAMES] == [3.0, 4.0, 4.0]
    assert found["trained teacher"]["vs_unaided"]["mean"] == 0.5
    assert found["trained teacher"]["vs_unaided"]["by_length"] == pytest.approx(0.5)  # all of it
    assert found["trained teacher"]["vs_untrained"]["by_length"] == 0.0
    out = capsys.readouterr().out
    assert "by length" in out
    assert "words" in out


def test_results_without_a_spread_of_lengths_are_null(tiny_model: str, tmp_path: Path) -> None:
    module = telling(small_module(tiny_model), "one two three")
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    trained = cells(tmp_path)["trained teacher"]
    assert [trained[other]["by_length"] for other in ("vs_unaided", "vs_untrained")] == [None, None]


def test_an_answer_that_failed_has_no_length(tiny_model: str, tmp_path: Path) -> None:
    class Mute(Parrot):
        """Gives no answer to the first query, and none at all under an instruction."""

        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            failed = [len(prompt.messages) > 1 or prompt.messages[0].content.endswith(" 1") for prompt in prompts]
            return [
                Response("", error="timeout") if bad else answer
                for bad, answer in zip(failed, super().respond(prompts), strict=True)
            ]

    module = small_module(tiny_model, Mute())
    module.trained_steps = 1
    runner(tmp_path).test(module, Queries(), verbose=False)
    assert [cell["response_words"] for cell in cells(tmp_path).values()] == [3.0, None, None]
