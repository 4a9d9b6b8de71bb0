"""The method: sample instructions, let the student answer, score, and move the teacher.

Weak-to-Strong Transfer (Ge, Li, Huang 2025, arXiv 2508.16741) with REINFORCE and a baseline. What the paper
leaves open is a setting here: the baseline, the KL to the untrained teacher, the normalisation of the loss.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from wst.data.datamodule import QueryDataModule
from wst.distributed import check_strategy, collective_errors, gather, gather_rows, local_backward, sum_gradients
from wst.environment import UnaidedAnswers
from wst.errors import ConfigError, Diverged, StudentStopped, WSTError
from wst.evaluation.figures import arm_means, figures
from wst.evaluation.metrics import nan_mean
from wst.evaluation.rows import TEST_ARMS, Row, result_rows
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward, Scores
from wst.students.base import Student, respond
from wst.teacher import LogProbs, Teacher
from wst.training.baselines import Baseline, LeaveOneOut
from wst.training.checkpoint import TrainedWeightsOnly
from wst.training.objective import Normalization, denominator, policy_loss, sequence_kl, whiten
from wst.training.record import StepRecord
from wst.types import Instruction, Query, Rollout


class WeakToStrong(TrainedWeightsOnly):
    """Trains a teacher to instruct a frozen student.

    Student and reward are plain objects: they are never part of a checkpoint, of the optimizer or of the strategy.

    Args:
        teacher: The policy.
        student: Answers; stays as it is.
        reward: Scores the answers.
        baseline: What a reward is compared with; None: `LeaveOneOut`.
        student_prompt: How query and instruction become the student's prompt; None: the default one.
        samples_per_query: Instructions sampled for each query, K.
        micro_batch_size: Rollouts in one backward pass; None: all of a step. It changes memory, not the gradient.
        normalization: Divide the loss by the sampled "tokens" or by the number of "sequences".
        leak_penalty: Taken off the reward of an instruction that holds the gold answer already (`Reward.leaks`); logged
            rewards are those without it.
        kl_coef: Weight of the KL to the reference teacher, taken off the reward. At 0 there is no reference pass.
        entropy_coef: Weight of the entropy bonus.
        whiten_advantages: Whether to centre and scale the advantages of a step.
        max_failed: Largest share of answers that may fail in a step; with more, the step makes no update.
        max_skips: So many steps in a row that make no update, because answers failed or the loss is not a number, end
            the run.
        gradient_clip: Largest norm of the gradient; None: not clipped.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes the scheduler, which moves once a step; None: constant.
        resume_changed: Whether a run may go on with another teacher (model, prompt, limits) than it began with.

    Raises:
        ConfigError: If settings do not fit each other.
    """

    trained = "teacher"
    checkpoint_keys = ("baseline.",)

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
        whiten_advantages: bool = False,
        max_failed: float = 0.5,
        max_skips: int = 5,
        gradient_clip: float | None = 1.0,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
        resume_changed: bool = False,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        self.automatic_optimization = False  # several backward passes, one for each micro-batch
        self.teacher = teacher
        self.student = student
        self.reward = reward
        self.baseline = baseline or LeaveOneOut()
        self.student_prompt = student_prompt or StudentPrompt()
        self.unaided = UnaidedAnswers(student, reward, self.student_prompt)
        self.samples_per_query = samples_per_query
        self.micro_batch_size = micro_batch_size
        self.normalization = normalization
        self.leak_penalty = leak_penalty
        self.kl_coef = kl_coef
        self.entropy_coef = entropy_coef
        self.whiten_advantages = whiten_advantages
        self.max_failed = max_failed
        self.max_skips = max_skips
        self.gradient_clip = gradient_clip
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.resume_changed = resume_changed
        self.test_rows: list[Row] = []  #: rows of the last test, of all ranks
        self.trained_steps = 0  #: updates that the weights have behind them, over all resumes
        self._seed: int | None = None
        self._skips = 0
        self._validated = False
        self._check_settings()

    def _check_settings(self) -> None:
        for name, held in (("student", self.student), ("reward", self.reward)):
            if isinstance(held, nn.Module):
                raise ConfigError(
                    f"{name} {type(held).__name__} is a torch.nn.Module, so its weights would enter checkpoints and "
                    "optimizer; make it a plain class that keeps its model in a list or dict"
                )
        if self.samples_per_query < self.baseline.min_samples:
            raise ConfigError(
                f"samples_per_query={self.samples_per_query}: {type(self.baseline).__name__} needs at least "
                f"{self.baseline.min_samples}; raise it, or take MovingAverage or Unaided as baseline"
            )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ConfigError(f"micro_batch_size must be at least 1, or null for all rows, got {self.micro_batch_size}")
        for name in ("leak_penalty", "kl_coef", "entropy_coef"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a finite number of at least 0, got {value}")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ConfigError(f"gradient_clip must be above 0, or null for no clipping, got {self.gradient_clip}")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed is a share, from 0 to 1, got {self.max_failed}")
        if self.max_skips < 1:
            raise ConfigError(f"max_skips must be at least 1, got {self.max_skips}")
        if self.normalization not in ("tokens", "sequences"):
            raise ConfigError(f"normalization must be tokens or sequences, got {self.normalization!r}")

    # ------------------------------------------------------------- the method

    def training_step(self, queries: list[Query], batch_idx: int) -> dict[str, StepRecord]:
        """Make one policy-gradient step from a batch of queries.

        Of several processes each has queries of its own, possibly none; the step is that of all of them together.
        """
        self._seed_step()
        self.unaided.begin_step()
        own = StepRecord([], torch.empty(0), {}, torch.empty(0))
        with collective_errors(), self._phase(own, "sample"):
            if self.baseline.needs_unaided or self.reward.needs_unaided:
                self.unaided.prefetch(queries)
            instructions = self.instruct(queries, self.samples_per_query)
        with collective_errors(), self._phase(own, "respond"):
            own.rollouts = self.respond(self._per_sample(queries), instructions, self._draws(len(queries)))
        if self._too_many_failed(own):
            return {"record": StepRecord.joined(gather(own))}
        with collective_errors(), self._phase(own, "score"):
            scores = self.score(own.rollouts)
            own.leaks = self._table(self.reward.leaks(own.rollouts))
            own.rewards = self._table(scores.total)
            own.parts = {name: self._table(values) for name, values in scores.parts.items()}
        with collective_errors(), self._phase(own, "respond"):
            own.unaided = self.unaided.rewards(queries) if self.baseline.needs_unaided else None
        with collective_errors(), self._phase(own, "update"):
            own.kl, scored = self._kl(instructions)
        with self._phase(own, "update"):
            records = gather(own)
            record = StepRecord.joined(records)
            penalty = self.leak_penalty * cast(Tensor, record.leaks).nan_to_num()
            if record.kl is not None:
                penalty += self.kl_coef * record.kl
            record.advantages = self.baseline(record.rewards - penalty, record.unaided)
            if self.whiten_advantages:
                record.advantages = whiten(record.advantages, ~record.rewards.isnan())
            before = sum(len(other.rewards) for other in records[: self.global_rank])
            self._update(instructions, record.advantages[before : before + len(queries)], record, scored)
        record.seconds["update"] = own.seconds["update"]
        return {"record": record}

    @contextmanager
    def _phase(self, own: StepRecord, phase: str) -> Iterator[None]:
        """Time a phase for the record, and for Lightning's profiler if there is one."""
        with own.clock(phase), cast(Any, self.trainer).profiler.profile(f"[WeakToStrong]{phase}"):
            yield

    def _update(
        self,
        instructions: Sequence[Instruction],
        advantages: Tensor,
        record: StepRecord,
        scored: LogProbs | None = None,
    ) -> None:
        """Go one step up the gradient, the sum of what each process's rows [queries, samples] give.

        Rows that have none (advantage 0) are left out of the passes; ``scored`` is of a pass that is made already.
        """
        advantages = advantages.flatten().to(self.device)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        lengths = [len(rollout.instruction.token_ids) for rollout in record.rollouts if rollout.instruction is not None]
        scale = denominator(torch.tensor(lengths), self.normalization)
        rows = [i for i in range(len(instructions)) if self.entropy_coef or advantages[i] != 0]
        size = self.micro_batch_size or max(len(rows), 1)
        done = []
        with collective_errors(), local_backward(self.trainer):
            for micro in (rows[start : start + size] for start in range(0, len(rows), size)):
                z = scored.rows(micro) if scored else self._scored([instructions[i] for i in micro])
                loss = policy_loss(z.values, z.mask, advantages[micro], scale, z.entropy, self.entropy_coef)
                self.manual_backward(loss)
                entropy = torch.where(z.mask, cast(Tensor, z.entropy), 0.0).detach().sum()
                done.append(torch.stack([loss.detach(), entropy, z.mask.sum()]))
        sum_gradients(self.trainable())
        sums = [part for part in gather(torch.stack(done).sum(dim=0).tolist() if done else None) if part is not None]
        if sums:
            record.loss, entropy_sum, tokens = map(sum, zip(*sums, strict=True))
            record.entropy = entropy_sum / tokens
            limit = self.gradient_clip if self.gradient_clip is not None else math.inf
            record.grad_norm = float(nn.utils.clip_grad_norm_(self.trainable(), limit))
            if not math.isfinite(record.loss + record.grad_norm):
                record.skipped = True
                optimizer.zero_grad()
                self._refuse_update(instructions, advantages, scale)
                return
        self._skips = 0
        optimizer.step()
        if self.make_scheduler is not None:
            cast(LRScheduler, self.lr_schedulers()).step()
        self.trained_steps += 1

    def _scored(self, instructions: Sequence[Instruction]) -> LogProbs:
        """Log-probabilities with gradient, and entropies, with gradient where they have a weight."""
        return self.teacher.log_probs(instructions, entropy=True, entropy_gradient=self.entropy_coef > 0)

    def _refuse_update(self, instructions: Sequence[Instruction], advantages: Tensor, scale: Tensor) -> None:
        """Say which rollouts made loss or gradient something else than a number.

        Raises:
            Diverged: If it is one of too many steps in a row.
        """
        causes = []
        with collective_errors(), local_backward(self.trainer):
            for i in advantages.nonzero().flatten().tolist():
                z = self._scored([instructions[i]])
                loss = policy_loss(z.values, z.mask, advantages[[i]], scale, z.entropy, self.entropy_coef)
                self.manual_backward(loss)
                gradients = [p.grad for p in self.trainable() if p.grad is not None]
                if not all(bool(g.isfinite().all()) for g in [loss, *gradients]):
                    causes.append(instructions[i].text)
                cast(LightningOptimizer, self.optimizers()).zero_grad()
        causes = gather_rows(causes)
        named = f"instruction {causes[0]!r:.200}" if causes else "the rollouts together, none of them alone"
        more = f" and {len(causes) - 1} more" if len(causes) > 1 else ""
        fault = f"step {self.trained_steps + 1}: loss or gradient is not a number, because of {named}{more}"
        self._skip(fault, Diverged, "lower the learning rate")

    def _too_many_failed(self, own: StepRecord) -> bool:
        """Say whether this step must go without an update.

        Raises:
            StudentStopped: If it is one of too many in a row.
        """
        answers = gather_rows([rollout.response.error for rollout in own.rollouts])
        errors = [error for error in answers if error is not None]
        own.skipped = len(errors) > self.max_failed * len(answers)
        if own.skipped:
            own.rewards = self._table([math.nan] * len(own.rollouts))
            own.advantages = torch.zeros_like(own.rewards)
            failed = (
                f"{len(errors)} of {len(answers)} answers failed ({errors[0]}), more than max_failed={self.max_failed}"
            )
            self._skip(failed, StudentStopped, "see to the student")
        return own.skipped

    def _skip(self, fault: str, kind: type[WSTError], remedy: str) -> None:
        """Count a step that makes no update; whatever the reason, too many in a row end the run."""
        self._skips += 1
        if self._skips >= self.max_skips:
            with collective_errors():
                raise kind(f"{fault}: no update, in step {self._skips} in a row; {remedy}, then resume")
        rank_zero_warn(f"{fault}; this step makes no update")

    def instruct(self, queries: Sequence[Query], samples: int = 1, greedy: bool = False) -> list[Instruction]:
        """Let the teacher write; a student that works in the background answers the first ones meanwhile."""
        draws = [0] * len(queries) if greedy else self._draws(len(queries))

        def done(place: int, instruction: Instruction) -> None:
            prompt = self.student_prompt(queries[place // samples], instruction)
            self.student.prefetch(replace(prompt, sample=draws[place]))

        return self.teacher.sample(queries, samples, greedy, on_done=done)

    def _draws(self, queries: int) -> list[int]:
        """Number of each draw [queries * samples] of this step: a resumed step asks a sampled student for the same."""
        first = 1 + self.trained_steps * self.samples_per_query
        return [first + k for _ in range(queries) for k in range(self.samples_per_query)]

    def respond(
        self,
        queries: Sequence[Query],
        instructions: Sequence[Instruction | None],
        draws: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Let the student answer each query under its instruction (None: on its own); see `Prompt.sample` for draws."""
        prompts = [
            replace(self.student_prompt(query, z), sample=draw)
            for query, z, draw in zip(queries, instructions, draws or [0] * len(queries), strict=True)
        ]
        responses = respond(self.student, prompts)
        return [Rollout(*row) for row in zip(queries, instructions, responses, strict=True)]

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score rollouts; a reward that compares with the unaided answer is given it."""
        return self.unaided.score(rollouts)

    def _calibrate(self, stage: str) -> None:
        """Show the reward unaided answers to queries of the training set, or where there is none, of the stage's."""
        if not self.reward.calibration_size:
            return
        data = cast(Any, self.trainer).datamodule
        queries: Sequence[Query] = []
        if isinstance(data, QueryDataModule):
            queries = (data.queries("train") or data.queries(cast(Any, stage)))[: self.reward.calibration_size]
        if not queries:
            raise ConfigError(
                f"reward {type(self.reward).__name__}: it is calibrated on queries of a data module; give one"
            )
        self.unaided.calibrate(queries)

    def on_fit_start(self) -> None:
        """Calibrate the reward, if it asks for it."""
        self._calibrate("train")

    def on_validation_start(self) -> None:
        """Calibrate the reward, if it asks for it and no fit has done so."""
        self._calibrate("val")

    def _kl(self, instructions: Sequence[Instruction]) -> tuple[Tensor | None, LogProbs | None]:
        """KL to the reference teacher [queries, samples], or None if it has no weight.

        Where all rows are one micro-batch, the policy's pass has its gradient and is handed on to the update.
        """
        if not self.kl_coef:
            return None, None
        size = self.micro_batch_size or max(len(instructions), 1)
        whole = 0 < len(instructions) <= size
        rows, z = [torch.empty(0)], None
        for micro in (instructions[start : start + size] for start in range(0, len(instructions), size)):
            with torch.set_grad_enabled(whole):
                z = self._scored(micro) if whole else self.teacher.log_probs(micro)
            reference = self.teacher.reference_log_probs(micro).values
            rows.append(sequence_kl(z.values.detach(), reference, z.mask).cpu())
        kl = torch.cat(rows).view(len(instructions) // self.samples_per_query, self.samples_per_query)
        return kl, z if whole else None

    def _per_sample(self, queries: Sequence[Query]) -> list[Query]:
        return [query for query in queries for _ in range(self.samples_per_query)]

    def _table(self, values: list[float]) -> Tensor:
        return torch.tensor(values).view(len(values) // self.samples_per_query, self.samples_per_query)

    # ------------------------------------------------------------- evaluation

    def validation_step(self, queries: list[Query], batch_idx: int) -> dict[str, list[Rollout]]:
        """Score the greedy instruction of each query, and the student on its own."""
        self.unaided.begin_step()
        with collective_errors():
            self.unaided.prefetch(queries)
            rollouts = self.respond(queries, self.instruct(queries, greedy=True))
            scores = self.score(rollouts)
            rewards, unaided = torch.tensor(scores.total), self.unaided.rewards(queries)
            figures = {"reward": rewards, "unaided": unaided, "gain": rewards - unaided}
            figures["leak"] = torch.tensor(self.reward.leaks(rollouts))
            figures |= {f"reward/{name}": torch.tensor(values) for name, values in scores.parts.items()}
        everyone = gather((rollouts, figures))
        for name in dict.fromkeys(name for _, figures in everyone for name in figures):
            values = torch.cat([figures[name] for _, figures in everyone if name in figures])
            known = int((~values.isnan()).sum())
            if known:
                self.log(f"val/{name}", nan_mean(values), batch_size=known, prog_bar=name == "reward", sync_dist=False)
                self._validated |= name == "reward"
        return {"rollouts": [rollout for rollouts, _ in everyone for rollout in rollouts]}

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._validated = False

    def on_validation_epoch_end(self) -> None:
        """Say so where nothing could be scored: the reward before would otherwise pass for this one's."""
        if not self._validated:
            self.log("val/reward", math.nan)

    def on_test_start(self) -> None:
        """Refuse to report an untrained teacher as a trained one.

        Raises:
            ConfigError: If nothing was trained and nothing trained was loaded.
        """
        self.test_rows = []
        with collective_errors():
            if not self.trained_steps and self.teacher.adapter is None:
                raise ConfigError(
                    "test: there is no trained teacher to test; give --ckpt_path (last, best or a file), or a trained "
                    "adapter as model.init_args.teacher.init_args.adapter"
                )
        self._calibrate("test")

    def test_step(self, queries: list[Query], batch_idx: int) -> dict[str, list[Row]]:
        """Let the student answer with no instruction, and under the untrained and the trained teacher, all greedy."""
        with collective_errors():
            self.unaided.prefetch(queries)
            with self.teacher.untrained():
                untrained: list[Instruction | None] = [*self.instruct(queries, greedy=True)]
            trained = self.instruct(queries, greedy=True)
            # One call for all arms, in the order of TEST_ARMS: the student fills its batches better.
            arms = list(TEST_ARMS.values())
            rollouts = self.respond(queries * len(arms), [None] * len(queries) + untrained + [*trained])
            own = result_rows("student", arms, rollouts, self.score(rollouts), self.reward.leaks(rollouts))
        rows = gather_rows(own)
        self.test_rows += rows
        return {"rows": rows}

    def on_test_epoch_end(self) -> None:
        """Log each arm's mean reward and share of leaks; `results` has the intervals."""
        self.log_dict({f"test/{name}": mean for name, mean in arm_means(self.test_rows).items()}, sync_dist=False)

    def results(self) -> dict[str, Any]:
        """Return the figures of the last test, as in ``results.json``; docs/compare.md lists their keys."""
        return figures(self.test_rows, {})

    def predict_step(self, queries: list[Query], batch_idx: int) -> list[Rollout]:
        """Write the greedy instruction for each query and let the student answer under it."""
        with collective_errors():
            rollouts = self.respond(queries, self.instruct(queries, greedy=True))
        return gather_rows(rollouts)

    # ------------------------------------------------- set-up and checkpoints

    def setup(self, stage: str) -> None:
        """Make sure that the models are there before any of them is loaded.

        Raises:
            ConfigError: If the trainer's strategy divides the model.
            ModelError: If one is not there.
        """
        with collective_errors():
            check_strategy(self.trainer)
            for model in (self.teacher, self.student, self.reward):
                model.check()

    def configure_model(self) -> None:
        """Load teacher, student and reward onto this process's device. Called in every stage."""
        device = self.trainer.strategy.root_device
        with collective_errors():
            self.teacher.load(device)
            self.student.setup(device)
            self.reward.setup(device)
        self.exclude_frozen_from_ddp()

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - as Lightning has it
        """Make the optimizer for what is trained, and the scheduler."""
        optimizer = self.make_optimizer(self.trainable())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [self.make_scheduler(optimizer)]

    def configure_callbacks(self) -> list[Callback]:
        """Add what every run has: logged rewards, test results and predictions as files."""
        from wst import callbacks

        return callbacks.missing(self.trainer, callbacks.USUAL)

    def _seed_step(self) -> None:
        """Make this step's randomness a function of (seed, step), so that a resumed run goes on exactly as before."""
        if self._seed is None:
            self._seed = torch.initial_seed() % 2**32
        key = f"{self._seed}/{self.trained_steps}/{self.global_rank}"
        step_seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        random.seed(step_seed)
        np.random.seed(step_seed)  # a user's reward may draw from it
        torch.manual_seed(step_seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights, the baseline's state, the count of steps and the seed."""
        super().on_save_checkpoint(checkpoint)
        state: dict[str, Any] = {"trained_steps": self.trained_steps, "seed": self._seed}
        state["teacher"] = self.teacher.fixed_settings()
        if reward := self.reward.state_dict():
            state["reward"] = reward
        checkpoint["wst"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the count of steps and the seed.

        Raises:
            ConfigError: If a run is to go on with another teacher than it began with.
        """
        state = checkpoint.get("wst", {})
        if self._trainer is not None and self._trainer.state.fn == "fit":
            with collective_errors():
                self._compare_teachers(state.get("teacher", {}))
        self.trained_steps, self._seed = state.get("trained_steps", 0), state.get("seed")
        if "reward" in state:
            self.reward.load_state_dict(state["reward"])

    def _compare_teachers(self, before: dict[str, Any]) -> None:
        now = self.teacher.fixed_settings()
        changed = [
            f"{option} {_short(before[option])}, now it is {_short(now[option])}"
            for option in now
            if option in before and before[option] != now[option]
        ]
        if not changed:
            return
        fault = f"checkpoint: it was made with the teacher's {'; '.join(changed)}"
        if not self.resume_changed:
            raise ConfigError(f"{fault}; set it back, or model.init_args.resume_changed to true to go on all the same")
        rank_zero_warn(f"{fault}; going on all the same")

    def teardown(self, stage: str) -> None:
        """Let student and reward give their memory back."""
        self.student.close()
        self.reward.close()


def _short(setting: Any) -> str:  # noqa: ANN401 - what JSON knows
    shown = json.dumps(setting, ensure_ascii=False)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
