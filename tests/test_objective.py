"""The objective against closed forms: the expected update is the gradient of the expected reward."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wst.modeling.logprobs import token_entropy, token_log_probs
from wst.training.baselines import Baseline, GroupMean, LeaveOneOut, MovingAverage, Unaided
from wst.training.objective import Normalization, denominator, policy_loss, sequence_kl, whiten

REWARDS = torch.tensor([0.2, 0.9])
UNAIDED = torch.tensor([0.4])


class NoBaseline(Baseline):
    """Compares with nothing."""

    def baseline(self, rewards: Tensor, unaided: Tensor | None) -> Tensor:
        return torch.zeros_like(rewards)


def moving_average() -> MovingAverage:
    """A baseline that has seen batches before."""
    average = MovingAverage(0.5)
    average(torch.tensor([[0.3, 0.7]]))
    return average


def expected_gradient(make_baseline: Callable[[], Baseline], samples: int, temperature: float) -> Tensor:
    """Gradient of the loss for a bandit with two arms, weighted over every outcome of drawing from it."""
    preferences = torch.tensor([0.3, -0.5], requires_grad=True)
    total, mass = torch.zeros(2), 0.0
    for outcome in itertools.product((0, 1), repeat=samples):
        arms = torch.tensor(outcome)
        advantages = make_baseline()(REWARDS[arms][None], UNAIDED).flatten()
        log_probs = token_log_probs(preferences.expand(samples, 1, 2), arms[:, None], temperature)
        count = denominator(torch.ones(samples), "sequences")
        loss = policy_loss(log_probs, torch.ones(samples, 1, dtype=torch.bool), advantages, count)
        probability = log_probs.sum().exp().item()
        (gradient,) = torch.autograd.grad(loss, preferences)
        total, mass = total + probability * gradient, mass + probability
    assert mass == pytest.approx(1)
    return total


def analytic_gradient(temperature: float) -> Tensor:
    """Gradient of -J for J = p r1 + (1 - p) r0, where p is a sigmoid of the preferences' difference."""
    p = torch.tensor((-0.5 - 0.3) / temperature).sigmoid()
    slope = p * (1 - p) * (REWARDS[1] - REWARDS[0]) / temperature
    return torch.stack([slope, -slope])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("make_baseline", "samples"),
    [
        (NoBaseline, 1),
        (NoBaseline, 3),
        (Unaided, 1),
        (Unaided, 3),
        (moving_average, 1),
        (moving_average, 3),
        (LeaveOneOut, 2),
        (LeaveOneOut, 4),
    ],
)
def test_expected_update_is_the_gradient_of_the_expected_reward(
    make_baseline: Callable[[], Baseline], samples: int, temperature: float
) -> None:
    torch.testing.assert_close(expected_gradient(make_baseline, samples, temperature), analytic_gradient(temperature))


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_group_mean_shortens_the_gradient_by_what_its_own_sample_adds(samples: int) -> None:
    expected = (samples - 1) / samples * analytic_gradient(1.0)
    torch.testing.assert_close(expected_gradient(GroupMean, samples, 1.0), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_log_probs_and_entropy_are_those_of_the_scaled_softmax(temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(3, 5, 11, generator=generator)).to(dtype)
    ids = torch.randint(11, (3, 5), generator=generator)
    log_softmax = (logits.double() / temperature).log_softmax(dim=-1)
    log_probs, entropy = token_log_probs(logits, ids, temperature), token_entropy(logits, temperature)
    assert log_probs.dtype == entropy.dtype == torch.float32
    for row, position in itertools.product(range(3), range(5)):
        wanted = log_softmax[row, position]
        assert log_probs[row, position].item() == pytest.approx(wanted[ids[row, position]].item(), abs=1e-4)
        assert entropy[row, position].item() == pytest.approx(-(wanted.exp() * wanted).sum().item(), abs=1e-4)


def test_entropy_of_even_odds_is_their_logarithm() -> None:
    torch.testing.assert_close(token_entropy(torch.full((1, 1, 8), 3.0), 0.5), torch.tensor([[math.log(8)]]))


def test_log_probs_of_large_logits_stay_finite() -> None:
    log_probs = token_log_probs(torch.tensor([[[1e4, 0.0]]]), torch.tensor([[1]]), 0.5)
    torch.testing.assert_close(log_probs, torch.tensor([[-2e4]]))


# Rows of 3, 1 and 2 tokens, whose padding holds what must not get in.
MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
LOG_PROBS = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -math.inf, 9.0], [-0.5, -1.5, math.nan]])
ADVANTAGES = torch.tensor([1.0, -0.5, 2.0])
SUMMED = 1.0 * 6.0 - 0.5 * 4.0 + 2.0 * 2.0


