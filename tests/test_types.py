"""What cannot work is refused where it is given, in one line with the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from test_module import data, make
from toys import Lowercase, Parrot
from trainers import quiet_trainer

import wst
from wst.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient_clip_val": 0.5}, r"set gradient_clip=0\.5 of the model"),
        ({"accumulate_grad_batches": 2}, "batch_size of the data .* micro_batch_size of the model"),
        ({"callbacks": [LearningRateFinder()]}, "learning rate finder .* set lr of the optimizer"),
    ],
)
def test_a_trainers_setting_without_effect_is_refused_with_ours(
    tiny_model: str, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    module = make(tiny_model)
    with pytest.raises(ConfigError, match=words) as caught:
        quiet_trainer(tmp_path, max_steps=1, **settings).fit(module, data(tmp_path))
    assert "\n" not in str(caught.value)
    assert module.teacher.network is None  # before any model is loaded


def test_the_tuner_is_refused_too(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="learning rate finder"):
        Tuner(quiet_trainer(tmp_path, max_steps=1)).lr_find(make(tiny_model), datamodule=data(tmp_path))


def plain(model: str, **changes: Any) -> wst.WeakToStrong:
    settings: dict[str, Any] = {"teacher": wst.Teacher(model), "student": Parrot(), "reward": Lowercase()}
    return wst.WeakToStrong(**(settings | changes))


WRONG: dict[str, Callable[[str], Any]] = {
    "teacher must be a Teacher, got '": lambda model: plain(model, teacher=model),
    "baseline must be a Baseline": lambda model: plain(model, baseline=wst.GroupMean),
    "student_prompt must be a StudentPrompt": lambda model: plain(model, student_prompt="before"),
    "student: expected a wst.Student": lambda model: plain(model, student=model),
    "student Parrot: it is a class": lambda model: plain(model, student=Parrot),
    "reward Lowercase: it is a class": lambda model: plain(model, reward=Lowercase),
    "samples_per_query must be a whole number, got '4'": lambda model: plain(model, samples_per_query="4"),
    "leak_penalty must be a number, got 'high'": lambda model: plain(model, leak_penalty="high"),
    "max_failed must be a number, got None": lambda model: plain(model, max_failed=None),
    "optimizer must be a function, got a AdamW": lambda model: plain(
        model, optimizer=torch.optim.AdamW([torch.zeros(1)])
    ),
    "prompt must be a TeacherPrompt": lambda model: wst.Teacher(model, prompt="Help!"),  # type: ignore[arg-type]
    "lora must be a LoRA": lambda model: wst.Teacher(model, lora=8),  # type: ignore[arg-type]
    "template must be text": lambda _: wst.TeacherPrompt(3),  # type: ignore[arg-type]
    "fields must be a FieldMap": lambda _: wst.QueryDataModule.from_records([], fields="text"),
    "curriculum must be a Curriculum": lambda _: wst.QueryDataModule.from_records([], curriculum=True),
    "val_share must be a number, got '10%'": lambda _: wst.QueryDataModule.from_records([], val_share="10%"),
    "train must be a path .*from_records": lambda _: wst.QueryDataModule([{"text": "x"}]),  # type: ignore[list-item]
    "compare: data must be a QueryDataModule": lambda _: wst.compare([], {"s": Parrot()}, Lowercase()),  # type: ignore[arg-type]
    "compare: students must be a dict": lambda _: wst.compare(
        wst.QueryDataModule.from_records([]),
        Parrot(),  # type: ignore[arg-type]
        Lowercase(),
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_type_is_refused_where_it_is_given(tiny_model: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        WRONG[words](tiny_model)
    assert "\n" not in str(caught.value)


def test_batches_that_are_no_queries_are_refused(tiny_model: str, tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(["a query", "another"], 2, collate_fn=list)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must be a list of wst.Query, got \['a query'"):
        quiet_trainer(tmp_path, max_steps=1).fit(make(tiny_model), loader)
