"""A teacher with an adapter, and an adapter to start from."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from teachers import make
from transformers import AutoModelForCausalLM

from wst.teacher import Teacher


@pytest.fixture(scope="module", params=["chat template", "no chat template", "query last"])
def teacher(request: pytest.FixtureRequest, tiny_model: str, tiny_plain_model: str) -> Teacher:
    """A teacher with an adapter that no test may change; in the last form prompts do not end alike."""
    teacher = make(tiny_plain_model if request.param == "no chat template" else tiny_model)
    if request.param == "query last":
        teacher.tokenizer.chat_template = "{{ messages[-1].content }}"
    return teacher


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    """Folder of an adapter that was trained elsewhere, with dropout, a rank of its own and some layers only."""
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=3, lora_alpha=6, lora_dropout=0.5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)
