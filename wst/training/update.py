"""The policy update: from advantages to one step of the optimizer, in micro-batches and over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from wst.distributed import collective_errors, gather, gather_rows, local_backward, local_share, sum_gradients
from wst.errors import ConfigError
from wst.modeling.logprobs import LogProbs
from wst.settings import check_counts
from wst.teacher import Teacher
from wst.training.lifecycle import TrainingLifecycle
from wst.training.objective import Normalization, denominator, policy_loss, sequence_kl
from wst.training.record import StepRecord
from wst.training.replay import Paid, Replay, sequence_log_probs
from wst.types import Instruction

_T = TypeVar("_T")


class PolicyUpdate:
    """Moves the teacher one step up the policy gradient; its settings are those of `wst.WeakToStrong`.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        teacher: Teacher,
        micro_batch_size: int | None,
        normalization: Normalization,
        entropy_coef: float,
        gradient_clip: float | None,
        entropy_steps: int | None = None,
        replay: Replay | None = None,
    ) -> None:
        check_counts("WeakToStrong", micro_batch_size=micro_batch_size, entropy_steps=entropy_steps)
        if gradient_clip is not None and not gradient_clip > 0:
            raise ConfigError(f"gradient_clip must be above 0, or null for no clipping, got {gradient_clip}")
        self.teacher = teacher
        self.micro_batch_size = micro_batch_size
        self.normalization = normalization
        self.entropy_coef = entropy_coef
        self.gradient_clip = gradient_clip
        self.entropy_steps = entropy_steps
        self.replay = replay or Replay(0)

    def __call__(
        self,
        module: TrainingLifecycle,
        instructions: Sequence[Instruction],
        advantages: Tensor,
        record: StepRecord,
        log_probs: LogProbs | None = None,
    ) -> str | None:
        """Make one optimizer step from the sum of all ranks' gradients; note loss and gradient norm in the record.

        Rows with advantage 0 have no gradient and are skipped, unless there is an entropy bonus.

        Args:
            module: Has the optimizer, the scheduler and the trainer.
            instructions: This rank's, [queries * samples].
            advantages: This rank's, [queries, samples].
            record: The step of all ranks.
            log_probs: Of this rank's instructions, with gradient, from `kl`; None to compute them here.

        Returns:
            None, or why no step was made: which rollouts made loss or gradient NaN or infinite.
        """
        advantages = advantages.flatten().to(module.device)
        optimizer = cast(LightningOptimizer, module.optimizers())
        optimizer.zero_grad()
        lengths = [len(rollout.instruction.token_ids) for rollout in record.rollouts if rollout.instruction is not None]
        scale = denominator(torch.tensor(lengths), self.normalization)
        new_scale = float(scale)
        scale = scale + self.replay.scale
        entropy_coef = self._entropy_coef(module.trained_steps)
        rows = [i for i in range(len(instructions)) if entropy_coef or advantages[i] != 0]
        done: list[Tensor] = []
        paid: list[tuple[int, float]] = []  # place and log-probability
        with collective_errors(), local_backward(module.trainer):
            for micro in self._micro_batches(rows):
                z = log_probs.rows(micro) if log_probs else self._log_probs([instructions[i] for i in micro])
                loss = policy_loss(z.values, z.mask, advantages[micro], scale, z.entropy, entropy_coef)
                module.manual_backward(loss)
                entropy = torch.where(z.mask, cast(Tensor, z.entropy), 0.0).detach().sum()
                done.append(torch.stack([loss.detach(), entropy, z.mask.sum()]))
                paid += zip(micro, sequence_log_probs(z).tolist(), strict=True)
            for old in self._micro_batches(local_share(self.replay.paid)):
                z = self.teacher.log_probs([one.instruction for one in old])
                loss = policy_loss(z.values, z.mask, self.replay.weighted(old, z), scale)
                module.manual_backward(loss)
                done.append(torch.stack([loss.detach(), loss.new_zeros(()), loss.new_zeros(())]))
        sum_gradients(module.trainable())
        sums = [part for part in gather(torch.stack(done).sum(dim=0).tolist() if done else None) if part is not None]
        if sums:
            record.loss, entropy_sum, tokens = map(sum, zip(*sums, strict=True))
            record.entropy = entropy_sum / tokens if tokens else math.nan
            limit = self.gradient_clip if self.gradient_clip is not None else math.inf
            record.grad_norm = float(nn.utils.clip_grad_norm_(module.trainable(), limit))
            if not math.isfinite(record.loss + record.grad_norm):
                record.skipped = True
                self.replay.clear()  # it may be the cause
                optimizer.zero_grad()
                return self._not_finite(module, instructions, advantages, scale)
        else:
            optimizer.zero_grad()  # the sums of several ranks are zeros; Adam's momentum would make a step of them
        optimizer.step()
        if (scheduler := module.lr_schedulers()) is not None:
            cast(LRScheduler, scheduler).step()
        if self.replay.updates:
            own = [Paid(instructions[i], float(advantages[i]), log_prob) for i, log_prob in paid if advantages[i] != 0]
            self.replay.add(new_scale, gather_rows(own))
        return None

    def _entropy_coef(self, step: int) -> float:
        """Return the weight of the entropy bonus after so many steps."""
        return self.entropy_coef * (max(0.0, 1 - step / self.entropy_steps) if self.entropy_steps else 1.0)

    def kl(self, instructions: Sequence[Instruction], samples: int) -> tuple[Tensor, LogProbs | None]:
        """Estimate the KL to the reference teacher: log pi(z) - log pi_ref(z) of each sampled instruction.

        Returns:
            [queries, samples] in nats; and the log-probabilities under the policy, with gradient, for the update.
            They are None where the rows are more than one micro-batch, whose graphs would not fit into memory.
        """
        one_pass = len(list(self._micro_batches(instructions))) == 1
        rows, z = [torch.empty(0)], None
        for micro in self._micro_batches(instructions):
            with torch.set_grad_enabled(one_pass):
                z = self._log_probs(micro) if one_pass else self.teacher.log_probs(micro)
            reference = self.teacher.reference_log_probs(micro).values
            rows.append(sequence_kl(z.values.detach(), reference, z.mask).cpu())
        return torch.cat(rows).view(-1, samples), z if one_pass else None

    def _micro_batches(self, rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
        size = self.micro_batch_size or max(len(rows), 1)
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _log_probs(self, instructions: Sequence[Instruction]) -> LogProbs:
        """Log-probabilities with gradient, and entropies, with gradient if they have a weight."""
        return self.teacher.log_probs(instructions, entropy=True, entropy_gradient=self.entropy_coef > 0)

    def _not_finite(
        self, module: TrainingLifecycle, instructions: Sequence[Instruction], advantages: Tensor, scale: Tensor
    ) -> str:
        """Find the rollouts that make loss or gradient NaN or infinite, by one backward pass for each."""
        causes = []
        with collective_errors(), local_backward(module.trainer):
            for i in advantages.nonzero().flatten().tolist():
                z = self._log_probs([instructions[i]])
                loss = policy_loss(z.values, z.mask, advantages[[i]], scale, z.entropy, self.entropy_coef)
                module.manual_backward(loss)
                gradients = [p.grad for p in module.trainable() if p.grad is not None]
                if not all(bool(g.isfinite().all()) for g in [loss, *gradients]):
                    causes.append(instructions[i].text)
                cast(LightningOptimizer, module.optimizers()).zero_grad()
        causes = gather_rows(causes)
        named = f"instruction {causes[0]!r:.200}" if causes else "the rollouts together, none of them alone"
        more = f" and {len(causes) - 1} more" if len(causes) > 1 else ""
        return f"loss or gradient is not a number, because of {named}{more}"
