"""Log the figures of every training step."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from wst.training.record import StepRecord


class RewardLogging(Callback):
    """Logs rewards, their spread, lengths and times of each step to all loggers and the progress bar.

    TensorBoard sorts groups by name and opens the first two: what answers are worth is in ``train`` and ``val``, all
    else in ``vitals``.

    ==================================  ================================================================
    ``train/reward``                    mean reward
    ``train/reward/PART``               mean of a part of a composite reward
    ``train/reward_std``                standard deviation over all rollouts of the step
    ``train/gain``                      reward minus that of the unaided student, if the baseline needs it
    ``train/leak``                      share of instructions that contain the gold answer, if there is one
    ``train/unscored``                  share of rollouts with no reward
    ``vitals/no_variance``              share of queries whose samples all got one reward: no gradient
    ``vitals/loss``                     of policy gradients no measure of progress
    ``vitals/kl``                       nats from the reference teacher, if the KL has a coefficient
    ``vitals/entropy``                  nats a token, over the rows that had a gradient
    ``vitals/grad_norm``                before clipping
    ``vitals/lr``                       learning rate of the step
    ``vitals/instruction_tokens``       mean length
    ``vitals/instruction_cut``          share cut off by the token limit
    ``vitals/response_cut``             share of answers cut off by the student's token limit
    ``vitals/skipped``                  1 for a step that made no update, see `StepRecord.skipped`
    ``vitals/student/failed``           answers that failed finally; their rewards are unknown
    ``vitals/seconds/PHASE``            sample, respond, score, update
    ``vitals/tokens_per_second/PHASE``  sample, respond, update
    ==================================  ================================================================
    """

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Log the step's record."""
        record: StepRecord = outputs["record"]
        rows = record.rewards.numel()
        log = cast(Any, self)  # the trainer gives every callback `log` and `log_dict`
        figures = {name: value for name, value in step_figures(record).items() if not math.isnan(value)}
        reward = figures.pop("train/reward", None)
        if reward is not None:
            log.log("train/reward", reward, prog_bar=True, batch_size=rows, on_step=True, on_epoch=False)
        log.log_dict(figures, batch_size=rows, on_step=True, on_epoch=False)


def step_figures(record: StepRecord) -> dict[str, float]:
    """Compute the figures of a step by the name that they are logged under; NaN if there is none."""
    rewards = record.rewards
    known = rewards[~rewards.isnan()]
    instructions = [rollout.instruction for rollout in record.rollouts if rollout.instruction is not None]
    responses = [rollout.response for rollout in record.rollouts]
    lengths = [len(instruction.token_ids) for instruction in instructions]
    figures = {
        "train/reward": float(rewards.nanmean()),
        "train/reward_std": float(known.std(correction=0)) if len(known) else math.nan,
        "vitals/no_variance": _share_without_variance(rewards),
        "train/unscored": float(rewards.isnan().float().mean()),
        "vitals/entropy": record.entropy,
        "vitals/loss": record.loss,
        "vitals/grad_norm": record.grad_norm,
        "vitals/instruction_tokens": sum(lengths) / len(lengths),
        "vitals/instruction_cut": sum(z.truncated for z in instructions) / len(instructions),
        "vitals/response_cut": sum(response.truncated for response in responses) / len(responses),
    }
    figures["vitals/skipped"] = float(record.skipped)
    figures["vitals/student/failed"] = float(sum(response.error is not None for response in responses))
    figures |= {f"train/reward/{name}": float(values.nanmean()) for name, values in record.parts.items()}
    if record.leaks is not None:
        figures["train/leak"] = float(record.leaks.nanmean())
    if record.unaided is not None:
        figures["train/gain"] = float((rewards - record.unaided[:, None]).nanmean())
    if record.kl is not None:
        figures["vitals/kl"] = float(record.kl.mean())
    figures |= {f"vitals/seconds/{phase}": seconds for phase, seconds in record.seconds.items()}
    tokens = {"sample": sum(lengths), "respond": sum(r.tokens for r in responses), "update": sum(lengths)}
    for phase, count in tokens.items():
        if record.seconds.get(phase, 0.0) > 0:
            figures[f"vitals/tokens_per_second/{phase}"] = count / record.seconds[phase]
    return figures


def _share_without_variance(rewards: Tensor) -> float:
    """Return the share of rows [queries, samples] in which all known rewards are equal, or none is known."""
    lowest = torch.where(rewards.isnan(), math.inf, rewards).amin(dim=1)
    highest = torch.where(rewards.isnan(), -math.inf, rewards).amax(dim=1)
    return float((highest <= lowest).float().mean())
