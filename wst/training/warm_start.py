"""Warm start: before it is reinforced, the teacher imitates the best of a few instructions that were tried."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from wst.distributed import collective_errors, gather, gather_rows, local_backward, local_share, sum_gradients
from wst.errors import ConfigError, Diverged, StudentStopped
from wst.settings import check_arguments, check_counts
from wst.terminal import show
from wst.training.lifecycle import TrainingLifecycle
from wst.types import Instruction, Query

#: Draws of a sampled student that no training step has.
_FIRST_DRAW = 2**30


@dataclass(frozen=True)
class _Tried:
    """An instruction that was tried on a query."""

    query: str
    instruction: Instruction
    sentence: int  #: number of the given sentence, -1 for an own sample
    value: float  #: reward less leak penalty


class WarmStart:
    """A supervised phase on the best instructions for some training queries, before the first step.

    For each query the student is asked under the given sentences and under the teacher's own samples; the teacher then
    learns to write the best one, if it is better than the mean of all that was tried (best of N, as in RAFT, arXiv
    2504.11343; supervision before reinforcement as in DSP, arXiv 2302.11520). Between sentences that are equally good
    for a query, the one that is better over all queries wins. It costs ``queries * (samples + len(sentences))``
    answers.

    The phase has its own optimizer, of the run's kind. It is made once, before the first step; a run that is killed in
    it begins it anew.

    Args:
        sentences: Instructions to choose from, for instance those that ``wst distil`` has found. An empty one is the
            student without an instruction, so that a teacher can learn to write none where none helps.
        queries: Training queries, drawn at random.
        samples: The teacher's own samples a query.
        epochs: Times that each chosen instruction is learned from.
        batch_size: Instructions in one step of the optimizer.

    Raises:
        ConfigError: If a setting is out of range, or there is nothing to choose from.
    """

    def __init__(
        self,
        sentences: list[str] | None = None,
        queries: int = 32,
        samples: int = 4,
        epochs: int = 2,
        batch_size: int = 16,
    ) -> None:
        check_arguments(WarmStart, locals())
        check_counts("WarmStart", queries=queries, epochs=epochs, batch_size=batch_size)
        self.sentences = list(dict.fromkeys(sentence.strip() for sentence in sentences or []))
        if samples < 0 or samples + len(self.sentences) < 2:
            raise ConfigError(
                f"WarmStart: {len(self.sentences)} sentences and samples={samples} leave nothing to choose from; give "
                "at least two in all"
            )
        self.queries = queries
        self.samples = samples
        self.epochs = epochs
        self.batch_size = batch_size
        self.done = False

    def __call__(self, module: TrainingLifecycle, queries: Sequence[Query]) -> None:
        """Try, choose and learn; all ranks must call it.

        Args:
            module: Has the teacher, its environment, the optimizer and the trainer.
            queries: The training queries.
        """
        shuffled = random.Random(f"warm start {module.seed}").sample(range(len(queries)), len(queries))
        drawn = [queries[i] for i in shuffled[: self.queries]]
        with collective_errors():
            own = self._try(module, local_share(drawn))
        tried = gather_rows(own)
        if not tried:
            raise StudentStopped("warm_start: no answer could be scored; see to the student, then start again")
        best = self._best(tried)
        parameters = module.trainable()
        before = [parameter.detach().clone() for parameter in parameters]
        try:
            steps = self._learn(module, best)
        except BaseException:  # a checkpoint that is saved now is of a teacher that has not begun
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)
            raise
        self.done = True
        if module.global_rank == 0:
            values = [one.value for one in tried]
            show(
                f"warm start: {len(tried)} answers for {len(drawn)} queries, mean {_mean(values):.3f}; "
                f"{len(best)} instructions with a mean of {_mean([one.value for one in best]):.3f} learned in "
                f"{steps} steps"
            )

    def _try(self, module: TrainingLifecycle, queries: Sequence[Query]) -> list[_Tried]:
        """Ask the student under each sentence and sample; leave out what cannot be scored."""
        teacher, environment = module.teacher, module.environment
        sampled = teacher.sample(queries, self.samples) if self.samples and queries else []
        rows: list[tuple[Query, Instruction, int]] = []
        for i, query in enumerate(queries):
            prompt = teacher.encode(query)
            rows += [(query, z, -1) for z in sampled[i * self.samples : (i + 1) * self.samples]]
            rows += [(query, _written(module, text, prompt), n) for n, text in enumerate(self.sentences)]
        if not rows:
            return []
        asked, instructions, sentences = zip(*rows, strict=True)
        draws = [_FIRST_DRAW + i % (self.samples + len(self.sentences)) for i in range(len(rows))]
        rollouts = environment.respond(asked, instructions, draws)
        rewards, leaks = environment.score(rollouts).total, environment.leaks(rollouts)
        values = torch.tensor(rewards) - module.leak_penalty * torch.tensor(leaks).nan_to_num()
        found = zip(asked, instructions, sentences, values.tolist(), strict=True)
        return [_Tried(query.id, z, number, value) for query, z, number, value in found if value == value]

    def _best(self, tried: Sequence[_Tried]) -> list[_Tried]:
        mean = _mean([one.value for one in tried])
        of_sentence = {n: _mean([one.value for one in tried if one.sentence == n]) for n in range(len(self.sentences))}
        best: dict[str, _Tried] = {}
        for one in tried:
            rank = (one.value, of_sentence.get(one.sentence, mean))
            held = best.get(one.query)
            if held is None or rank > (held.value, of_sentence.get(held.sentence, mean)):
                best[one.query] = one
        return [one for one in best.values() if one.value > mean]

    def _learn(self, module: TrainingLifecycle, best: Sequence[_Tried]) -> int:
        """Lower the cross-entropy of the chosen instructions; return the number of steps.

        A step whose loss or gradient is not finite makes no update.

        Raises:
            Diverged: If that is so for all of them.
        """
        parameters = module.trainable()
        optimizer = module.make_optimizer(parameters)
        limit = math.inf if module.update.gradient_clip is None else module.update.gradient_clip
        steps = skipped = 0
        for epoch in range(self.epochs):
            order = random.Random(f"warm start {module.seed} {epoch}").sample(range(len(best)), len(best))
            for start in range(0, len(best), self.batch_size):
                batch = [best[i].instruction for i in order[start : start + self.batch_size]]
                tokens = sum(len(instruction.token_ids) for instruction in batch)
                own = local_share(batch)
                size = module.update.micro_batch_size or max(1, len(own))
                optimizer.zero_grad()
                total = 0.0
                with collective_errors(), local_backward(module.trainer):
                    for first in range(0, len(own), size):
                        z = module.teacher.log_probs(own[first : first + size])
                        loss = -torch.where(z.mask, z.values, 0.0).sum() / tokens
                        module.manual_backward(loss)
                        total += float(loss.detach())
                sum_gradients(parameters)
                norm = float(nn.utils.clip_grad_norm_(parameters, limit))
                if math.isfinite(sum(gather(total)) + norm):
                    optimizer.step()
                    steps += 1
                else:
                    skipped += 1
        optimizer.zero_grad()
        if skipped:
            fault = f"warm_start: loss or gradient is not a number in {skipped} of {steps + skipped} steps"
            if not steps:
                raise Diverged(f"{fault}; lower the learning rate, or leave warm_start out")
            rank_zero_warn(f"{fault}; they make no update")
        return steps

    def state_dict(self) -> dict[str, Any]:
        """Return whether it was made."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore whether it was made."""
        self.done = state_dict["done"]


def _written(module: TrainingLifecycle, text: str, prompt: tuple[int, ...]) -> Instruction:
    """Return a sentence as if the teacher had written it: its tokens, and the end token.

    Raises:
        ConfigError: If the teacher may not write as much.
    """
    teacher = module.teacher
    tokens = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(tokens) >= teacher.max_new_tokens:
        raise ConfigError(
            f"WarmStart: sentence {text!r:.80} has {len(tokens)} tokens and an end token, more than the teacher's "
            f"max_new_tokens={teacher.max_new_tokens}; shorten it, or raise that"
        )
    return Instruction(text, prompt, (*tokens, teacher.end_ids[0]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
