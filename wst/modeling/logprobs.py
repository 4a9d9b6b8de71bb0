"""Log-probabilities from hidden states: logits exist for a few tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wst.training.objective import token_entropy, token_log_probs

#: Logits that are held at once, in float32: 64 MiB.
_AT_ONCE = 2**24


def split_backbone_and_head(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Give what computes hidden states, and the layer that makes logits of them.

    None if the network does more than that, such as to scale or cap its logits: it is tried on two tokens.
    """
    base = cast(Any, network.get_base_model() if isinstance(network, PeftModel) else network)
    if not hasattr(base, "_wst_splits"):
        body, head = getattr(base, base.base_model_prefix, None), base.get_output_embeddings()
        base._wst_splits = body is not None and head is not None and _same(base, body, head)
    return (getattr(base, base.base_model_prefix), base.get_output_embeddings()) if base._wst_splits else None


@torch.no_grad()
def _same(base: Any, body: Any, head: Any) -> bool:  # noqa: ANN401 - transformers' own
    ids = torch.tensor([[0, 1]], device=base.device)
    hidden = getattr(body(input_ids=ids, use_cache=False), "last_hidden_state", None)
    return hidden is not None and torch.equal(head(hidden), base(input_ids=ids, use_cache=False).logits)


def score(
    states: Tensor,
    token_ids: Tensor,
    head: nn.Module | None,
    temperature: float,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token and, if asked for, the entropy of the distribution it was drawn from.

    Args:
        states: [tokens, size] hidden states, or, without a head, logits.
        token_ids: [tokens].
        head: Layer that makes logits of states.
        temperature: The sampling temperature.
        entropy: Whether to give the entropies.
        entropy_gradient: Whether gradients must flow through them.

    Returns:
        Two of [tokens] in float32.
    """
    layer = cast(Any, head)
    vocabulary = states.shape[-1] if head is None else int(getattr(layer, "out_features", layer.weight.shape[0]))
    size = max(1, _AT_ONCE // vocabulary)
    frozen = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
    if frozen and not (entropy and entropy_gradient):
        linear = cast(nn.Linear, head)
        values, entropies = cast(Any, _FrozenHead).apply(
            states, linear.weight, linear.bias, token_ids, temperature, entropy, size
        )
        return values, entropies if entropy else None

    def some(states: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = states if head is None else head(states)
        values = token_log_probs(logits, token_ids, temperature)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            return values, token_entropy(logits, temperature) if entropy else None

    parts = [_light(some, *part) for part in zip(states.split(size), token_ids.split(size), strict=True)]
    values = torch.cat([part[0] for part in parts])
    return values, torch.cat([cast(Tensor, part[1]) for part in parts]) if entropy else None


def _light(some: Callable[..., Any], states: Tensor, token_ids: Tensor) -> Any:  # noqa: ANN401
    """Keep nothing for the backward pass but what went in."""
    return checkpoint(some, states, token_ids, use_reentrant=False, preserve_rng_state=False)


class _FrozenHead(torch.autograd.Function):
    """Computes the gradient by the hidden states along with the values.

    A head that is not trained needs no other, and the log-probability of token y has it in closed form:
    (onehot(y) - softmax(logits)) W / temperature. So nothing of the vocabulary's size is kept, or computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - as torch has it
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        temperature: float,
        entropy: bool,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        values, entropies, slopes = [], [], []
        for part, chosen in zip(states.split(size), token_ids.split(size), strict=True):
            logits = functional.linear(part, weight, bias).float()
            if temperature != 1:
                logits /= temperature
            log_z = logits.logsumexp(dim=-1)
            values.append(logits.gather(-1, chosen[:, None]).squeeze(-1) - log_z)
            if not (entropy or ctx.needs_input_grad[0]):
                continue
            probabilities = (logits - log_z[:, None]).exp_()
            if entropy:
                entropies.append(log_z - torch.linalg.vecdot(probabilities, logits))
            if ctx.needs_input_grad[0]:
                # The difference before it is rounded: the gradient of a token that is nearly certain is small.
                ones = torch.ones_like(chosen[:, None], dtype=probabilities.dtype)
                difference = probabilities.neg_().scatter_add_(1, chosen[:, None], ones)
                slopes.append(difference.to(weight.dtype) @ weight / temperature)
        if slopes:
            ctx.save_for_backward(torch.cat(slopes))
        found = torch.cat(values)
        together = torch.cat(entropies) if entropies else torch.empty_like(found)
        ctx.mark_non_differentiable(together)
        return found, together

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).to(slopes.dtype), None, None, None, None, None, None
