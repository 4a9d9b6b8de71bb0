"""Screening: of many instructions, a small model of past answers says which few are worth asking the student."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wst.errors import ConfigError
from wst.modeling.logprobs import continuation_states
from wst.settings import check_arguments, check_counts
from wst.teacher import Teacher
from wst.training.exploration import sample_distinct
from wst.training.lifecycle import TrainingLifecycle
from wst.training.record import StepRecord
from wst.types import Instruction, Query

#: Numbers that an instruction is described by, and answers before the first prediction.
_SIZE, _LEAST = 64, 32


class Screen:
    """Asks the student one instruction of each group of candidates, more often one that promises a high reward.

    For each of the K samples of a query the teacher writes a group of c candidates. Candidate j is the one that is
    asked with probability p_j = explore / c + (1 - explore) * softmax(prediction / temperature)_j, and its advantage is
    multiplied by w = 1 / (c * p_j), which is at most 1 / explore.

    The expected gradient is that of K plain samples. Given the candidates, the mean of w_j (r_j - b) grad log pi(z_j)
    over the choice is that of (r_j - b) grad log pi(z_j) over the group, and each z_j is a plain sample; b may be any
    number that the other groups alone decide, as `LeaveOneOut` has it, since groups are independent. What is biased
    without a screen is biased with it, too: baselines that use the sample itself, whitening, ``resample``, clipping.
    Two terms are those of what is asked, without weights: the entropy bonus, and the number of tokens that
    ``normalization: tokens`` divides by.

    A prediction is a ridge regression, of the reward (less penalties) on the mean of the hidden states that the
    teacher's base has over the instruction, after the teacher's prompt, projected to 64 numbers by a fixed random
    matrix. Both are taken less their means over what was asked for the same query, so queries need not be alike and
    there is no constant. Neither base nor student changes, so no answer is forgotten. Until 32 answers are known, all
    candidates have the same chance. The sums of the regression are part of checkpoints.

    The teacher writes c times as much: lower its ``sample_batch_size`` if memory runs out.

    Args:
        candidates: Instructions in a group, c.
        explore: Share of the choice that is left to chance, above 0; at 1 nothing is screened.
        temperature: Of the choice, in standard deviations of a reward within its query.
        ridge: Weight of the penalty on the coefficients; at 1 it counts as much as one more answer in each direction.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self, candidates: int = 4, explore: float = 0.5, temperature: float = 0.25, ridge: float = 1.0
    ) -> None:
        check_arguments(Screen, locals())
        check_counts("Screen", 2, candidates=candidates)
        if not 0 < explore <= 1:
            raise ConfigError(f"Screen: explore must be above 0 and at most 1, got {explore}")
        for name, value in {"temperature": temperature, "ridge": ridge}.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"Screen: {name} must be above 0, got {value}")
        self.candidates = candidates
        self.explore = explore
        self.temperature = temperature
        self.ridge = ridge
        self._answers = 0
        self._squares = 0.0  #: sum of the centered rewards' squares
        self._normal = torch.zeros(_SIZE, _SIZE, dtype=torch.float64)
        self._vector = torch.zeros(_SIZE, dtype=torch.float64)

    def check(self, samples: int) -> None:
        """Check that it works with so many samples a query.

        Raises:
            ConfigError: If it needs more.
        """
        if samples < 2:
            raise ConfigError("Screen: it compares answers to the same query; set samples_per_query to at least 2")

    def sample(
        self,
        module: TrainingLifecycle,
        queries: Sequence[Query],
        samples: int,
        on_done: Callable[[int, Instruction], None],
        record: StepRecord,
    ) -> list[Instruction]:
        """Sample candidates and choose; note weights and features in the record.

        The choice is drawn from (seed, step, query), so it is the same after a resume and on any rank.

        Args:
            module: Has the teacher, the seed and the count of steps.
            queries: Any number.
            samples: Instructions to choose for a query, K.
            on_done: Called with each chosen instruction and its index in the result.
            record: Of this rank's step.

        Returns:
            ``len(queries) * samples`` instructions; the K of a query are neighbours.
        """
        width = samples * self.candidates
        written = sample_distinct(module.teacher, queries, width, module.resample)
        seen = features(module.teacher, written, width).view(len(queries), samples, self.candidates, _SIZE)
        chances = self.probabilities(seen)
        chosen: list[int] = []
        for query, rows in zip(queries, chances.tolist(), strict=True):
            draw = random.Random(f"screen {module.seed} {module.trained_steps} {query.id}")
            chosen += [draw.choices(range(self.candidates), row)[0] for row in rows]
        places = torch.tensor(chosen, dtype=torch.long).view(len(queries), samples, 1)
        record.weights = (1 / (self.candidates * chances.gather(2, places)[..., 0])).float()
        record.features = seen.gather(2, places[..., None].expand(-1, -1, -1, _SIZE))[:, :, 0]
        asked = [written[group * self.candidates + j] for group, j in enumerate(chosen)]
        for place, instruction in enumerate(asked):
            on_done(place, instruction)
        return asked

    def probabilities(self, seen: Tensor) -> Tensor:
        """Return the probability of each candidate [..., candidates] by its features [..., candidates, features]."""
        promise = torch.zeros(seen.shape[:-1], dtype=torch.float64)
        if self._answers >= _LEAST and self._squares > 0:
            spread = math.sqrt(self._squares / self._answers)
            promise = seen @ self._coefficients() / (self.temperature * spread)
        return self.explore / seen.shape[-2] + (1 - self.explore) * promise.softmax(dim=-1)

    def _coefficients(self) -> Tensor:
        ridge = max(self.ridge * float(self._normal.trace()) / max(1, self._answers), 1e-12)
        factor = torch.linalg.cholesky(self._normal + ridge * torch.eye(_SIZE, dtype=torch.float64))
        return torch.cholesky_solve(self._vector[:, None], factor)[:, 0]

    def __call__(self, step: StepRecord, rewards: Tensor, advantages: Tensor) -> Tensor:
        """Learn from the answers of a step of all ranks, and return its advantages times their importance weights.

        Args:
            step: Has weights and features.
            rewards: [queries, samples] less penalties; NaN where unknown.
            advantages: [queries, samples].
        """
        assert step.features is not None
        assert step.weights is not None
        known = ~rewards.isnan()
        y = _centered(rewards.double()[..., None], known)
        x = _centered(step.features, known)
        self._answers += len(y)
        self._squares += float(y.square().sum())
        self._normal += x.T @ x
        self._vector += (x.T @ y)[:, 0]
        return advantages * step.weights

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the regression."""
        sums = {"normal": self._normal.clone(), "vector": self._vector.clone()}
        return {"answers": self._answers, "squares": self._squares} | sums

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the sums.

        Raises:
            ValueError: If they are not what a run saved.
        """
        try:
            self._answers, self._squares = state_dict["answers"], float(state_dict["squares"])
            for name in ("normal", "vector"):
                sums = state_dict[name].to("cpu", torch.float64, copy=True)
                if sums.shape != getattr(self, f"_{name}").shape:
                    raise ValueError("another number of features")
                setattr(self, f"_{name}", sums)
            if type(self._answers) is not int or self._answers < 0 or not 0 <= self._squares < math.inf:
                raise ValueError("numbers out of range")
            if not self._coefficients().isfinite().all():
                raise ValueError("sums that are not finite")
        except RuntimeError as error:
            raise ValueError(f"no sums: {error}") from error


