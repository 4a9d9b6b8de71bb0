"""The gradient of a step, with all that makes it fast, is that of the formula written down plainly."""

import copy
import math
from typing import Any

import pytest
import torch
from test_module import CPU, make, one_step
from torch import Tensor, nn
from toys import Lowercase, Parrot

from wst import GroupMean, Instruction, LoRA, MovingAverage, Unaided, WeakToStrong
from wst.modeling import logprobs
from wst.modeling.logprobs import log_probs_from_states, token_entropy, token_log_probs
from wst.training.objective import whiten
from wst.training.record import StepRecord


class Keep(torch.optim.SGD):
    """Keeps the gradients, and moves nothing."""

    kept: list[Tensor]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        self.kept = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def plain_gradient(module: WeakToStrong, record: StepRecord, baseline: nn.Module) -> list[Tensor]:
    """One forward pass for each instruction, over prompt and instruction, with all logits and no cache."""
    teacher = module.teacher

    def tokens(network: Any, z: Instruction) -> tuple[Tensor, Tensor]:
        logits = network(input_ids=torch.tensor([[*z.prompt_ids, *z.token_ids]]), use_cache=False).logits
        table = (logits[0, len(z.prompt_ids) - 1 : -1] / teacher.temperature).log_softmax(dim=-1)
        return table[range(len(z.token_ids)), list(z.token_ids)], -(table.exp() * table).sum(dim=-1)

    written = [rollout.instruction for rollout in record.rollouts if rollout.instruction is not None]
    passes = [tokens(teacher.policy, z) for z in written]
    with torch.no_grad(), teacher.reference() as network:
        reference = [tokens(network, z)[0] for z in written]
    kl = torch.stack([(now[0].detach() - before).sum() for now, before in zip(passes, reference, strict=True)])
    rewards = record.rewards - module.kl_coef * kl.view(record.rewards.shape)
    advantages = baseline(rewards, record.unaided)
    if module.whiten_advantages:
        advantages = whiten(advantages, ~record.rewards.isnan())
    gain = sum(a * values.sum() for a, (values, _) in zip(advantages.flatten(), passes, strict=True))
    gain = gain + module.update.entropy_coef * sum(entropy.sum() for _, entropy in passes)
    count = sum(len(z.token_ids) for z in written) if module.update.normalization == "tokens" else len(written)
    teacher.policy.zero_grad()
    (-gain / count).backward()
    if module.update.gradient_clip is not None:
        nn.utils.clip_grad_norm_(module.trainable(), module.update.gradient_clip)
    return [p.grad for p in module.trainable() if p.grad is not None]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequences": {"normalization": "sequences"},
    "group mean": {"baseline": GroupMean()},
    "moving average": {"baseline": MovingAverage()},
    "unaided": {"baseline": Unaided()},
    "whitened": {"whiten_advantages": True},
    "KL": {"kl_coef": 0.1},
    "entropy": {"entropy_coef": 0.1},
    "micro-batches": {"micro_batch_size": 3},
    "KL, entropy, micro-batches": {"kl_coef": 0.1, "entropy_coef": 0.1, "micro_batch_size": 5},
    "KL, entropy": {"kl_coef": 0.1, "entropy_coef": 0.1},
    "temperature": {"teacher": {"temperature": 0.7}, "kl_coef": 0.1},
    "all weights": {"teacher": {"lora": None}, "kl_coef": 0.1},
    "all weights, entropy": {"teacher": {"lora": None}, "entropy_coef": 0.1},
    "adapted head": {"teacher": {"lora": LoRA(r=4, target_modules=["q_proj", "lm_head"])}, "kl_coef": 0.1},
    "clipped": {"kl_coef": 0.1, "gradient_clip": 0.02},
    "small sampling batches": {"teacher": {"sample_batch_size": 1}},
}


class Unscorable(Lowercase):
    """Cannot score a few."""

    def score(self, rollouts: Any) -> list[float]:
        return [float("nan") if i % 7 == 3 else value for i, value in enumerate(super().score(rollouts))]


