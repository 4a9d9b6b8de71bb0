"""Log-probabilities of sampled tokens; from hidden states, so that logits exist for a few tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from wst.modeling.backbone import split_backbone_and_head
from wst.modeling.prefix import Row, pad_left, prefill, shared_prefix_length

#: Logits held at once, in float32: 64 MiB.
_MAX_LOGITS = 2**24


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of instructions; all [rows, tokens] in float32, padded on the right with 0.

    Attributes:
        values: Log-probability of each sampled token.
        mask: True where a token was sampled.
        entropy: Entropy of the distribution it was sampled from, in nats; None unless asked for.
    """

    values: Tensor
    mask: Tensor
    entropy: Tensor | None = None

    def rows(self, indices: Sequence[int]) -> LogProbs:
        """Return those of some rows."""
        chosen = list(indices)
        entropy = None if self.entropy is None else self.entropy[chosen]
        return LogProbs(self.values[chosen], self.mask[chosen], entropy)


def token_log_probs(logits: Tensor, token_ids: Tensor, temperature: float) -> Tensor:
    """Return the log-probability of each sampled token under the distribution that it was sampled from.

    Args:
        logits: [..., vocabulary], unscaled.
        token_ids: [...].
        temperature: The sampling temperature, > 0.

    Returns:
        [...] in float32.
    """
    scaled = logits.float() / temperature
    chosen = scaled.gather(-1, token_ids[..., None]).squeeze(-1)
    return chosen - scaled.logsumexp(dim=-1)


def token_entropy(logits: Tensor, temperature: float) -> Tensor:
    """Return the entropy in nats of the sampling distribution at each position, [...] in float32."""
    log_probs = (logits.float() / temperature).log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def continuation_log_probs(
    network: nn.Module,
    prompts: Sequence[Row],
    continuations: Sequence[Row],
    pad_id: int,
    temperature: float,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> LogProbs:
    """Return the log-probabilities of tokens that were sampled after prompts; gradients flow.

    Args:
        network: A causal language model of transformers, adapted or not.
        prompts: Token ids of each row's prompt.
        continuations: Token ids sampled after it.
        pad_id: The padding token.
        temperature: The sampling temperature.
        entropy: Whether to return entropies too.
        entropy_gradient: Whether gradients flow through the entropies, which takes longer.
    """
    states, targets, mask, head = continuation_states(network, prompts, continuations, pad_id)
    found = log_probs_from_states(states[mask], targets[mask], head, temperature, entropy, entropy_gradient)
    values, entropies = (None if of is None else of.new_zeros(mask.shape).masked_scatter(mask, of) for of in found)
    return LogProbs(cast(Tensor, values), mask, entropies)


def continuation_states(
    network: nn.Module, prompts: Sequence[Row], continuations: Sequence[Row], pad_id: int
) -> tuple[Tensor, Tensor, Tensor, nn.Module | None]:
    """Return the last hidden states from which tokens after prompts are predicted.

    Each distinct prompt is read once, and its KV cache serves all of its continuations; gradients flow back through it.
    Padding changes nothing.

    Args:
        network: A causal language model of transformers, adapted or not.
        prompts: Token ids of each row's prompt.
        continuations: Token ids after it.
        pad_id: The padding token.

    Returns:
        States [rows, tokens, hidden size]; token ids and mask, both [rows, tokens], padded on the right; and the
        lm_head. If the network does more than that after its last layer, the states are logits [rows, tokens,
        vocabulary] and the head is None.
    """
    device = cast(Any, network).device
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    order = {prompt: i for i, prompt in enumerate(distinct)}
    row_prompt = torch.tensor([order[tuple(prompt)] for prompt in prompts], device=device)
    shared = shared_prefix_length(network, distinct)
    prefix, prefix_mask = pad_left([prompt[:-1] for prompt in distinct], pad_id, device, shared)
    # [rows, tokens], padded on the right; the input is shifted by one and starts with the prompt's last token
    lengths = torch.tensor([len(row) for row in continuations], device=device)
    width = int(lengths.max())
    mask = torch.arange(width, device=device) < lengths[:, None]
    targets = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in continuations], device=device)
    first = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
    cache = None
    if prefix.shape[1]:
        cache = prefill(network, prefix, prefix_mask, shared)
        cache.batch_select_indices(row_prompt)
    seen = prefix_mask[row_prompt]
    inputs = {
        "input_ids": torch.cat([first, targets[:, :-1]], dim=1),
        "attention_mask": torch.cat([seen, mask.to(seen)], dim=1),
        "position_ids": seen.sum(dim=1, keepdim=True) + torch.arange(width, device=device),
        "past_key_values": cache,
        "use_cache": True,
    }
    parts = split_backbone_and_head(network)
    if parts is None:
        return network(**inputs).logits, targets, mask, None
    return parts[0](**inputs).last_hidden_state, targets, mask, parts[1]


def log_probs_from_states(
    states: Tensor,
    token_ids: Tensor,
    head: nn.Module | None,
    temperature: float,
    entropy: bool = False,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return each token's log-probability and, if asked for, the entropy of the distribution it was sampled from.

    Args:
        states: [tokens, hidden size] hidden states, or, without a head, [tokens, vocabulary] logits.
        token_ids: [tokens].
        head: The lm_head.
        temperature: The sampling temperature.
        entropy: Whether to return the entropies.
        entropy_gradient: Whether gradients flow through them.

    Returns:
        Two of [tokens] in float32.
    """
    layer = cast(Any, head)
    vocabulary = states.shape[-1] if head is None else int(getattr(layer, "out_features", layer.weight.shape[0]))
    size = max(1, _MAX_LOGITS // vocabulary)
    frozen = type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())
    if frozen and not (entropy and entropy_gradient):
        linear = cast(nn.Linear, head)
        values, entropies = cast(Any, _FrozenHead).apply(
            states, linear.weight, linear.bias, token_ids, temperature, entropy, size
        )
        return values, entropies if entropy else None

    def chunk(states: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = states if head is None else head(states)
        values = token_log_probs(logits, token_ids, temperature)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            return values, token_entropy(logits, temperature) if entropy else None

    # The logits are computed again in the backward pass, not stored for it.
    parts: list[Any] = [
        checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False)
        for part in zip(states.split(size), token_ids.split(size), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) if entropy else None


class _FrozenHead(torch.autograd.Function):
    """Compute the gradient with respect to the hidden states along with the values.

    An lm_head that is not trained needs no other gradient, and the log-probability of token y has it in closed form:
    (onehot(y) - softmax(logits)) W / temperature. So nothing of the vocabulary's size is stored or computed again.
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
        values, entropies, gradients = [], [], []
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
                # Subtract before rounding to the weights' format: the gradient of a nearly certain token is small.
                ones = torch.ones_like(chosen[:, None], dtype=probabilities.dtype)
                difference = probabilities.neg_().scatter_add_(1, chosen[:, None], ones)
                gradients.append(difference.to(weight.dtype) @ weight / temperature)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        found = torch.cat(values)
        all_entropies = torch.cat(entropies) if entropies else torch.empty_like(found)
        ctx.mark_non_differentiable(all_entropies)
        return found, all_entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        (by_states,) = ctx.saved_tensors
        return (gradients[0][:, None] * by_states).to(by_states.dtype), None, None, None, None, None, None
