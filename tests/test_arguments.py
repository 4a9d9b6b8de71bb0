"""A wrong type is refused where it is given: by every public constructor, in one line, with the option's name."""

import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wst
from wst.errors import WSTError
from wst.settings import _hints

WRONG: list[Any] = [3, -1, 2.5, "x", True, [], [3], {}, {"a": 1}, object(), None, math.nan]
#: What has no constructor of its own to check, or is made by the package alone.
MADE = {"Comparison", "Fitted", "Instruction", "Message", "Prompt", "Response", "Rollout", "Scores", "WarmupLinear"}
#: Objects for which functions stand, and optional values whose type Python cannot tell.
FREE = {"function", "judge", "reward", "student", "optimizer", "artefact"}


def given(name: str, model: str) -> dict[str, Any]:
    return {
        "Judge": {"judge": lambda messages: "1"},
        "LabelMatch": {"labels": ["a", "b"]},
        "Length": {"limit": 5},
        "Prices": {"prompt": 1, "completion": 2.0},
        "Query": {"id": "1", "text": "x"},
        "EndpointStudent": {"model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None},
        "TeacherServer": {"base_url": "http://127.0.0.1:1/v1"},
        "Teacher": {"model": model},
        "LocalStudent": {"model": model},
        "RewardModel": {"model": model},
        "PreferenceModel": {"model": model},
        "Standardized": {"reward": wst.ExactMatch()},
        "FunctionStudent": {"function": lambda messages: "x"},
        "FunctionReward": {"function": lambda rollouts: [0.0]},
        "TRLReward": {"function": lambda completions, **_: [0.0]},
        "WeakToStrong": {"student": lambda messages: "x", "reward": lambda rollouts: [0.0]},
    }.get(name, {})


def classes() -> list[str]:
    public = (name for name in wst.__all__ if inspect.isclass(getattr(wst, name)))
    return [name for name in public if not inspect.isabstract(getattr(wst, name)) and name not in MADE]


@pytest.mark.parametrize("name", classes())
def test_a_wrong_type_is_one_line_of_the_constructor(name: str, tiny_model: str) -> None:
    cls, right = getattr(wst, name), given(name, tiny_model)
    if name == "WeakToStrong":
        right |= {"teacher": wst.Teacher(tiny_model)}
    for option in inspect.signature(cls).parameters:
        if option in FREE and option in right:
            continue
        for value in WRONG:
            said = why(lambda: cls(**right | {option: value}))  # noqa: B023 - called at once
            assert said is None or "\n" not in said, (option, value)


def why(make: Callable[[], Any]) -> str | None:
    """Return the line that refuses something; what Python says of a missing argument is one too."""
    try:
        make()
    except WSTError as refused:
        return str(refused)
    except TypeError as error:
        if not re.search("required|unexpected keyword", str(error)):
            raise
        return str(error)
    return None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: wst.Teacher(model, revision=3), "Teacher: revision must be text, got 3"),
        (lambda model: wst.Teacher(model, dtype="float8"), "Teacher: dtype must be one of 'auto', "),
        (lambda model: wst.LocalStudent(model, stop="END"), "stop must be a list, each of it text, got 'END'"),
        (lambda model: wst.LocalStudent(model, temperature=math.nan), "temperature must not be below 0"),
        (lambda model: wst.LabelMatch("yes,no"), "LabelMatch: labels must be a list, each of it text, got 'yes,no'"),
        (lambda model: wst.LabelMatch([True, False]), "LabelMatch: labels must be a list, each of it text"),
        (lambda model: wst.LoRA("16"), "LoRA: r must be a whole number, got '16'"),
        (lambda model: wst.TRLReward(lambda **_: [0.0], chat="no"), "TRLReward: chat must be true or false, got 'no'"),
        (lambda model: wst.QueryDataModule(shuffle="no"), "QueryDataModule: shuffle must be true or false, got 'no'"),
        (lambda model: wst.Budget(cost=[5]), r"Budget: cost must be a number, got \[5\]"),
        (lambda model: wst.PreferenceModel(model, optimizer=3), "optimizer must be a function, got a int"),
        (lambda model: wst.Query(1, "x"), "query 1: id and text must be text"),
        (lambda model: wst.Query("1", "x", history=("hello",)), "query '1': history must be a tuple of wst.Message"),
    ],
)
def test_what_is_wrong_is_named(make: Any, words: str, tiny_model: str) -> None:
    with pytest.raises(WSTError, match=words):
        make(tiny_model)


def test_a_path_is_text_and_a_whole_number_a_number(tiny_model: str, tmp_path: Path) -> None:
    assert wst.Teacher(Path(tiny_model)).spec.model == tiny_model  # type: ignore[arg-type]
    assert wst.EndpointStudent("m", "http://127.0.0.1:1/v1", None, timeout=3).timeout == 3
    wst.AnswerCache(tmp_path / "answers.sqlite")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", classes())
def test_every_annotation_is_understood(name: str) -> None:
    _hints(getattr(wst, name))
