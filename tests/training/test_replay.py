"""Replay: the gradient is that of a plain reference, each answer has its turns, and none of it happens unasked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor
from toys import Lowercase, Parrot, SixQueries, small_module
from trainers import quiet_trainer

from wst import Instruction, WeakToStrong
from wst.errors import ConfigError, ModelError
from wst.modeling.logprobs import LogProbs
from wst.training.record import StepRecord
from wst.training.replay import Paid, Replay


class Watch(Callback):
    """Keeps the weights before each step, and the records."""

    def __init__(self) -> None:
        self.weights: list[list[Tensor]] = []
        self.records: list[StepRecord] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.weights.append([p.detach().clone() for p in module.trainable()])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.records.append(outputs["record"])

    on_train_end = on_train_batch_start


def trained(model: str, folder: Path, steps: int, **settings: Any) -> tuple[WeakToStrong, Watch]:
    watch = Watch()
    module = small_module(model, Parrot(), Lowercase(), gradient_clip=None, **settings)
    quiet_trainer(folder, max_steps=steps, callbacks=[watch]).fit(module, SixQueries(batch_size=4))
    return module, watch


def plain_log_prob(module: WeakToStrong, instruction: Instruction) -> Tensor:
    """By one whole forward pass, without cache, padding or chunks."""
    tokens = torch.tensor([[*instruction.prompt_ids, *instruction.token_ids]])
    logits = module.teacher.policy(tokens).logits[0, len(instruction.prompt_ids) - 1 : -1]
    log_probs = (logits.float() / module.teacher.temperature).log_softmax(dim=-1)
    return log_probs.gather(1, torch.tensor(instruction.token_ids)[:, None]).sum()


def put(module: WeakToStrong, weights: list[Tensor]) -> None:
    for parameter, value in zip(module.trainable(), weights, strict=True):
        parameter.data.copy_(value)
        parameter.grad = None


@pytest.mark.slow
@pytest.mark.parametrize(("normalization", "micro"), [("tokens", None), ("sequences", 3)])
def test_the_gradient_is_that_of_the_plain_formula(
    tiny_model: str, tmp_path: Path, normalization: Any, micro: int | None
) -> None:
    """The third update: new rows, and those of two earlier steps with min(c, now / then)."""
    module, watch = trained(
        tiny_model,
        tmp_path,
        3,
        replay=Replay(2, max_weight=1.05),
        normalization=normalization,
        micro_batch_size=micro,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=3.0),
    )
    then = []
    for step in range(3):
        put(module, watch.weights[step])
        instructions = [rollout.instruction for rollout in watch.records[step].rollouts]
        then.append([float(plain_log_prob(module, z).detach()) for z in instructions if z is not None])
    weights, loss, total = [], torch.zeros(()), 0
    put(module, watch.weights[2])
    for step, record in enumerate(watch.records):
        for i, rollout in enumerate(record.rollouts):
            assert rollout.instruction is not None
            now = plain_log_prob(module, rollout.instruction)
            weights.append(float((now.detach() - then[step][i]).exp()))
            loss = loss - min(1.05, weights[-1]) * float(record.advantages.flatten()[i]) * now
            total += len(rollout.instruction.token_ids) if normalization == "tokens" else 1
    assert any(weight > 1.06 for weight in weights)  # truncated ...
    assert any(weight < 0.95 for weight in weights)  # ... and not
    (loss / total).backward()
    for parameter, before, after in zip(module.trainable(), watch.weights[2], watch.weights[3], strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close((before - after) / 3.0, parameter.grad, rtol=1e-3, atol=2e-6)


@pytest.mark.slow
def test_without_further_updates_nothing_changes(tiny_model: str, tmp_path: Path) -> None:
    optimizer = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01)}
    none, zero, two = (
        trained(tiny_model, tmp_path, 3, replay=replay, **optimizer)[1].weights[-1]
        for replay in (None, Replay(0), Replay(2))
    )
    assert all(torch.equal(a, b) for a, b in zip(none, zero, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(none, two, strict=True))


def test_an_answer_takes_part_in_a_bounded_number_of_updates() -> None:
    replay = Replay(2)
    for step in range(4):
        replay.add(10.0 * step, [Paid(Instruction(str(step), (1,), (2, 3)), 0.5, -1.0)])
    assert [paid.instruction.text for paid in replay.paid] == ["2", "3"]
    assert replay.scale == 50
    again = Replay(1)
    again.load_state_dict(replay.state_dict())
    assert again.paid == [Paid(Instruction("", (1,), (2, 3)), 0.5, -1.0)]
    assert again.scale == 30


def test_weights_are_truncated_and_have_no_gradient() -> None:
    values = torch.tensor([[-1.0, -1.0], [-0.5, 9.0]], requires_grad=True)
    now = LogProbs(values, torch.tensor([[True, True], [True, False]]))
    paid = [Paid(Instruction(""), 2.0, -1.5), Paid(Instruction(""), -1.0, -3.0)]
    weighted = Replay(1, max_weight=3.0).weighted(paid, now)
    assert weighted.tolist() == pytest.approx([2 * 2.718281828**-0.5, -3.0])
    assert not weighted.requires_grad


@pytest.mark.parametrize(
    "setting", [{"updates": -1}, {"updates": 1.5}, {"max_weight": 0.9}, {"max_weight": float("nan")}], ids=str
)
def test_impossible_settings_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Replay: {next(iter(setting))} must be"):
        Replay(**setting)


@pytest.mark.parametrize("state", [{}, {"steps": 3}, {"steps": [[1.0, [[1, 2]]]]}], ids=str)
def test_a_checkpoint_of_something_else_is_refused(tiny_model: str, state: dict[str, Any]) -> None:
    module = small_module(tiny_model, Parrot(), Lowercase(), replay=Replay())
    with pytest.raises(ModelError, match="checkpoint: its replay cannot be read"):
        module.on_load_checkpoint({"wst": {"memories": {"replay": state}}})