@pytest.mark.slow
@pytest.mark.parametrize("unscored", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("option", OPTIONS)
def test_the_gradient_is_that_of_the_formula(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, option: str, chunked: bool, unscored: bool
) -> None:
    if chunked:
        monkeypatch.setattr(logprobs, "_MAX_LOGITS", 2_000)  # of a vocabulary of 260: seven tokens at once
    optimizers: list[Keep] = []

    def keep(params: Any) -> Keep:
        optimizers.append(Keep(params, lr=0.0))
        return optimizers[-1]

    settings = {"gradient_clip": None} | copy.deepcopy(OPTIONS[option])
    module = make(tiny_model, Parrot(), Unscorable() if unscored else Lowercase(), optimizer=keep, **settings)
    module.teacher.load(CPU)
    torch.manual_seed(1)
    with torch.no_grad():  # a new adapter does nothing, and most of its gradient is 0
        for parameter in module.trainable():
            parameter += 0.05 * torch.randn_like(parameter)
    baseline = copy.deepcopy(module.baseline)
    record = one_step(module)
    found, expected = optimizers[0].kept, plain_gradient(module, record, baseline)
    assert len({len(z.token_ids) for z in (r.instruction for r in record.rollouts) if z is not None}) > 1
    assert len(found) == len(expected)
    norm = torch.stack([g.norm() for g in expected]).norm()
    assert norm > 1e-3
    difference = torch.stack([(one - other).norm() for one, other in zip(found, expected, strict=True)]).norm()
    assert difference <= 1e-5 * norm


@pytest.mark.parametrize("kind", ["frozen", "trained", "logits"])
@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_values_and_gradients_do_not_depend_on_how_many_logits_are_held(
    monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    monkeypatch.setattr(logprobs, "_MAX_LOGITS", at_once)
    torch.manual_seed(0)
    linear = nn.Linear(6, 11).requires_grad_(kind == "trained")
    states = torch.randn(9, 11 if kind == "logits" else 6, requires_grad=True)
    ids, weights = torch.randint(11, (9,)), torch.randn(9)
    head = None if kind == "logits" else linear
    logits = states if head is None else head(states)
    expected = token_log_probs(logits, ids, 0.7)
    values, entropy = log_probs_from_states(states, ids, head, 0.7, entropy=True)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(entropy, token_entropy(logits, 0.7))
    assert entropy is not None
    assert not entropy.requires_grad
    inputs = [states, *(linear.parameters() if kind == "trained" else [])]
    found = torch.autograd.grad((values * weights).sum(), inputs)
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_of_a_nearly_certain_token_is_no_rounding_noise() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 500, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    states = (8 * linear.weight[:20] / linear.weight[:20].norm(dim=1, keepdim=True) ** 2).requires_grad_()
    values, _ = log_probs_from_states(states, torch.arange(20), linear, 1.0)
    assert values.exp().min() > 0.7
    (found,) = torch.autograd.grad(values.sum(), states)
    probabilities = (states.detach() @ linear.weight.T).double().softmax(dim=-1)
    expected = (torch.eye(500, dtype=torch.double)[:20] - probabilities) @ linear.weight.double()
    assert ((found.double() - expected).norm(dim=1) < 0.02 * expected.norm(dim=1)).all()


def test_a_step_without_advantages_moves_nothing_with_a_kl_either(tiny_model: str) -> None:
    """The adapter is new, so that the KL is 0, and the optimizer decays what has a gradient, be it 0."""

    def decaying(params: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, 0.1, weight_decay=0.5)

    module = make(tiny_model, Parrot(), Same(), kl_coef=0.1, optimizer=decaying)
    module.teacher.load(CPU)
    before = [parameter.clone() for parameter in module.trainable()]
    record = one_step(module)
    assert not record.advantages.any()
    assert math.isnan(record.loss)
    assert all(torch.equal(one, other) for one, other in zip(before, module.trainable(), strict=True))


class Same(Lowercase):
    """Finds every answer as good as another."""

    def score(self, rollouts: Any) -> list[float]:
        return [1.0] * len(rollouts)
