"""The whole step, with a tiny teacher: what moves, what must not, and what a checkpoint holds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from toys import FailingParrot, Lowercase, MoodyParrot, Network, OneTooMany, Parrot, Silent
from trainers import quiet_trainer

from wst import (
    GroupMean,
    LocalStudent,
    LoRA,
    MovingAverage,
    Prompt,
    Query,
    QueryDataModule,
    Response,
    StudentPrompt,
    Teacher,
    TeacherPrompt,
    Unaided,
    WeakToStrong,
    WeightedSum,
)
from wst.callbacks.rewards import step_figures
from wst.errors import ConfigError, ContractError, ModelError, StudentStopped
from wst.training.record import StepRecord

CPU = torch.device("cpu")


def make(tiny_model: str, student: Any = None, reward: Any = None, **settings: Any) -> WeakToStrong:
    teacher_settings = {"dtype": "float32", "max_new_tokens": 8, "lora": LoRA(r=4, alpha=8)}
    teacher_settings |= settings.pop("teacher", {})
    defaults: dict[str, Any] = {
        "student_prompt": StudentPrompt(),
        "samples_per_query": 4,
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
    }
    return WeakToStrong(
        Teacher(tiny_model, TeacherPrompt("{query}"), **teacher_settings),
        student or Parrot(),
        reward or Lowercase(),
        **(defaults | settings),
    )


def data(tmp_path: Path, rows: int = 12, **settings: Any) -> QueryDataModule:
    lines = [f'{{"id": "q{i}", "text": "query {i}", "label": "yes"}}\n' for i in range(rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines))
    defaults: dict[str, Any] = {"train": str(path), "test": str(path), "batch_size": 4}
    return QueryDataModule(**(defaults | settings))


def fit(module: WeakToStrong, datamodule: QueryDataModule, folder: Path, steps: int = 2, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, max_steps=steps, **settings)
    trainer.fit(module, datamodule)
    return trainer


def adapter(module: WeakToStrong) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in get_peft_model_state_dict(module.teacher.policy).items()}


def one_step(module: WeakToStrong, queries: int = 4) -> StepRecord:
    """Make one step outside a trainer's loop, and give its record."""
    records: list[StepRecord] = []
    original = module.training_step

    def keep(batch: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        output = original(batch, batch_idx)
        records.append(output["record"])
        return output

    module.training_step = keep  # type: ignore[method-assign]
    loader = torch.utils.data.DataLoader(
        [Query(f"q{i}", f"query {i}") for i in range(queries)], queries, collate_fn=list
    )
    torch.manual_seed(0)
    quiet_trainer(max_steps=1).fit(module, loader)
    return records[0]


def test_the_reward_rises(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model)
    rewards: list[float] = []
    original = module.training_step

    def keep(batch: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        output = original(batch, batch_idx)
        rewards.append(float(output["record"].rewards.mean()))
        return output

    module.training_step = keep  # type: ignore[method-assign]
    fit(module, data(tmp_path, 8, batch_size=8), tmp_path, steps=40)
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    # 32 rewards a step with a spread below 0.2: a rise of 0.2 is more than 10 standard errors of the difference
    assert last > first + 0.2


def test_only_the_adapter_moves(tiny_model: str, tmp_path: Path) -> None:
    student = LocalStudent(tiny_model, dtype="float32", max_new_tokens=4)
    student.setup(CPU)
    network = student._loaded[0]
    before_student = {name: value.clone() for name, value in network.state_dict().items()}
    module = make(tiny_model, student)
    module.teacher.load(CPU)
    before = {name: value.clone() for name, value in module.teacher.named_parameters()}
    fit(module, data(tmp_path), tmp_path, steps=3)
    moved = {name for name, value in module.teacher.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in module.teacher.named_parameters() if value.requires_grad}
    assert all("lora" in name for name in moved)
    assert all(torch.equal(value, before_student[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.2])
@pytest.mark.parametrize("normalization", ["tokens", "sequences"])
def test_micro_batches_make_the_same_step(
    tiny_model: str, tmp_path: Path, normalization: str, entropy_coef: float, kl_coef: float
) -> None:
    adapters = []
    for micro_batch_size in (None, 3):
        module = make(
            tiny_model,
            micro_batch_size=micro_batch_size,
            normalization=normalization,
            entropy_coef=entropy_coef,
            kl_coef=kl_coef,
            optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        )
        torch.manual_seed(1)
        fit(module, data(tmp_path), tmp_path, steps=2)
        adapters.append(adapter(module))
    for name, value in adapters[0].items():
        torch.testing.assert_close(value, adapters[1][name], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_scored_moves_nothing(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, reward=Silent())
    module.teacher.load(CPU)
    before = adapter(module)
    fit(module, data(tmp_path), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in adapter(module).items())


def test_a_failed_answer_is_unknown_not_wrong(tiny_model: str) -> None:
    record = one_step(make(tiny_model, FailingParrot()))
    failed = torch.tensor([r.response.error is not None for r in record.rollouts]).view(4, 4)
    assert failed.sum() == 8
    assert record.rewards[failed].isnan().all()
    assert (record.advantages[failed] == 0).all()
    # leave-one-out over the two that were answered: opposite and equal
    assert torch.allclose(record.advantages.sum(dim=1), torch.zeros(4), atol=1e-6)
    assert not record.advantages.isnan().any()


@pytest.mark.parametrize("needs_unaided", [False, True])
def test_the_student_learns_early_of_what_it_will_be_asked(tiny_model: str, needs_unaided: bool) -> None:
    student = Parrot()
    early: list[Prompt] = []
    student.prefetch = early.append  # type: ignore[method-assign]
    record = one_step(make(tiny_model, student, baseline=Unaided() if needs_unaided else None))
    assert sorted(early, key=repr) == sorted(student.asked, key=repr)
    draws = [prompt.sample for prompt in student.asked[: len(record.rollouts)]]
    assert draws == [1, 2, 3, 4] * 4  # a resumed step asks for the same draws, the next step for others


class EverySecondUnknown(Lowercase):
    """Cannot score the first, third, ... of what it is given."""

    def score(self, rollouts: Any) -> list[float]:
        return [value if i % 2 else math.nan for i, value in enumerate(super().score(rollouts))]


def test_what_is_learnt_is_what_the_unfailed_answers_teach(tiny_model: str, tmp_path: Path) -> None:
    """The adapter is that of a run in which the same answers came but were left out."""
    failed, left_out = make(tiny_model, FailingParrot()), make(tiny_model, Parrot(), EverySecondUnknown())
    whole = make(tiny_model, Parrot())
    for module in (failed, left_out, whole):
        fit(module, data(tmp_path), tmp_path, steps=3)
    assert all(torch.equal(value, adapter(left_out)[name]) for name, value in adapter(failed).items())
    assert any(not torch.equal(value, adapter(whole)[name]) for name, value in adapter(failed).items())


def test_a_step_most_of_whose_answers_failed_makes_no_update(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, FailingParrot(), max_failed=0.4, max_skips=2)
    module.teacher.load(torch.device("cpu"))
    before = adapter(module)
    with (
        pytest.warns(UserWarning, match="8 of 16 answers failed"),
        pytest.raises(StudentStopped, match="2 in a row"),
    ):
        fit(module, data(tmp_path), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in adapter(module).items())
    assert module.trained_steps == 0


def test_no_reference_pass_without_a_coefficient(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(Teacher, "reference_log_probs", refuse)
    assert one_step(make(tiny_model)).kl is None
    with pytest.raises(AssertionError, match="reference was asked"):
        one_step(make(tiny_model, kl_coef=0.1))


def test_kl_starts_at_zero_and_is_taken_off_the_reward(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, kl_coef=0.5, baseline=GroupMean())
    record = one_step(module)
    assert record.kl is not None
    torch.testing.assert_close(record.kl, torch.zeros(4, 4), atol=1e-5, rtol=0)  # a new adapter changes nothing
    kls: list[Tensor] = []
    rewards: list[Tensor] = []
    advantages: list[Tensor] = []
    original = module.training_step

    def keep(batch: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        output = original(batch, batch_idx)
        kls.append(output["record"].kl)
        rewards.append(output["record"].rewards)
        advantages.append(output["record"].advantages)
        return output

    module.training_step = keep  # type: ignore[method-assign]
    fit(module, data(tmp_path), tmp_path, steps=3)
    assert kls[-1].abs().max() > 1e-3
    total = rewards[-1] - 0.5 * kls[-1]
    torch.testing.assert_close(advantages[-1], total - total.mean(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_whitened_advantages(tiny_model: str) -> None:
    record = one_step(make(tiny_model, whiten_advantages=True))
    assert abs(float(record.advantages.mean())) < 1e-6
    assert float(record.advantages.std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_gradient_is_clipped(tiny_model: str) -> None:
    steps = []
    for clip in (None, 1e-3):
        module = make(tiny_model, gradient_clip=clip, optimizer=lambda params: torch.optim.SGD(params, lr=1.0))
        module.teacher.load(CPU)
        before = torch.cat([p.detach().clone().flatten() for p in module.trainable()])
        record = one_step(module)
        after = torch.cat([p.detach().flatten() for p in module.trainable()])
        steps.append(float((after - before).norm()))
        assert record.grad_norm > 1e-3
    assert steps[1] == pytest.approx(1e-3, rel=1e-2)
    assert steps[0] > 2e-3


def test_the_scheduler_moves_once_a_step(tiny_model: str, tmp_path: Path) -> None:
    module = make(
        tiny_model,
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    )
    trainer = fit(module, data(tmp_path), tmp_path, steps=3)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.125)


@pytest.mark.parametrize(("student", "times"), [(Parrot, 1), (MoodyParrot, 2)])
def test_unaided_answers_are_asked_for_once_if_the_student_is_deterministic(
    tiny_model: str, tmp_path: Path, student: type[Parrot], times: int
) -> None:
    parrot = student()
    module = make(tiny_model, parrot, baseline=Unaided(), samples_per_query=1)
    fit(module, data(tmp_path, 4, batch_size=4), tmp_path, steps=2)  # two epochs of the same four queries
    # Under an empty instruction the messages are the same; such a prompt has the number of its draw.
    unaided = [prompt for prompt in parrot.asked if len(prompt.messages) == 1 and prompt.sample == 0]
    assert len(unaided) == 4 * times


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
        ({"samples_per_query": 1}, "LeaveOneOut needs at least 2"),
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


def test_figures_of_a_step(tiny_model: str) -> None:
    parts = WeightedSum({"low": Lowercase(), "again": Lowercase()}, {"again": 0.5})
    record = one_step(make(tiny_model, reward=parts, baseline=Unaided(), kl_coef=0.1))
    figures = step_figures(record)
    assert figures["train/reward"] == pytest.approx(float(record.rewards.mean()))
    assert figures["train/reward/low"] * 1.5 == pytest.approx(figures["train/reward"], rel=1e-5)
    assert figures["train/instruction_tokens"] <= 8
    assert {"train/gain", "train/kl", "train/entropy", "train/no_variance", "train/instruction_cut"} <= set(figures)
    assert all(figures[f"seconds/{phase}"] > 0 for phase in ("sample", "respond", "score", "update"))
    assert all(figures[f"tokens_per_second/{phase}"] > 0 for phase in ("sample", "respond", "update"))
    record.rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [math.nan, math.nan], [math.nan, 1.0]])
    assert step_figures(record)["train/no_variance"] == 0.75
    assert step_figures(record)["train/unscored"] == 0.375


def test_a_reward_of_the_wrong_length_stops_the_run(tiny_model: str) -> None:
    with pytest.raises(ContractError, match="OneTooMany"):
        one_step(make(tiny_model, reward=OneTooMany()))
