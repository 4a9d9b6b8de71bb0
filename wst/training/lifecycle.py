"""What happens around the training steps: set-up, seeds, counting and skipping of steps, checkpoint state."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.cli import instantiate_module
from lightning.pytorch.utilities import rank_zero_warn

from wst.distributed import check_strategy, collective_errors
from wst.environment import Environment
from wst.errors import ConfigError, ModelError, WSTError
from wst.modeling.loading import resolve_device
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward
from wst.students.base import Student
from wst.teacher import Teacher
from wst.training.baselines import Baseline
from wst.training.checkpoint import AtomicCheckpointIO, TrainedWeightsOnly
from wst.training.lightning_internals import is_fitting
from wst.training.record import StepRecord
from wst.training.remembered import flat, harmless, listed, nested, settings_in
from wst.types import Query


def _of_environment(name: str) -> Any:  # noqa: ANN401 - a property
    """Return a property that stands for an attribute of the environment, so that an assignment takes effect."""
    return property(attrgetter(f"environment.{name}"), lambda module, value: setattr(module.environment, name, value))


def check_trainer(trainer: Trainer) -> None:
    """Refuse what Lightning can only do where it optimizes by itself, with the names of our own settings.

    Raises:
        ConfigError: If the trainer clips or accumulates gradients, or looks for a learning rate.
    """
    if trainer.state.fn != "fit":
        return
    if trainer.gradient_clip_val:
        raise ConfigError(
            f"trainer: gradient_clip_val={trainer.gradient_clip_val} has no effect here; leave it out, and set "
            f"gradient_clip={trainer.gradient_clip_val} of the model (wst.WeakToStrong)"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ConfigError(
            f"trainer: accumulate_grad_batches={trainer.accumulate_grad_batches} has no effect here; leave it out, and "
            "set batch_size of the data for more queries a step, and micro_batch_size of the model for less memory"
        )
    if any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError(
            "trainer: the learning rate finder goes by the loss, which is no measure of progress in policy gradients; "
            "leave it out, set lr of the optimizer (1e-4 is usual), and compare val/reward of short runs"
        )


class TrainingLifecycle(TrainedWeightsOnly):
    """Loads a teacher and its environment, counts the teacher's steps, and resumes them exactly."""

    trained = "teacher"
    checkpoint_keys = ("baseline.",)

    teacher: Teacher
    environment: Environment
    student: Student = _of_environment("student")
    reward: Reward = _of_environment("reward")
    student_prompt: StudentPrompt = _of_environment("prompt")
    baseline: Baseline
    update: Any  #: a `PolicyUpdate`, whose file imports this one
    resample: int
    leak_penalty: float
    max_skips: int
    resume_changed: bool

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # several backward passes, one for each micro-batch
        self.seed: int | None = None  #: of the run, from its first step on
        self._skips = 0  #: steps in a row without an update
        self._before_step: list[tuple[Any, Any]] = []  #: what learns from rewards, and its state before this step
        self.memories: dict[str, Any] = {}  #: what else is part of checkpoints, with `state_dict`, by name

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - any attribute
        if name in ("student", "reward"):  # torch would register a module without asking the property
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # ------------------------------------------------------------------- set-up

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        *,
        trust_checkpoint: bool = False,
        **settings: Any,  # noqa: ANN401 - those of the constructor
    ) -> Self:
        """Build a module, and load a checkpoint's weights and state into it.

        A checkpoint may come from a stranger, so no code in it is run, and the classes, models and addresses that it
        names are not used: ``teacher``, ``student`` and ``reward`` are yours to give. Of the other settings, the number
        of samples and the student's prompt are taken from it, unless they are given.

        Args:
            checkpoint_path: A file that a fit has written.
            map_location: Device of the teacher; None: the GPU if there is one.
            trust_checkpoint: Whether to build whatever it names and is not given.
            settings: Arguments of the constructor.

        Raises:
            ConfigError: If the file is not there, or an argument is missing.
            ModelError: If it holds something else than a fit writes, or is of another teacher.
        """
        if not Path(checkpoint_path).is_file():
            raise ConfigError(f"checkpoint {str(checkpoint_path)!r}: no such file; give one that a fit has written")
        checkpoint = AtomicCheckpointIO().load_checkpoint(checkpoint_path, map_location="cpu")
        saved = settings_in(checkpoint)
        if trust_checkpoint and saved:
            named = {name: value for name, value in checkpoint["hyper_parameters"].items() if name != "_instantiator"}
            module = _build(cls, named | settings)
        else:
            if missing := [name for name in ("teacher", "student", "reward") if name not in settings]:
                raise ConfigError(
                    f"checkpoint: {' and '.join(missing)} must be given: what it names is not used unless you say "
                    f"trust_checkpoint=True: {listed(saved) or 'nothing, since it was made from Python'}"
                )
            taken = nested(harmless(saved or flat(checkpoint.get("hyper_parameters") or {})))
            taken.pop("teacher", None)
            if isinstance(taken.get("student_prompt"), dict):
                taken["student_prompt"] = StudentPrompt(**taken["student_prompt"])
            module = cls(**taken | settings)
        module.teacher.load(resolve_device("auto") if map_location is None else torch.device(map_location))
        module.on_load_checkpoint(dict(checkpoint))
        module.load_state_dict(checkpoint["state_dict"])
        return module

    def setup(self, stage: str) -> None:
        """Check that all models are available, before any of them is loaded.

        Raises:
            ConfigError: If the trainer's strategy shards the model.
            ModelError: If a model is not available.
        """
        with collective_errors():
            check_strategy(self.trainer)
            self.teacher.check()
            self.environment.check()

    def configure_model(self) -> None:
        """Load teacher, student and reward onto this rank's device. Called in every stage."""
        device = self.trainer.strategy.root_device
        with collective_errors():
            self.teacher.load(device)
            self.environment.setup(device)
        self.exclude_frozen_from_ddp()

    def on_fit_start(self) -> None:
        """Calibrate the reward, if it needs it."""
        self._calibrate("train")

    def on_train_start(self) -> None:
        """Check what a checkpoint brought, and make the supervised phase, if there is one and it was not made yet."""
        super().on_train_start()
        if (replay := self.memories.get("replay")) is not None:
            replay.check(self.teacher.policy.get_input_embeddings().num_embeddings)
        warm_start = self.memories.get("warm_start")
        if warm_start is None or warm_start.done or self.trained_steps:
            return
        queries = self._training_queries("train")
        if not queries:
            raise ConfigError("warm_start: it needs the training queries of a data module; give one")
        self.seed_everything("warm start")
        warm_start(self, queries)

    def on_train_batch_start(self, batch: Any, *_: Any, **__: Any) -> None:  # noqa: ANN401 - as Lightning has it
        """Check that the data are queries.

        Raises:
            ConfigError: If a batch is no list of them.
        """
        if not isinstance(batch, list) or not all(isinstance(query, Query) for query in batch):
            raise ConfigError(
                f"data: a batch must be a list of wst.Query, got {batch!r:.80}; give the trainer a wst.QueryDataModule "
                "(QueryDataModule.from_records takes lists, frames and datasets)"
            )

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = on_train_batch_start

    def on_validation_start(self) -> None:
        """Calibrate the reward, if it needs it and no fit has done so."""
        self._calibrate("val")

    def on_predict_start(self) -> None:
        """Say so if the teacher is untrained."""
        if self.is_untrained:
            rank_zero_warn("predict: the teacher is untrained; for a trained one give --ckpt_path (last, best, a file)")

    def _calibrate(self, stage: str) -> None:
        """Calibrate the reward on queries of the training set, or without one, on those of the stage."""
        reward = self.environment.reward
        if not reward.calibration_size:  # 0 once it is calibrated, and after a checkpoint that holds a calibration
            return
        queries = self._training_queries(stage)[: reward.calibration_size]
        if not queries:
            raise ConfigError(f"reward {type(reward).__name__}: it is calibrated on queries of a data module; give one")
        self.environment.calibrate(queries)

    def _training_queries(self, stage: str) -> Sequence[Query]:
        """Return the training queries, without any those of the stage, without a data module none."""
        queries = getattr(cast(Any, self.trainer).datamodule, "queries", None)  # of a `QueryDataModule`
        if not callable(queries):
            return []
        return queries("train") or queries(stage)

    def teardown(self, stage: str) -> None:
        """Release what student and reward hold."""
        self.environment.close()

    @property
    def is_untrained(self) -> bool:
        """Whether nothing was trained, and nothing trained was loaded."""
        return not self.trained_steps and self.teacher.adapter is None

    # -------------------------------------------------------------------- steps

    def begin_step(self) -> StepRecord:
        """Start a training step, with randomness derived from (seed, step, rank) so that a resumed run is the same."""
        self.seed_everything(str(self.trained_steps))
        parts = filter(None, (self.baseline, self.memories.get("screen")))
        self._before_step = [(part, copy.deepcopy(part.state_dict())) for part in parts]
        return StepRecord()

    def put_back(self) -> None:
        """Forget the rewards of a step that has not ended, if there is one: after a resume it is made again."""
        for part, state in self._before_step:
            part.load_state_dict(state)
        self._before_step = []

    def seed_everything(self, moment: str) -> None:
        """Derive randomness from (seed, moment, rank)."""
        self.environment.begin_step()
        if self.seed is None:
            self.seed = torch.initial_seed() % 2**32
        key = f"{self.seed}/{moment}/{self.global_rank}"
        derived = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        random.seed(derived)
        np.random.seed(derived)  # a user's reward may draw from it
        torch.manual_seed(derived)

    @contextmanager
    def phase(self, record: StepRecord, name: str, communicates: bool = False) -> Iterator[None]:
        """Time a phase for the record and Lightning's profiler, and raise an error of one rank in all of them.

        Args:
            record: Its ``seconds`` are added to.
            name: Name of the phase.
            communicates: Whether the ranks communicate inside. An error of one rank is then raised by the part that
                communicates, and no exchange of errors follows at the end, in which another rank might wait for ever.
        """
        errors = nullcontext() if communicates else collective_errors()
        profiler = cast(Any, self.trainer).profiler
        with errors, record.clock(name), profiler.profile(f"[WeakToStrong]{name}"):
            yield

    def close_step(self, fault: str | None, kind: type[WSTError], remedy: str) -> None:
        """Count a step that made its update, or one that did not.

        Args:
            fault: Why no update was made; None if one was.
            kind: The error that ends the run after ``max_skips`` steps in a row without an update.
            remedy: What the user can do.

        Raises:
            WSTError: Of that kind, in all ranks.
        """
        if fault is None:
            self._skips, self._before_step = 0, []
            self.trained_steps += 1
            return
        fault = f"step {self.trained_steps + 1}: {fault}"
        self._skips += 1
        if self._skips >= self.max_skips:
            with collective_errors():
                raise kind(f"{fault}: no update, in step {self._skips} in a row; {remedy}, then resume")
        self._before_step = []
        rank_zero_warn(f"{fault}; this step makes no update")

    # -------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the trained weights, the baseline's and the reward's state, the count of steps and the seed."""
        super().on_save_checkpoint(checkpoint)
        state: dict[str, Any] = checkpoint["wst"]
        state |= {"seed": self.seed, "teacher": self.teacher.fixed_settings()}
        if reward := self.environment.reward.state_dict():
            state["reward"] = reward
        if self.memories:
            state["memories"] = {name: memory.state_dict() for name, memory in self.memories.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the count of steps, the seed and the reward's state.

        Raises:
            ConfigError: If a run would continue with another teacher than it began with.
            ModelError: If the checkpoint holds something else than a run saves.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get("wst", {})
        memories, seed = state.get("memories", {}), state.get("seed")
        if not isinstance(memories, Mapping) or type(seed) not in (int, type(None)):
            raise ModelError("checkpoint: its state cannot be read; give one that `wst fit` wrote")
        if is_fitting(self):
            with collective_errors():
                self._compare_teachers(state.get("teacher", {}))
        self.seed = seed
        restored = {name: (self.memories[name], memories[name]) for name in memories if name in self.memories}
        if "reward" in state:
            restored["reward"] = self.environment.reward, state["reward"]
        for name, (part, saved) in restored.items():
            try:
                part.load_state_dict(saved)
            except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
                raise ModelError(f"checkpoint: its {name} cannot be read; give one that `wst fit` wrote") from error

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
            raise ConfigError(f"{fault}; set it back, or model.init_args.resume_changed to true to resume anyway")
        rank_zero_warn(f"{fault}; resuming anyway")


def _build(cls: type[Any], settings: dict[str, Any]) -> Any:  # noqa: ANN401 - of that class
    """Build a module with settings that name classes.

    Raises:
        ConfigError: If there is no such class, or one does not take its settings.
    """
    try:
        return instantiate_module(cls, settings)
    except WSTError:
        raise
    except Exception as error:  # of jsonargparse, and of any class's module and constructor
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"checkpoint: what it names cannot be built ({said:.400}); give teacher, student and reward yourself, "
            "without trust_checkpoint"
        ) from error


def _short(setting: Any) -> str:  # noqa: ANN401 - what JSON knows
    shown = json.dumps(setting, ensure_ascii=False)
    return shown if len(shown) <= 120 else f"{shown[:117]}..."
