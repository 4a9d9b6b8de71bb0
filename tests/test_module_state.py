"""What a checkpoint of the module holds, and its settings: impossible ones, and those assigned later."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from modules import CPU, adapter, data, fit, make, one_step
from toys import Lowercase, Network, OneTooMany, Parrot, Silent
from trainers import quiet_trainer

from wst import (
    LocalStudent,
    LoRA,
    MovingAverage,
    Prompt,
    Query,
    Response,
    Standardized,
    StudentPrompt,
    Unaided,
)
from wst.environment import Environment
from wst.errors import ConfigError, ContractError, Diverged, ModelError


def test_moving_average_goes_into_the_checkpoint(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, baseline=MovingAverage(0.5))
    trainer = fit(module, data(tmp_path), tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["baseline.mean"], module.baseline.mean)  # type: ignore[arg-type]
    assert not module.baseline.mean.isnan()  # type: ignore[operator, union-attr]


def test_checkpoint_holds_the_adapter_and_little_else(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, teacher={"lora": LoRA(r=16)})
    trainer = fit(module, data(tmp_path), tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    size = sum(value.numel() * value.element_size() for value in adapter(module).values())
    # adapter and AdamW's two moments are three times the adapter; some kilobytes are names
    assert (tmp_path / "x.ckpt").stat().st_size < 3 * size + 100_000
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert all("lora" in name for name in state["state_dict"])


@pytest.mark.slow
def test_objects_from_python_survive_a_checkpoint(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model)
    saver = ModelCheckpoint(tmp_path / "c", every_n_train_steps=1, save_top_k=0, save_last=True)
    fit(module, data(tmp_path), tmp_path, callbacks=[saver], enable_checkpointing=True)
    path = tmp_path / "c" / "last.ckpt"
    again = make(tiny_model)
    tester = quiet_trainer(tmp_path)
    tester.test(again, data(tmp_path), ckpt_path=str(path), verbose=False)
    assert all(torch.equal(value, adapter(module)[name]) for name, value in adapter(again).items())
    results = again.results()
    assert results["n"] == 12
    assert set(results["arms"]) == {"no instruction", "untrained teacher", "trained teacher"}
    loaded = torch.load(path, weights_only=True)["hyper_parameters"]
    assert loaded["samples_per_query"] == 4
    assert "student" not in loaded


def test_a_checkpoint_of_another_teacher_is_refused(tiny_model: str, tmp_path: Path) -> None:
    trainer = fit(make(tiny_model), data(tmp_path), tmp_path)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    for lora in (LoRA(r=8), LoRA(r=4, target_modules=["q_proj"])):
        tester = quiet_trainer()
        with pytest.raises(ModelError, match="of another teacher"):
            tester.test(make(tiny_model, teacher={"lora": lora}), data(tmp_path), ckpt_path=str(tmp_path / "x.ckpt"))


def test_testing_what_was_not_trained_is_refused(tiny_model: str, tmp_path: Path) -> None:
    tester = quiet_trainer()
    with pytest.raises(ConfigError, match="no trained teacher"):
        tester.test(make(tiny_model), data(tmp_path))


def test_full_finetuning_tests_against_the_untouched_weights(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, teacher={"lora": None}, optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    fit(module, data(tmp_path), tmp_path, steps=3)
    queries = [Query("a", "something new")]
    fresh = make(tiny_model, teacher={"lora": None})
    fresh.teacher.load(CPU)
    with module.teacher.untrained():
        untrained = module.teacher.sample(queries, greedy=True)
    assert untrained == fresh.teacher.sample(queries, greedy=True)
    assert not any("_frozen_copy" in name for name in module.state_dict())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples_per_query": 1}, "LeaveOneOut needs at least 2; .* JamesStein, QueryTracker"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"kl_coef": -1.0}, "kl_coef"),
        ({"entropy_coef": math.nan}, "entropy_coef"),
        ({"gradient_clip": 0.0}, "gradient_clip"),
        ({"normalization": "rows"}, "normalization"),
        ({"student": Network()}, "torch.nn.Module"),
        ({"reward": Network()}, "torch.nn.Module"),
    ],
)
def test_impossible_settings(tiny_model: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(tiny_model, **settings)
    assert "\n" not in str(caught.value)


def test_an_assigned_student_and_reward_take_effect_everywhere(tiny_model: str) -> None:
    old, new = Parrot(), Parrot()
    module = make(tiny_model, old, OneTooMany(), baseline=Unaided())
    module.student, module.reward, module.student_prompt = new, Lowercase(), StudentPrompt(placement="before")
    record = one_step(module)
    assert not old.asked
    assert len(new.asked) == 16 + 4  # under an instruction, and unaided
    assert new.asked[0].messages[-1].content.endswith("query 0")
    assert record.unaided is not None
    assert not record.rewards.isnan().any()
    assert (module.student, module.reward) == (module.environment.student, module.environment.reward)
    with pytest.raises(ConfigError, match="is a torch"):
        module.student = Network()  # type: ignore[assignment]


def test_an_assigned_reward_scores_the_unaided_answers_anew(tiny_model: str) -> None:
    module, queries = make(tiny_model), [Query("a", "abc")]
    assert module.environment.unaided_rewards(queries).tolist() == [1.0]
    module.reward = Silent()
    assert module.environment.unaided_rewards(queries).isnan().all()
    module.student, module.reward = Shouting(), Lowercase()
    assert module.environment.unaided_rewards(queries).tolist() == [0.0]


class Shouting(Parrot):
    """Answers in capitals."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [Response(response.text.upper()) for response in super().respond(prompts)]


