"""The policy's log-probabilities and their gradients against a naive reference."""

import random
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from teachers import TEMPERATURE, gradients, make, naive, naive_logits, naive_sums, sample, sums
from torch import Tensor

from wst.modeling import generation
from wst.teacher import Teacher
from wst.training.objective import denominator, policy_loss
from wst.types import Instruction


def test_samples_are_of_many_lengths_and_ends(teacher: Teacher) -> None:
    """What the tests below rely on: a batch where padding and end tokens matter."""
    instructions = sample(teacher, 6)
    assert len({len(i.token_ids) for i in instructions}) > 3
    assert {i.truncated for i in instructions} == {True, False}
    assert len({len(i.prompt_ids) for i in instructions}) == 3


def test_log_probs_are_those_of_a_plain_forward_pass_in_values_and_gradients(teacher: Teacher) -> None:
    instructions = sample(teacher, 5)
    random.Random(0).shuffle(instructions)
    z = teacher.log_probs(instructions, entropy=True)
    weights = torch.randn(z.values.shape, generator=torch.Generator().manual_seed(3))
    expected_loss = torch.tensor(0.0)
    for row, instruction in enumerate(instructions):
        count = len(instruction.token_ids)
        expected = naive(teacher.policy, instruction)
        assert z.mask[row].tolist() == [True] * count + [False] * (z.mask.shape[1] - count)
        torch.testing.assert_close(z.values[row, :count], expected, rtol=0, atol=1e-5)
        assert z.entropy is not None
        entropy = torch.distributions.Categorical(
            logits=naive_logits(teacher.policy, instruction) / TEMPERATURE
        ).entropy()
        torch.testing.assert_close(z.entropy[row, :count], entropy, rtol=0, atol=1e-5)
        expected_loss = expected_loss + (weights[row, :count] * expected).sum()
    actual = gradients(teacher, (weights * z.values * z.mask).sum())
    wanted = gradients(teacher, expected_loss)
    assert actual.norm() > 1
    assert (actual - wanted).norm() <= 1e-5 * wanted.norm()


def test_log_probs_of_a_batch_are_those_of_each_row_alone(teacher: Teacher) -> None:
    instructions = sample(teacher, 4)
    z = teacher.log_probs(instructions)
    for row, instruction in enumerate(instructions):
        alone = teacher.log_probs([instruction])
        assert alone.values.shape == (1, len(instruction.token_ids))
        torch.testing.assert_close(z.values[row, : alone.values.shape[1]], alone.values[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [[(7,)], [(7,), (8,)], [(7,), (8, 9, 10, 11)]],
    ids=["one token", "one token each", "one token beside four"],
)
def test_prompts_of_one_token_have_log_probs(tiny_model: str, prompts: list[tuple[int, ...]]) -> None:
    teacher = make(tiny_model)
    instructions = [Instruction("", prompt, tokens) for prompt in prompts for tokens in [(20, 21, 3), (22,)]]
    torch.testing.assert_close(sums(teacher, instructions), naive_sums(teacher.policy, instructions), rtol=0, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
def test_padding_tokens_change_nothing(tiny_model: str, tiny_plain_model: str, plain: bool) -> None:
    teacher = make(tiny_plain_model if plain else tiny_model)
    instructions = sample(teacher)
    before = sums(teacher, instructions)
    teacher.tokenizer.pad_token = "A"
    assert teacher.tokenizer.pad_token_id > 3
    torch.testing.assert_close(sums(teacher, instructions), before, rtol=0, atol=1e-6)
    assert [i.token_ids for i in sample(teacher)] == [i.token_ids for i in instructions]


def test_log_probs_are_those_the_sampler_drew_from(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_from: dict[tuple[int, ...], Tensor] = {}  # by all tokens before the one that was drawn
    original = generation._SampledToken.__call__

    def recording(self: Any, input_ids: Tensor, scores: Tensor) -> Any:
        for row, table in zip(input_ids.tolist(), (scores / self.temperature).log_softmax(dim=-1), strict=True):
            before = tuple(token for token in row if token != teacher.tokenizer.pad_token_id)
            drawn_from.setdefault(before, table)  # not what is drawn for a row after its end
        return original(self, input_ids, scores)

    monkeypatch.setattr(generation._SampledToken, "__call__", recording)
    instructions = sample(teacher)
    z = teacher.log_probs(instructions)
    for row, instruction in enumerate(instructions):
        for position, token in enumerate(instruction.token_ids):
            scores = drawn_from[instruction.prompt_ids + instruction.token_ids[:position]]
            assert torch.isfinite(scores).all()
            assert z.values[row, position].item() == pytest.approx(float(scores[token]), abs=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_flow_through_a_quantized_base_after_sampling(tiny_model: str, adapter: str, adapted: bool) -> None:
    start = {"adapter": adapter} if adapted else {}
    teacher = make(tiny_model, quantization="nf4", **start)
    instructions = sample(teacher)
    teacher.reference_log_probs(instructions)
    z = teacher.log_probs(instructions)
    actual = gradients(teacher, z.values[z.mask].sum())

    plain = make(tiny_model, **start)
    layers = {name: layer for name, layer in teacher.policy.named_modules() if isinstance(layer, Linear4bit)}
    assert len(layers) == 2 * 7
    with torch.no_grad():
        for name, layer in layers.items():
            weight = plain.policy.get_submodule(name).weight
            weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    expected = torch.stack([naive(plain.policy, instruction).sum() for instruction in instructions])
    torch.testing.assert_close(sums(teacher, instructions), expected.detach(), rtol=0, atol=1e-3)
    wanted = gradients(plain, expected.sum())
    assert wanted.norm() > 1
    assert (actual - wanted).norm() <= 1e-4 * wanted.norm()


def test_micro_batches_gradients_add_up_to_the_batchs(teacher: Teacher) -> None:
    instructions = sample(teacher, 4)
    advantages = torch.linspace(-1, 1, len(instructions))
    total = denominator(torch.tensor([len(i.token_ids) for i in instructions]), "tokens")

    def gradient(start: int, end: int) -> Tensor:
        z = teacher.log_probs(instructions[start:end], entropy=True)
        return gradients(teacher, policy_loss(z.values, z.mask, advantages[start:end], total, z.entropy, 0.1))

    whole = gradient(0, 12)
    parts = gradient(0, 5) + gradient(5, 10) + gradient(10, 12)
    assert (whole - parts).norm() <= 1e-5 * whole.norm()
