"""A causal language model as two parts: the backbone, which computes hidden states, and the lm_head."""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn


def split_backbone_and_head(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return the backbone and the lm_head, or None if the network does more than that, such as to scale its logits.

    Finds out by running the network on two tokens, once.
    """
    base = cast(Any, network.get_base_model() if isinstance(network, PeftModel) else network)
    if not hasattr(base, "_wst_splits"):
        backbone, head = getattr(base, base.base_model_prefix, None), base.get_output_embeddings()
        base._wst_splits = backbone is not None and head is not None and _equal(base, backbone, head)
    return (getattr(base, base.base_model_prefix), base.get_output_embeddings()) if base._wst_splits else None


@torch.no_grad()
def _equal(base: Any, backbone: Any, head: Any) -> bool:  # noqa: ANN401 - transformers' own
    ids = torch.tensor([[0, 1]], device=base.device)
    states = getattr(backbone(input_ids=ids, use_cache=False), "last_hidden_state", None)
    return states is not None and torch.equal(head(states), base(input_ids=ids, use_cache=False).logits)
