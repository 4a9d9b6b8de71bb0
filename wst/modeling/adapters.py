"""Adapters in folders that PEFT wrote, and what a base model needs before it is given one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, PromptLearningConfig
from torch import nn
from transformers import PreTrainedModel

from wst.errors import ModelError
from wst.modeling.loading import LOADING_ERRORS
from wst.modeling.spec import first_line


def check_adapter(folder: str) -> None:
    """Check that a folder holds an adapter that can be used, without loading it.

    Raises:
        ModelError: If it does not.
    """
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_config.json there; give a folder that PEFT saved")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_model.safetensors; adapters are read from safetensors alone")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"adapter {folder!r}: adapter_config.json is not JSON ({error})") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    shape = PEFT_TYPE_TO_CONFIG_MAPPING.get(cast(Any, kind))
    if shape is None or issubclass(shape, PromptLearningConfig) or config.get("alora_invocation_tokens"):
        raise ModelError(
            f"adapter {folder!r}: one of peft_type {kind!r} with these settings does more than change layers, and "
            "prompts could not be read once for several instructions; give a LoRA or its like"
        )


def load_adapter(base: PreTrainedModel, folder: str, trained: str, reference: str, model: str) -> PeftModel:
    """Put the adapter of a folder on a base model twice: once to be trained, once as it is.

    Args:
        base: The base model.
        folder: The adapter's folder.
        trained: Name that the adapter to be trained gets.
        reference: Name that the other one gets.
        model: What errors call the base.

    Raises:
        ModelError: If the adapter cannot be read or does not fit.
    """
    try:
        policy = PeftModel.from_pretrained(base, folder, adapter_name=trained, is_trainable=True)
        policy.load_adapter(folder, adapter_name=reference, is_trainable=False)
    except LOADING_ERRORS as error:
        raise ModelError(f"adapter {folder!r} does not fit model {model!r} ({first_line(error)})") from error
    policy.set_adapter(trained)
    return policy


def disable_dropout(network: nn.Module) -> None:
    """Set the probability of all dropout layers to 0."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            cast(Any, module).p = 0.0


def keep_quantized_weights_differentiable(base: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference.

    On a CPU with AVX-512 BF16 a layer in eval mode would do so, for good, at its first call without gradient, which is
    sampling. No gradient passes through a repacked layer, and nothing would say so.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False
