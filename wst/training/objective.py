"""The policy-gradient objective as pure functions of tensors.

The gradient of the expected reward is estimated as

    grad J = E[ (r - b) grad log pi(z | x) ]                  (REINFORCE with baseline, Williams 1992)

so minimizing ``policy_loss`` by gradient descent ascends J. Each batch of rollouts makes one update: the policy that
sampled is the policy that is updated, so no importance ratio is needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["tokens", "sequences"]


def sequence_kl(log_probs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Return a one-sample estimate of KL(pi || pi_ref) for each sampled sequence, in nats.

    It is the log-ratio of the sampled sequence (the "k1" estimator of Schulman 2020: unbiased, may be negative).

    Args:
        log_probs: [rows, tokens] of the policy.
        reference: [rows, tokens] of the reference.
        mask: [rows, tokens], True where a token was sampled.

    Returns:
        [rows].
    """
    return torch.where(mask, log_probs - reference, 0.0).sum(dim=-1)


def whiten(advantages: Tensor, valid: Tensor) -> Tensor:
    """Center the valid advantages and divide them by their (population) standard deviation.

    Args:
        advantages: Any shape.
        valid: Same shape; False where an advantage is unknown; such an advantage becomes 0 and does not count.

    Returns:
        Same shape. If all advantages are equal, they become 0.
    """
    table = advantages.double()  # of equal advantages the mean is exact, and nothing is left to be scaled up
    count = valid.sum().clamp(min=1)
    mean = torch.where(valid, table, 0.0).sum() / count
    centred = torch.where(valid, table - mean, 0.0)
    std = (centred.square().sum() / count).sqrt()
    return torch.where(std > 1e-8, centred / std.clamp(min=1e-8), 0.0).to(advantages)


def denominator(token_counts: Tensor, normalization: Normalization) -> Tensor:
    """Return what the summed loss of a whole rollout batch is divided by.

    Args:
        token_counts: [rows] of the whole batch, sampled tokens of each row.
        normalization: "tokens" for the number of sampled tokens, so that a long instruction weighs more;
            "sequences" for the number of instructions, the estimator of Williams (1992).

    Returns:
        A scalar, at least 1.
    """
    total = token_counts.sum() if normalization == "tokens" else torch.tensor(len(token_counts))
    return total.clamp(min=1)


def policy_loss(
    log_probs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    denominator: Tensor,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
) -> Tensor:
    """Return the REINFORCE loss of some rows of a rollout batch.

    The denominator is that of the whole batch, so that the losses of its micro-batches add up to the batch's loss.

    Args:
        log_probs: [rows, tokens], with gradient.
        mask: [rows, tokens], True where a token was sampled.
        advantages: [rows], without gradient.
        denominator: Scalar from `denominator`.
        entropy: [rows, tokens], with gradient; needed if ``entropy_coef`` is not 0.
        entropy_coef: Weight of the entropy bonus.

    Returns:
        A scalar to minimize.
    """
    gain = advantages.detach()[:, None] * log_probs
    if entropy is not None and entropy_coef:
        gain = gain + entropy_coef * entropy
    return -torch.where(mask, gain, 0.0).sum() / denominator
