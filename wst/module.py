"""The method: sample instructions, let the student answer, score the answers, and move the teacher.

Weak-to-Strong Transfer (Ge, Li, Huang 2025, arXiv 2508.16741) as REINFORCE with a baseline (Williams 1992). What the
paper leaves open is a setting here: the baseline, the KL to the untrained teacher, the normalization of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from wst.callbacks import USUAL, missing
from wst.distributed import collective_errors, gather, gather_rows
from wst.environment import Environment
from wst.errors import ConfigError, Diverged, StudentStopped
from wst.evaluation.figures import arm_means, figures
from wst.evaluation.instructors import check_finite
from wst.evaluation.rows import STUDENT, TEST_ARMS, Row, result_rows, score_once
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward
from wst.settings import check_arguments, check_counts
from wst.students.base import Student
from wst.teacher import Teacher
from wst.training.baselines import Baseline, LeaveOneOut
from wst.training.checkpoint import check_functions
from wst.training.exploration import sample_distinct
from wst.training.lifecycle import TrainingLifecycle, check_trainer
from wst.training.objective import Normalization, whiten
from wst.training.record import StepRecord
from wst.training.replay import Replay
from wst.training.screen import Screen
from wst.training.update import PolicyUpdate
from wst.training.warm_start import WarmStart
from wst.types import Instruction, Query, Rollout


class WeakToStrong(TrainingLifecycle):
    """Trains a teacher to instruct a frozen student.

    Student and reward are plain objects; of both, checkpoints hold nothing but the reward's `state_dict` (calibration).

    Args:
        teacher: The policy.
        student: Answers the prompts; it is never trained.
        reward: Scores the answers.
        baseline: What a reward is compared with; None for `LeaveOneOut`.
        student_prompt: Builds the student's prompt from query and instruction; None for the default prompt.
        samples_per_query: Instructions sampled for each query, K.
        micro_batch_size: Rollouts in one backward pass; None for all of a step. It changes memory, not the gradient.
        normalization: Whether the loss, summed over all ranks' rollouts of a step, is divided by the number of their
            sampled "tokens" or of "sequences" (rollouts).
        leak_penalty: Subtracted from the reward of an instruction that contains the gold answer (`Reward.leaks`);
            logged rewards are without it.
        kl_coef: Weight of the KL (nats a sequence, `sequence_kl`) to the teacher before training, subtracted from the
            reward and without gradient of its own. At 0 there is no reference pass.
        entropy_coef: Weight of the entropy bonus.
        entropy_steps: Steps over which that weight falls linearly to 0; None: it is constant.
        resample: How often an instruction that its query has already is sampled again, see `sample_distinct`.
        replay: Lets answers take part in further updates, with importance weights; None: each in one.
        screen: Chooses, of more instructions than are asked for, those worth the student's answer; None: no choice.
        warm_start: A supervised phase before the first step; None: none.
        whiten_advantages: Whether to center and scale the advantages of a step.
        max_failed: Largest share of answers that may fail in a step; with more, the step makes no update.
        max_skips: Steps in a row without an update (failed answers, a loss that is not finite) that end the run.
        gradient_clip: Largest norm of the gradient; None for no clipping.
        optimizer: Builds the optimizer from the trainable parameters.
        lr_scheduler: Builds the scheduler, which moves once a step; None for a constant rate.
        resume_changed: Whether a run may continue with another teacher (model, prompt, limits) than it began with.

    Raises:
        ConfigError: If a setting is out of range, or settings do not fit each other.
    """

    def __init__(
        self,
        teacher: Teacher,
        student: Student,
        reward: Reward,
        baseline: Baseline | None = None,
        student_prompt: StudentPrompt | None = None,
        samples_per_query: int = 4,
        micro_batch_size: int | None = None,
        normalization: Normalization = "tokens",
        leak_penalty: float = 0.0,
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        entropy_steps: int | None = None,
        resample: int = 0,
        replay: Replay | None = None,
        screen: Screen | None = None,
        warm_start: WarmStart | None = None,
        whiten_advantages: bool = False,
        max_failed: float = 0.5,
        max_skips: int = 5,
        gradient_clip: float | None = 1.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        resume_changed: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(WeakToStrong, locals())
        self.save_plain_hyperparameters()
        self.teacher = teacher
        self.environment = Environment(student, reward, student_prompt)
        self.baseline = baseline or LeaveOneOut()
        objective = (normalization, entropy_coef, gradient_clip, entropy_steps)
        self.update = PolicyUpdate(teacher, micro_batch_size, *objective, replay)
        self.resample = resample
        self.screen = screen
        memories = {"replay": replay, "screen": screen, "warm_start": warm_start, "experience": teacher.experience}
        self.memories = {name: memory for name, memory in memories.items() if memory is not None}  #: in checkpoints
        self.samples_per_query = samples_per_query
        self.leak_penalty = leak_penalty
        self.kl_coef = kl_coef
        self.whiten_advantages = whiten_advantages
        self.max_failed = max_failed
        self.max_skips = max_skips
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.resume_changed = resume_changed
        self._validated = False  #: whether the last validation had a reward
        self.test_rows: list[Row] = []  #: rows of the last test, of all ranks
        self._check_settings()

    def _check_settings(self) -> None:
        check_counts("WeakToStrong", samples_per_query=self.samples_per_query, max_skips=self.max_skips)
        check_functions(self.make_optimizer, self.make_scheduler)
        self.baseline.check(self.samples_per_query)
        if self.screen is not None:
            self.screen.check(self.samples_per_query)
        check_counts("WeakToStrong", 0, resample=self.resample)
        amounts = {"leak_penalty": self.leak_penalty, "kl_coef": self.kl_coef, "entropy_coef": self.update.entropy_coef}
        for name, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise ConfigError(f"{name} must be a finite number of at least 0, got {amount!r}")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed is a share, from 0 to 1, got {self.max_failed!r}")

    # --------------------------------------------------------------- the method

    def training_step(self, queries: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        """Make one policy-gradient step of all ranks, each with its own queries, possibly none."""
        own = self.begin_step()
        with self.phase(own, "sample"):
            if self.baseline.needs_unaided or self.reward.needs_unaided:
                self.environment.prefetch_unaided(queries)
            instructions = self.instruct(queries, self.samples_per_query, record=own)
        with self.phase(own, "respond"):
            repeated = [query for query in queries for _ in range(self.samples_per_query)]
            own.rollouts = self.environment.respond(
                repeated, instructions, self._draws(len(queries), self.samples_per_query)
            )
        if self._skip_if_failed(own):
            return {"record": StepRecord.joined(gather(own))}
        with self.phase(own, "score"):
            own.rewards, own.parts = self._scores(own.rollouts)
            own.leaks = self._table(self.environment.leaks(own.rollouts))
        with self.phase(own, "respond"):
            own.unaided = self.environment.unaided_rewards(queries) if self.baseline.needs_unaided else None
        with self.phase(own, "update"):
            own.kl, log_probs = self.update.kl(instructions, self.samples_per_query) if self.kl_coef else (None, None)
        step, mine = StepRecord.of_all_ranks(own)
        with self.phase(step, "update", communicates=True):
            step.advantages = self.advantages(step)
            fault = self.update(self, instructions, step.advantages[mine], step, log_probs)
        self.close_step(fault, Diverged, "lower the learning rate")
        return {"record": step}

    def advantages(self, step: StepRecord) -> Tensor:
        """Compute the advantages [queries, samples] of a step: a = r' - b(r') with r' = r - λ·leak - β·KL.

        λ is ``leak_penalty``, β is ``kl_coef``, b the baseline, which returns a: 0 where r is NaN, and still 0 after
        `whiten`. A leak of NaN counts as 0. A screen learns from r', and multiplies a by its importance weights.
        """
        penalty = self.leak_penalty * cast(Tensor, step.leaks).nan_to_num()
        if step.kl is not None:
            penalty += self.kl_coef * step.kl
        advantages: Tensor = self.baseline(step.rewards - penalty, step.unaided, step.queries)
        if self.whiten_advantages:
            advantages = whiten(advantages, ~step.rewards.isnan())
        return advantages if self.screen is None else self.screen(step, step.rewards - penalty, advantages)

    def instruct(
        self, queries: Sequence[Query], samples: int = 1, greedy: bool = False, record: StepRecord | None = None
    ) -> list[Instruction]:
        """Let the teacher write; a student that works in the background answers what is finished meanwhile."""
        draws = [0] * (len(queries) * samples) if greedy else self._draws(len(queries), samples)

        def done(place: int, instruction: Instruction) -> None:
            self.environment.prefetch(queries[place // samples], instruction, draws[place])

        if greedy:
            return self.teacher.sample(queries, samples, greedy, on_done=done)
        if self.screen is not None and record is not None:
            return self.screen.sample(self, queries, samples, done, record)
        return sample_distinct(self.teacher, queries, samples, self.resample, on_done=done)

    def _draws(self, queries: int, samples: int) -> list[int]:
        """Number the answers [queries * samples] that this step draws from the student (`Prompt.sample`).

        A step that is made again after a resume draws the same numbers, so a cache has its answers.
        """
        first = 1 + self.trained_steps * self.samples_per_query
        return [first + k for _ in range(queries) for k in range(samples)]

    def _scores(self, rollouts: Sequence[Rollout]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = self.environment.score(rollouts)
        return self._table(scores.total), {name: self._table(values) for name, values in scores.parts.items()}

    def _skip_if_failed(self, own: StepRecord) -> bool:
        """Skip the update if too many answers of all ranks failed; return whether it is skipped.

        Raises:
            StudentStopped: If `max_skips` steps in a row made no update.
        """
        answers = gather_rows([rollout.response.error for rollout in own.rollouts])
        errors = [error for error in answers if error is not None]
        own.skipped = len(errors) > self.max_failed * len(answers)
        if own.skipped:
            own.rewards = self._table([math.nan] * len(own.rollouts))
            own.advantages = torch.zeros_like(own.rewards)
            failed = f"{len(errors)} of {len(answers)} answers failed ({errors[0]})"
            self.close_step(f"{failed}, more than max_failed={self.max_failed}", StudentStopped, "see to the student")
        return own.skipped

    def _table(self, values: list[float]) -> Tensor:
        return torch.tensor(values).view(-1, self.samples_per_query)

    # --------------------------------------------------------------- evaluation

    def validation_step(self, queries: list[Query], batch_idx: int) -> dict[str, Any]:
        """Score the greedy instruction of each query, and the student without an instruction."""
        self.environment.begin_step()
        with collective_errors():
            self.environment.prefetch_unaided(queries)
            rollouts = self.environment.respond(queries, self.instruct(queries, greedy=True))
            scores = self.environment.score(rollouts)
            rewards, unaided = torch.tensor(scores.total), self.environment.unaided_rewards(queries)
            own = {"reward": rewards, "unaided": unaided, "gain": rewards - unaided}
            own["leak"] = torch.tensor(self.environment.leaks(rollouts))
            own |= {f"reward/{name}": torch.tensor(values) for name, values in scores.parts.items()}
        all_ranks = gather((rollouts, own))
        names = dict.fromkeys(name for _, tables in all_ranks for name in tables)
        every = {name: torch.cat([tables[name] for _, tables in all_ranks if name in tables]) for name in names}
        for name, values in every.items():
            if known := int((~values.isnan()).sum()):
                self.log(f"val/{name}", values.nanmean(), batch_size=known, prog_bar=name == "reward", sync_dist=False)
                self._validated |= name == "reward"
        return {"rollouts": [rollout for rollouts, _ in all_ranks for rollout in rollouts], "figures": every}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._validated = False

    def on_validation_epoch_end(self) -> None:
        """Log NaN if nothing could be scored; otherwise the previous validation's reward would be reported again."""
        if not self._validated:
            self.log("val/reward", math.nan)

    def predict_step(self, queries: list[Query], batch_idx: int) -> list[Rollout]:
        """Write the greedy instruction for each query and let the student answer under it.

        Returns:
            The rollouts of all ranks, on every rank: a writer on rank 0 needs them all.
        """
        with collective_errors():
            rollouts = self.environment.respond(queries, self.instruct(queries, greedy=True))
        return gather_rows(rollouts)

    def configure_callbacks(self) -> list[Callback]:
        """Add the callbacks of every run that the user has not added: logging, reports, orderly ends."""
        check_trainer(self.trainer)
        return missing(self.trainer, USUAL)

    # --------------------------------------------------------------------- test

    def on_test_start(self) -> None:
        """Refuse to report an untrained teacher as a trained one.

        Raises:
            ConfigError: If nothing was trained and nothing trained was loaded.
        """
        self.test_rows = []
        with collective_errors():
            if self.is_untrained:
                raise ConfigError(
                    "test: there is no trained teacher to test; give --ckpt_path (last, best or a file), or a trained "
                    "adapter as model.init_args.teacher.init_args.adapter"
                )
            check_finite(self.teacher, "teacher")
        self._calibrate("test")

    def test_step(self, queries: list[Query], batch_idx: int) -> dict[str, list[Row]]:
        """Let the student answer with no instruction, and under the untrained and the trained teacher, all greedy."""
        with collective_errors():
            self.environment.prefetch_unaided(queries)
            with self.teacher.untrained():
                untrained: list[Instruction | None] = [*self.instruct(queries, greedy=True)]
            trained = self.instruct(queries, greedy=True)
            # One call for all arms, in the order of TEST_ARMS: the student fills its batches better.
            arms = list(TEST_ARMS.values())
            rollouts = self.environment.respond(queries * len(arms), [None] * len(queries) + untrained + [*trained])
            scores, leaks = score_once(self.environment, rollouts, {}), self.environment.leaks(rollouts)
            own = result_rows(STUDENT, arms, rollouts, scores, leaks)
        self.test_rows += (rows := gather_rows(own))
        return {"rows": rows}

    def on_test_epoch_end(self) -> None:
        """Log each arm's mean reward and share of leaks; `results` has the intervals."""
        self.log_dict({f"test/{name}": mean for name, mean in arm_means(self.test_rows).items()}, sync_dist=False)

    def results(self) -> dict[str, Any]:
        """Return the figures of the last test, as in ``results.json``; docs/compare.md lists their keys."""
        return figures(self.test_rows, {})
