"""Samples that a query has already are sampled again; the entropy bonus fades."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Lowercase, Parrot, SixQueries, small_module
from trainers import quiet_trainer

from wst import Instruction, Query
from wst.errors import ConfigError
from wst.training.exploration import sample_distinct


class Scripted:
    """Writes for each query what it was told to, one text after the other."""

    def __init__(self, announces: bool, **texts: str) -> None:
        self.announces = announces
        self.texts = {query: list(script) for query, script in texts.items()}
        self.calls: list[int] = []

    def sample(
        self, queries: Sequence[Query], samples: int, on_done: Callable[[int, Instruction], None]
    ) -> list[Instruction]:
        self.calls.append(len(queries) * samples)
        written = [Instruction(self.texts[query.id].pop(0)) for query in queries for _ in range(samples)]
        if self.announces:
            for place in reversed(range(len(written))):  # the last one ends first
                on_done(place, written[place])
        return written


def distinct(teacher: Scripted, tries: int) -> tuple[list[str], list[tuple[int, str]]]:
    announced: list[tuple[int, str]] = []
    found = sample_distinct(
        teacher,  # type: ignore[arg-type]
        [Query("a", "?"), Query("b", "?")],
        3,
        tries,
        lambda place, instruction: announced.append((place, instruction.text)),
    )
    return [instruction.text for instruction in found], announced


def test_what_a_query_has_already_is_sampled_again() -> None:
    teacher = Scripted(False, a=["x y", "xy", "z", "z", "w"], b=["x", "u", "v"])  # type: ignore[arg-type]
    texts, announced = distinct(teacher, 5)
    assert texts == ["x y", "w", "z", "x", "u", "v"]  # of two queries, the same text is two
    assert teacher.calls == [6, 1, 1]
    assert sorted(announced) == list(enumerate(texts))


def test_tries_are_bounded_and_what_is_left_stays() -> None:
    teacher = Scripted(False, a=["x"] * 9, b=["x", "u", "v"])  # type: ignore[arg-type]
    texts, announced = distinct(teacher, 2)
    assert texts == ["x", "x", "x", "x", "u", "v"]
    assert teacher.calls == [6, 2, 2]
    assert sorted(announced) == list(enumerate(texts))


@pytest.mark.parametrize("tries", [0, 3])
def test_a_student_hears_of_what_stays_alone(tries: int) -> None:
    teacher = Scripted(True, a=["x", "x", "z", "w"], b=["x", "u", "v"])  # type: ignore[arg-type]
    texts, announced = distinct(teacher, tries)
    assert texts == (["w", "x", "z"] if tries else ["x", "x", "z"]) + ["x", "u", "v"]
    assert len(announced) == 6
    assert dict(announced) == dict(enumerate(texts))


@pytest.mark.slow
def test_a_step_asks_the_student_no_two_alike(tiny_model: str, tmp_path: Path) -> None:
    """At a temperature at which three of four samples are alike."""
    shares = []
    for resample in (0, 30):
        student = Parrot()
        module = small_module(tiny_model, student, Lowercase(), resample=resample)
        module.teacher.temperature, module.teacher.max_new_tokens, module.samples_per_query = 0.25, 2, 4
        quiet_trainer(tmp_path, max_steps=3).fit(module, SixQueries(batch_size=6))
        asked = [prompt.messages[0].content for prompt in student.asked if prompt.sample]
        groups = [{"".join(text.split()) for text in asked[i : i + 4]} for i in range(0, len(asked), 4)]
        shares.append(sum(map(len, groups)) / len(asked))
    assert shares[0] < 0.8
    assert shares[1] == 1.0


@pytest.mark.slow
def test_the_entropy_bonus_fades(tiny_model: str, tmp_path: Path) -> None:
    """A bonus that has faded is none: the third step is that of a run without, from the same weights."""
    weights = {}
    for coef, steps in ((0.0, None), (0.3, None), (0.3, 2)):
        module = small_module(
            tiny_model,
            Parrot(),
            Lowercase(),
            entropy_coef=coef,
            entropy_steps=steps,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        )
        module.trained_steps = 2
        quiet_trainer(tmp_path, max_steps=1).fit(module, SixQueries(batch_size=6))
        weights[coef, steps] = [parameter.detach().clone() for parameter in module.trainable()]
    same = [torch.allclose(a, b, atol=1e-7) for a, b in zip(weights[0.0, None], weights[0.3, 2], strict=True)]
    assert all(same)
    assert not all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*list(weights.values())[:2], strict=True))
    assert [module.update._entropy_coef(step) for step in range(4)] == pytest.approx([0.3, 0.15, 0.0, 0.0])


@pytest.mark.parametrize("setting", [{"resample": -1}, {"entropy_steps": 0}], ids=str)
def test_impossible_settings_are_errors(tiny_model: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} must be"):
        small_module(tiny_model, Parrot(), Lowercase(), **setting)
