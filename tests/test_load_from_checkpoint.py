"""`WeakToStrong.load_from_checkpoint` trusts a checkpoint no more than the command line does."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Lowercase, Parrot
from trainers import quiet_trainer

from wst import LocalStudent, LoRA, QueryDataModule, Teacher, TeacherPrompt, WeakToStrong
from wst.errors import ConfigError, ModelError, WSTError

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def given(model: str) -> dict[str, Any]:
    teacher = Teacher(model, TeacherPrompt("{query}"), LoRA(4, 8), dtype="float32", max_new_tokens=6)
    return {"teacher": teacher, "student": Parrot(), "reward": Lowercase()}


def test_weights_state_and_harmless_settings_are_loaded(fitted: Path, tiny_model: str) -> None:
    module = WeakToStrong.load_from_checkpoint(fitted / LAST, **given(tiny_model))
    saved = torch.load(fitted / LAST, weights_only=True)
    weights = module.state_dict()
    assert all(torch.equal(weights[name].cpu(), value) for name, value in saved["state_dict"].items())
    assert (module.trained_steps, module.samples_per_query) == (6, 3)
    data = QueryDataModule.from_records(None, test=[{"text": "A query", "label": "yes"}])
    quiet_trainer(fitted / "other").test(module, data, verbose=False)
    assert {row["arm"] for row in module.test_rows} == {"no instruction", "untrained teacher", "trained teacher"}


def test_a_trusted_checkpoint_builds_what_it_names(fitted: Path) -> None:
    module = WeakToStrong.load_from_checkpoint(fitted / LAST, trust_checkpoint=True, kl_coef=0.5)
    assert isinstance(module.student, LocalStudent)
    assert isinstance(module.reward, Lowercase)
    assert (module.trained_steps, module.kl_coef, module.student.max_new_tokens) == (6, 0.5, 5)


def test_what_is_missing_is_named(fitted: Path, tiny_model: str) -> None:
    settings = given(tiny_model)
    del settings["student"], settings["reward"]
    with pytest.raises(ConfigError, match=r"student and reward must be given: .*student.class_path=.wst.LocalStudent"):
        WeakToStrong.load_from_checkpoint(fitted / LAST, **settings)
    with pytest.raises(ConfigError, match="no such file"):
        WeakToStrong.load_from_checkpoint(fitted / "none.ckpt", **given(tiny_model))


@pytest.mark.parametrize("all_given", [True, False])
def test_a_hostile_checkpoint_runs_nothing(
    fitted: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_given: bool
) -> None:
    (tmp_path / "hostile.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(fitted / LAST, weights_only=True)
    for name in ("student", "reward", "baseline", "optimizer"):
        checkpoint["hyper_parameters"][name] = {"class_path": "hostile.Class", "init_args": {}}
    checkpoint["hyper_parameters"] |= {"_class_path": "hostile.Module", "_instantiator": "hostile.build"}
    checkpoint["hyper_parameters"]["teacher"]["init_args"]["trust_remote_code"] = True
    torch.save(checkpoint, tmp_path / "x.ckpt")
    if all_given:
        module = WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt", **given(tiny_model))
        assert not module.teacher.spec.trust_remote_code
    else:
        with pytest.raises(ConfigError, match="must be given"):
            WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt")
    assert "hostile" not in sys.modules


@pytest.mark.parametrize(
    ("content", "words"),
    [(Path("/"), "weights_only"), ([1], "no weights"), ({"state_dict": 3}, "state_dict cannot be read")],
)
def test_a_file_that_is_no_checkpoint_is_refused(tiny_model: str, tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match=words):
        WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt", **given(tiny_model))


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (lambda weight: weight.to(torch.complex64), "is of torch.complex64, where teacher has torch.float32"),
        (lambda weight: (weight * 100).to(torch.int8), "is of torch.int8, where teacher has torch.float32"),
        (lambda weight: weight > 0, "is of torch.bool"),
        (lambda weight: weight.tolist(), "is a list, no tensor"),
        (lambda weight: weight.to_sparse(), "is of another teacher"),
        (lambda weight: weight[:1], "size mismatch"),
    ],
)
def test_odd_weights_are_refused(fitted: Path, tiny_model: str, tmp_path: Path, odd: Any, words: str) -> None:
    checkpoint = torch.load(fitted / LAST, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name] = odd(checkpoint["state_dict"][name])
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ModelError, match=words) as refused:
        WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt", **given(tiny_model))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("init_args", [3, [1], "text", None, {"nope": 1}, {"labels": {"a": 1}}, {1: 2}])
@pytest.mark.parametrize("part", ["reward", "student_prompt", "teacher"])
def test_mistaken_settings_are_one_line(
    fitted: Path, tiny_model: str, tmp_path: Path, init_args: Any, part: str
) -> None:
    checkpoint = torch.load(fitted / LAST, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    settings["student_prompt"] = {"placement": "before"}
    settings[part] = {**settings[part], "init_args": init_args}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    for arguments in ({"trust_checkpoint": True}, given(tiny_model)):
        refused = None
        try:  # what is not taken, or stands for nothing, may be anything
            WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt", **arguments)
        except WSTError as error:
            refused = str(error)
        assert "\n" not in (refused or "")
        assert len(refused or "") < 700


def test_a_part_of_another_kind_is_one_line(fitted: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(fitted / LAST, weights_only=True)
    checkpoint["hyper_parameters"]["reward"] = {"class_path": "toys.Lowercase", "init_args": {"nope": 1}}
    torch.save(checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match=r"what it names cannot be built \(.*nope.*\); give teacher, student and"):
        WeakToStrong.load_from_checkpoint(tmp_path / "x.ckpt", trust_checkpoint=True)