def test_missing_model_is_found_before_any_is_loaded(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("wst.modeling.loading.load_causal_lm", refuse)
    student = LocalStudent("nobody/no-such-model")
    with pytest.raises(ModelError, match="nobody/no-such-model"):
        fit(make(tiny_model, student), data(tmp_path), tmp_path)


@pytest.mark.parametrize("ends", [torch.OutOfMemoryError, None])
def test_the_rewards_of_a_step_that_is_made_again_count_once(
    tiny_model: str, tmp_path: Path, ends: type[Exception] | None
) -> None:
    """Out of memory, or not finite, in the update of the second step."""
    means: list[float] = []
    module = make(tiny_model, baseline=MovingAverage(0.5), max_skips=1)
    update = module.update.__call__

    def fails(*args: Any) -> str | None:
        means.append(float(module.baseline.mean))  # type: ignore[operator]
        if len(means) < 2:
            return update(*args)
        if ends is not None:
            raise ends("CUDA out of memory")
        return "not a number"

    module.update = fails  # type: ignore[assignment]
    saver = ModelCheckpoint(tmp_path / "c", every_n_train_steps=9, save_last=True)
    with pytest.raises((torch.OutOfMemoryError, Diverged)):
        fit(module, data(tmp_path), tmp_path, callbacks=[saver], enable_checkpointing=True)
    state = torch.load(tmp_path / "c/last.ckpt", weights_only=True)
    assert state["wst"]["trained_steps"] == 1
    assert float(state["state_dict"]["baseline.mean"]) == means[0] != means[1]


def test_other_processes_take_over_the_calibration_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = Standardized(Lowercase(), queries=2)
    environment = Environment(Parrot(), reward)
    first = {"mean": 0.25, "spread": 2.0}
    monkeypatch.setattr("wst.environment.rank", lambda: 1)
    monkeypatch.setattr("wst.environment.gather", lambda item: [first if "a" not in item else item, item])
    queries = [Query("a", "Aa"), Query("b", "b")]
    environment.calibrate(queries)
    assert reward.state_dict() == first
    monkeypatch.setattr(Standardized, "load_state_dict", lambda *_: None)
    with pytest.raises(ContractError, match="lacks the calibration"):
        Environment(Parrot(), Standardized(Lowercase(), queries=2)).calibrate(queries)