@pytest.mark.parametrize(("normalization", "divisor"), [("tokens", 6), ("sequences", 3)])
def test_loss_is_the_weighted_sum_over_the_normalisation(normalization: Normalization, divisor: int) -> None:
    count = denominator(MASK.sum(dim=1), normalization)
    assert count.item() == divisor
    log_probs = LOG_PROBS.clone().requires_grad_()
    loss = policy_loss(log_probs, MASK, ADVANTAGES, count)
    assert loss.item() == pytest.approx(SUMMED / divisor)
    (gradient,) = torch.autograd.grad(loss, log_probs)
    torch.testing.assert_close(gradient, torch.where(MASK, -ADVANTAGES[:, None] / divisor, 0.0))


@pytest.mark.parametrize("normalization", ["tokens", "sequences"])
def test_a_batch_without_tokens_is_not_divided_by_zero(normalization: Normalization) -> None:
    assert denominator(torch.zeros(0, dtype=torch.long), normalization).item() == 1


@pytest.mark.parametrize("normalization", ["tokens", "sequences"])
@pytest.mark.parametrize("cuts", [[0, 1, 3], [0, 2, 3], [0, 1, 2, 3]])
def test_micro_batches_losses_add_up_to_the_batchs(normalization: Normalization, cuts: list[int]) -> None:
    count = denominator(MASK.sum(dim=1), normalization)
    entropy = torch.arange(9.0).view(3, 3)
    parts = [
        policy_loss(LOG_PROBS[a:b], MASK[a:b], ADVANTAGES[a:b], count, entropy[a:b], 0.3)
        for a, b in itertools.pairwise(cuts)
    ]
    whole = policy_loss(LOG_PROBS, MASK, ADVANTAGES, count, entropy, 0.3)
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_advantages_get_no_gradient() -> None:
    advantages = ADVANTAGES.clone().requires_grad_()
    log_probs = torch.full((3, 3), -1.0, requires_grad=True)
    policy_loss(log_probs, MASK, advantages, torch.tensor(1)).backward()
    assert advantages.grad is None


def test_entropy_bonus_counts_sampled_tokens_and_only_with_a_weight() -> None:
    log_probs, entropy, count = torch.zeros(3, 3), torch.arange(9.0).view(3, 3), torch.tensor(2)
    bonus = 0 + 1 + 2 + 3 + 6 + 7
    loss = policy_loss(log_probs, MASK, ADVANTAGES, count, entropy, 0.1)
    assert loss.item() == pytest.approx(-0.1 * bonus / 2)
    assert policy_loss(log_probs, MASK, ADVANTAGES, count, entropy).item() == 0
    assert policy_loss(log_probs, MASK, ADVANTAGES, count, None, 0.1).item() == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_entropy_bonus_ascends_the_entropy(temperature: float) -> None:
    preferences = torch.tensor([0.0, 1.2], requires_grad=True)
    entropy = token_entropy(preferences[None, None], temperature)
    loss = policy_loss(torch.zeros(1, 1), torch.ones(1, 1).bool(), torch.zeros(1), torch.tensor(1), entropy, 0.25)
    (gradient,) = torch.autograd.grad(loss, preferences)
    odds = 1.2 / temperature
    p = 1 / (1 + math.exp(-odds))
    slope = 0.25 * p * (1 - p) * odds / temperature  # of -0.25 H: H falls as the likelier arm grows likelier
    torch.testing.assert_close(gradient, torch.tensor([-slope, slope]))


def test_whitened_advantages_have_mean_0_and_deviation_1() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    torch.testing.assert_close(whiten(values, torch.ones(2, 2).bool()), (values - 4) / math.sqrt(5))


def test_whitening_leaves_the_unknown_at_0_and_out_of_the_figures() -> None:
    values = torch.tensor([1.0, 0.0, 3.0, math.nan])
    torch.testing.assert_close(
        whiten(values, torch.tensor([True, False, True, False])), torch.tensor([-1.0, 0.0, 1.0, 0.0])
    )


@pytest.mark.parametrize("valid", [[True, True, True], [True, False, False], [False, False, False]])
def test_whitening_what_does_not_differ_gives_0(valid: list[bool]) -> None:
    assert whiten(torch.full((3,), 0.7), torch.tensor(valid)).tolist() == [0.0, 0.0, 0.0]
    assert whiten(torch.full((11,), 1e6 / 3), torch.ones(11, dtype=torch.bool)).tolist() == [0.0] * 11


def test_sequence_kl_is_the_log_ratio_of_the_sampled_tokens() -> None:
    reference = torch.tensor([[-1.5, -1.0, -3.25], [-5.0, 7.0, math.nan], [-0.5, -1.0, math.inf]])
    torch.testing.assert_close(sequence_kl(LOG_PROBS, reference, MASK), torch.tensor([-0.25, 1.0, -0.5]))


def test_sequence_kl_is_right_on_average() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    outcomes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    estimates = sequence_kl(policy[outcomes].log(), reference[outcomes].log(), torch.ones(9, 2).bool())
    exact = 2 * (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy[outcomes].prod(dim=1) * estimates).sum(), exact)
