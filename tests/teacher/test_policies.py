"""Which weights learn, and the other policies: the one training started from, and the bare base."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from teachers import (
    QUERIES,
    base_weights,
    gradients,
    make,
    naive_logits,
    naive_sums,
    same,
    sample,
    step,
    sums,
    trainable,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from wst.teacher import LoRA


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_only_the_adapter_learns(tiny_model: str, quantization: str) -> None:
    teacher = make(tiny_model, quantization=quantization)
    names = {name for name, weight in teacher.named_parameters() if weight.requires_grad}
    assert names
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in names)
    assert all(weight.dtype == torch.float32 for weight in trainable(teacher))
    instructions = sample(teacher)
    base, before = base_weights(teacher), sums(teacher, instructions)
    step(teacher, instructions)
    assert same(base_weights(teacher), base)
    assert (sums(teacher, instructions) > before).any()


def test_an_nf4_base_is_in_four_bits(tiny_model: str) -> None:
    weights = base_weights(make(tiny_model, quantization="nf4"))
    packed = [name for name, weight in weights.items() if weight.dtype == torch.uint8 and name.endswith("weight")]
    assert len(packed) == 2 * 7


def test_full_fine_tuning_trains_every_weight(tiny_model: str) -> None:
    teacher = make(tiny_model, lora=None)
    assert teacher.full_finetuning
    assert all(weight.requires_grad for weight in teacher.parameters())
    instructions = sample(teacher)
    torch.testing.assert_close(sums(teacher, instructions), naive_sums(teacher.policy, instructions), rtol=0, atol=1e-4)
    step(teacher, instructions)
    after = base_weights(teacher)
    with teacher.untrained() as network:
        before = network.state_dict()
        assert [name for name in after if torch.equal(after[name], before[name])] == []
        assert not any(weight.requires_grad for weight in network.parameters())
    assert same(base_weights(teacher), after)
    assert teacher.state_dict().keys() == {f"network.{name}" for name in after}


@pytest.mark.parametrize("mode", ["lora", "adapter", "full"])
def test_there_is_no_dropout_even_when_training_is_asked_for(tiny_model: str, adapter: str, mode: str) -> None:
    assert json.loads((Path(adapter) / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    assert json.loads((Path(tiny_model) / "config.json").read_text())["attention_dropout"] == 0.5
    options: dict[str, Any] = {"lora": {}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode]
    teacher = make(tiny_model, **options)
    instructions = sample(teacher)
    before = sums(teacher, instructions)
    nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(isinstance(module, nn.Dropout) and module.p for module in teacher.modules())
    torch.manual_seed(5)
    assert torch.equal(sums(teacher, instructions), before)


def test_an_adapter_to_start_from_has_its_own_shape_and_is_the_reference(tiny_model: str, adapter: str) -> None:
    teacher = make(tiny_model, adapter=adapter, lora=LoRA(r=5))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    instructions = sample(teacher)
    start = naive_sums(loaded, instructions)
    torch.testing.assert_close(sums(teacher, instructions), start, rtol=0, atol=1e-4)
    assert {tuple(w.shape) for name, w in teacher.named_parameters() if "lora_A" in name} == {(3, 64)}

    def reference_sums() -> Tensor:
        z = teacher.reference_log_probs(instructions)
        assert not z.values.requires_grad
        return (z.values * z.mask).sum(dim=1)

    torch.testing.assert_close(reference_sums(), start, rtol=0, atol=1e-4)
    reference = {n: w.clone() for n, w in teacher.named_parameters() if ".reference." in n}
    assert reference
    for _ in range(2):
        step(teacher, instructions)
    assert (sums(teacher, instructions) - start).abs().max() > 0.1
    torch.testing.assert_close(reference_sums(), start, rtol=0, atol=1e-4)
    assert same({n: w for n, w in teacher.named_parameters() if ".reference." in n}, reference)


@pytest.mark.parametrize("mode", ["lora", "nf4", "adapter", "full"])
@pytest.mark.parametrize("other", ["reference", "untrained"])
def test_the_other_policies_leave_the_trained_one_as_it_was(
    tiny_model: str, adapter: str, mode: str, other: str
) -> None:
    teacher = make(
        tiny_model,
        **{"lora": {}, "nf4": {"quantization": "nf4"}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode],
    )
    instructions = sample(teacher)
    trained = {name for name, weight in teacher.named_parameters() if weight.requires_grad}
    before = sums(teacher, instructions)
    wanted = gradients(teacher, teacher.log_probs(instructions).values.sum())
    enter: Callable[[], AbstractContextManager[nn.Module]] = getattr(teacher, other)

    def enter_and_fail() -> None:
        with enter():
            raise KeyError("stopped")

    z = teacher.log_probs(instructions)
    teacher.reference_log_probs(instructions)
    with pytest.raises(KeyError, match="stopped"):
        enter_and_fail()
    assert {name for name, weight in teacher.named_parameters() if weight.requires_grad} == trained
    assert torch.equal(sums(teacher, instructions), before)
    # A graph that was built before is still whole.
    torch.testing.assert_close(gradients(teacher, z.values.sum()), wanted)


@pytest.mark.parametrize("mode", ["lora", "adapter", "full"])
def test_untrained_is_the_bare_base(tiny_model: str, adapter: str, mode: str) -> None:
    options: dict[str, Any] = {"lora": {}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode]
    teacher = make(tiny_model, **options)
    instructions = sample(teacher)
    step(teacher, instructions)
    bare = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    expected = naive_sums(bare, instructions)
    trained = [i.token_ids for i in teacher.sample(QUERIES, greedy=True)]
    with teacher.untrained() as network:
        torch.testing.assert_close(naive_sums(network, instructions), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(sums(teacher, instructions), expected, rtol=0, atol=1e-4)
        greedy = teacher.sample(QUERIES, greedy=True)
    for instruction in greedy:
        with torch.no_grad():
            assert naive_logits(bare, instruction).argmax(dim=-1).tolist() == list(instruction.token_ids)
    assert [i.token_ids for i in teacher.sample(QUERIES, greedy=True)] == trained
    assert (sums(teacher, instructions) - expected).abs().max() > 0.1
    if mode != "adapter":
        z = teacher.reference_log_probs(instructions)
        torch.testing.assert_close((z.values * z.mask).sum(dim=1), expected, rtol=0, atol=1e-4)