def _centered(values: Tensor, known: Tensor) -> Tensor:
    """Return the known rows [rows, n] of values [queries, samples, n], less the mean of those of the same query."""
    mask = known[..., None]
    mean = torch.where(mask, values, 0.0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (values - mean)[known & (known.sum(dim=1, keepdim=True) > 1)]


@torch.no_grad()
def features(teacher: Teacher, instructions: Sequence[Instruction], batch: int) -> Tensor:
    """Return what a screen sees of instructions, [instructions, 64] in float64 on the CPU.

    Args:
        teacher: Its base reads them.
        instructions: From `Teacher.sample`.
        batch: Instructions read at once; if they are those of one query, the result does not depend on other queries.
    """
    found = [torch.empty(0, _SIZE, dtype=torch.float64)]
    with teacher.untrained() as network:
        for start in range(0, len(instructions), batch):
            rows = instructions[start : start + batch]
            tokens = [z.prompt_ids for z in rows], [z.token_ids for z in rows]
            states, _, mask, _ = continuation_states(network, *tokens, int(teacher.tokenizer.pad_token_id))
            total = torch.where(mask[..., None], states.float(), 0.0).sum(dim=1)
            mean = (total / mask.sum(dim=1, keepdim=True)).double().cpu()
            matrix = torch.randn(mean.shape[1], _SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            found.append((mean @ matrix / math.sqrt(mean.shape[1])).nan_to_num(0.0, 0.0, 0.0))
    return torch.cat(found)
