"""What a teacher saves and loads, and its errors."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from teachers import CPU, QUERIES, base_weights, make, naive_sums, same, sample, step, sums
from transformers import AutoModelForCausalLM, AutoTokenizer

from wst.errors import ConfigError, ModelError, WSTError
from wst.modeling.loading import load_causal_lm
from wst.teacher import LoRA, Teacher


@pytest.mark.parametrize("mode", ["lora", "adapter"])
def test_a_saved_adapter_loads_onto_the_base(tiny_model: str, adapter: str, mode: str, tmp_path: Path) -> None:
    teacher = make(tiny_model, adapter=adapter if mode == "adapter" else None)
    instructions = sample(teacher)
    step(teacher, instructions)
    teacher.save(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) or "/" in name for name in names)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model

    expected = sums(teacher, instructions)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path).eval()
    torch.testing.assert_close(naive_sums(loaded, instructions), expected, rtol=0, atol=1e-4)
    again = make(tiny_model, adapter=str(tmp_path))
    torch.testing.assert_close(sums(again, instructions), expected, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == teacher.tokenizer.chat_template


def test_a_fully_trained_model_is_saved_whole(tiny_model: str, tmp_path: Path) -> None:
    teacher = make(tiny_model, lora=None)
    instructions = sample(teacher)
    step(teacher, instructions)
    teacher.save(tmp_path)
    model, tokenizer = load_causal_lm(str(tmp_path), device=CPU, dtype="float32")
    assert same(dict(model.state_dict()), base_weights(teacher))
    torch.testing.assert_close(naive_sums(model, instructions), sums(teacher, instructions), rtol=0, atol=1e-4)
    assert tokenizer.pad_token_id == teacher.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"temperature": 0.0}, ConfigError, r"Teacher: temperature must be above 0 to sample, got 0\.0"),
        ({"temperature": math.nan}, ConfigError, r"temperature must be above 0"),
        ({"max_new_tokens": 0}, ConfigError, r"Teacher: max_new_tokens must be at least 1, got 0"),
        ({"max_prompt_tokens": 0}, ConfigError, r"Teacher: max_prompt_tokens must be at least 1, got 0"),
        ({"sample_batch_size": 0}, ConfigError, r"Teacher: sample_batch_size must be at least 1, got 0"),
        ({"quantization": "nf4", "lora": None}, ConfigError, r"quantized weights cannot be trained; set lora"),
        (
            {"lora": LoRA(target_modules=["query_key_value"])},
            ConfigError,
            r"Teacher: lora does not fit model .*query_key",
        ),
        ({"adapter": "no/such/adapter"}, ModelError, r"adapter 'no/such/adapter': no adapter_config\.json"),
    ],
)
def test_impossible_settings_are_errors_of_one_line(
    tiny_model: str, settings: dict[str, Any], kind: type[WSTError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        make(tiny_model, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_an_error_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"model './no/such': no such folder"):
        Teacher("./no/such")


def test_adapters_that_cannot_be_read_safely_or_at_all_are_errors(
    tiny_model: str, adapter: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not JSON") as caught:
        Teacher(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    for change in ({"peft_type": "PREFIX_TUNING"}, {"peft_type": "NEW"}, {"alora_invocation_tokens": [5]}):
        (broken / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=r"adapter '.*broken': .* give a LoRA"):
            Teacher(tiny_model, adapter=str(broken))

    (broken / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["query_key_value"]}))
    with pytest.raises(ModelError, match=r"adapter '.*broken' does not fit model") as caught:
        make(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    (broken / "adapter_config.json").write_text(json.dumps(config))
    (broken / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"adapter '.*broken' does not fit model") as caught:
        make(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors") as caught:
        Teacher(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_not_loaded_says_so(tiny_model: str) -> None:
    with pytest.raises(RuntimeError, match=r"call load\(\) first"):
        Teacher(tiny_model).sample(QUERIES)


def test_loading_twice_keeps_what_was_trained(tiny_model: str) -> None:
    teacher = make(tiny_model)
    network = teacher.network
    teacher.load(CPU)
    assert teacher.network is network
