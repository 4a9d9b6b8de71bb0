"""The whole step, with a tiny teacher: what moves and what must not."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from modules import CPU, adapter, data, fit, make, one_step
from toys import Alike, FailingParrot, Lowercase, MoodyParrot, OneTooMany, Parrot, Silent
from trainers import records

from wst import (
    GroupMean,
    LocalStudent,
    Prompt,
    Query,
    Teacher,
    Unaided,
    WeightedSum,
)
from wst.callbacks.rewards import step_figures
from wst.errors import ContractError, StudentStopped


@pytest.mark.slow
def test_the_reward_rises(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model)
    kept = records(module)
    fit(module, data(tmp_path, 8, batch_size=8), tmp_path, steps=40)
    rewards = [float(record.rewards.mean()) for record in kept]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    # 32 rewards a step with a spread below 0.2: a rise of 0.2 is more than 10 standard errors of the difference
    assert last > first + 0.2


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("whiten", [False, True])
def test_what_does_not_differ_moves_nothing(tiny_model: str, tmp_path: Path, whiten: bool) -> None:
    module = make(tiny_model, reward=Alike(), whiten_advantages=whiten, samples_per_query=3)
    module.teacher.load(CPU)
    before = adapter(module)
    fit(module, data(tmp_path), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in adapter(module).items())


@pytest.mark.parametrize("samples", [1, 3, 9])
def test_any_number_of_instructions_can_be_asked_for(tiny_model: str, samples: int) -> None:
    module = make(tiny_model)
    module.teacher.load(CPU)
    queries = [Query("a", "x"), Query("b", "y")]
    assert len(module.instruct(queries, samples)) == 2 * samples
    assert len(module.instruct(queries, samples, greedy=True)) == 2 * samples


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


@pytest.mark.slow
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
    kept = records(module)
    fit(module, data(tmp_path), tmp_path, steps=3)
    last = kept[-1]
    assert last.kl is not None
    assert last.kl.abs().max() > 1e-3
    total = last.rewards - 0.5 * last.kl
    torch.testing.assert_close(last.advantages, total - total.mean(dim=1, keepdim=True), atol=1e-6, rtol=1e-5)


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


def test_figures_of_a_step(tiny_model: str) -> None:
    parts = WeightedSum({"low": Lowercase(), "again": Lowercase()}, {"again": 0.5})
    record = one_step(make(tiny_model, reward=parts, baseline=Unaided(), kl_coef=0.1))
    figures = step_figures(record)
    assert figures["train/reward"] == pytest.approx(float(record.rewards.mean()))
    assert figures["train/reward/low"] * 1.5 == pytest.approx(figures["train/reward"], rel=1e-5)
    assert figures["vitals/instruction_tokens"] <= 8
    assert {"train/gain", "vitals/kl", "vitals/entropy", "vitals/no_variance", "vitals/instruction_cut"} <= set(figures)
    assert all(figures[f"vitals/seconds/{phase}"] > 0 for phase in ("sample", "respond", "score", "update"))
    assert all(figures[f"vitals/tokens_per_second/{phase}"] > 0 for phase in ("sample", "respond", "update"))
    record.rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [math.nan, math.nan], [math.nan, 1.0]])
    assert step_figures(record)["vitals/no_variance"] == 0.75
    assert step_figures(record)["train/unscored"] == 0.375


def test_a_reward_of_the_wrong_length_stops_the_run(tiny_model: str) -> None:
    with pytest.raises(ContractError, match="OneTooMany"):
        one_step(make(tiny_model, reward=OneTooMany()))
