"""Adapters in folders that PEFT wrote, and what a base model needs before it is given one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from wst.errors import ModelError, first_line
from wst.modeling.loading import first_nonfinite, one_line_errors

_NAME = re.compile(r"\^?[\w.-]+\$?")

#: Values of PEFT's options under which an adapter leaves the base model as it is and runs no code of its own.
_HARMLESS: dict[str, list[Any]] = {
    "modules_to_save": [None, []],
    "bias": ["none"],
    "init_lora_weights": [True, False, None, "gaussian", "orthogonal"],  # others rewrite the base's weights
    "trainable_token_indices": [None, [], {}],
    "target_parameters": [None, []],
    "layer_replication": [None, []],
    "megatron_config": [None, {}],  # would import the module that megatron_core names
}
#: Options that name layers. PEFT takes texts and keys for regular expressions.
_NAMES = ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")


def _are_names(value: object) -> bool:
    """Whether an option names layers as they are: by a list, a mapping's keys, none at all, or all of them."""
    if value is None or value == "all-linear":
        return True
    return isinstance(value, list | dict) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)


def check_adapter(folder: str) -> None:
    """Check that a folder holds an adapter that can be used, without loading it or running anything in it.

    Raises:
        ModelError: If it does not: it is not whole, or it would do more than an adapter may: change the base model,
            depend on other tokens, or import code.
    """
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_config.json there; give a folder that PEFT saved")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_model.safetensors; adapters are read from safetensors alone")
    config = _config(path)
    kind = config.get("peft_type")
    # Others change more than layers, ask the hub for more adapters, or take memory that no weights in the file account
    # for.
    if kind != "LORA" or config.get("alora_invocation_tokens"):
        raise ModelError(
            f"adapter {folder!r}: its peft_type is {kind!r:.60}, or it does more than change layers; give a LoRA"
        )
    for option, value in config.items():
        if option in _NAMES and not _are_names(value):
            raise ModelError(
                f"adapter {folder!r}: its {option} is {value!r:.60}, where PEFT would read a regular expression, which "
                "need not end; train one with a list of names"
            )
    for option, harmless in _HARMLESS.items():
        if option in config and config[option] not in harmless:
            raise ModelError(
                f"adapter {folder!r}: its {option} is {config[option]!r:.60}, by which it would change the base model "
                f"or run code; train one with {option}: {json.dumps(harmless[0])}"
            )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"adapter {str(path)!r}: adapter_config.json is not JSON ({first_line(error)})") from error
    if not isinstance(config, dict):
        raise ModelError(f"adapter {str(path)!r}: adapter_config.json is not an object; give a folder that PEFT saved")
    return config


def load_adapter(base: PreTrainedModel, folder: str, trained: str, reference: str, model: str) -> PeftModel:
    """Load a folder's adapter onto a base model twice: a trainable copy and a frozen reference.

    Args:
        base: The base model.
        folder: The adapter's folder.
        trained: Name of the trainable copy.
        reference: Name of the frozen copy.
        model: Name of the base in error messages.

    Raises:
        ModelError: If the adapter cannot be read, does not fit, or holds other weights than an adapter's.
    """
    check_adapter(folder)
    before = [(weight, weight.data_ptr(), weight._version) for weight in base.parameters()]
    with one_line_errors(f"adapter {folder!r} does not fit model {model!r}"):
        weights = load_file(Path(folder) / "adapter_model.safetensors")
        _check_rank(_config(Path(folder)), weights)
        policy = PeftModel.from_pretrained(base, folder, adapter_name=trained, is_trainable=True)
        own = get_peft_model_state_dict(policy, adapter_name=trained, save_embedding_layers=False).keys()
        policy.load_adapter(folder, adapter_name=reference, is_trainable=False)
    if extra := sorted(weights.keys() - own):
        raise ModelError(
            f"adapter {folder!r}: {len(extra)} of its weights would change the base model, {extra[0]!r:.120} among "
            "them; give an adapter without modules_to_save and saved embeddings"
        )
    if any(weight.data_ptr() != place or weight._version != version for weight, place, version in before):
        raise ModelError(f"adapter {folder!r}: loading it changes the base model's weights; give a plain LoRA")
    if missing := sorted(own - weights.keys()):
        raise ModelError(f"adapter {folder!r}: {len(missing)} of its weights are missing, {missing[0]} among them")
    if broken := first_nonfinite(weights.items()):
        raise ModelError(f"adapter {folder!r}: its weights {broken} are not numbers (NaN or infinite); give another")
    policy.set_adapter(trained)
    return policy


def _check_rank(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Check that a LoRA's config asks for no larger rank, and so for no more memory, than its file holds."""
    ranks = [weight.shape[0] for name, weight in weights.items() if ".lora_A." in name and weight.ndim]
    asked = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(r, int) and r <= max(ranks, default=0) for r in asked):
        raise ValueError(f"its config has ranks {asked!r:.60}, its weights {max(ranks, default=0)}")


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
