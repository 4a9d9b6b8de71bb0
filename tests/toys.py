"""Students and rewards small enough to follow by hand; tests name them in configs too (`toys.Parrot`)."""

import json
import math
import os
import resource
import shutil
import signal
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from wst import (
    Instruction,
    LoRA,
    Prompt,
    Query,
    QueryDataModule,
    Response,
    Reward,
    Rollout,
    Student,
    Teacher,
    TeacherPrompt,
    WeakToStrong,
)
from wst.data.datamodule import Split
from wst.errors import StudentStopped
from wst.modeling.logprobs import LogProbs


class Forgetful(Student):
    """Answers with the first turn it is given."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [Response(prompt.messages[0].content, tokens=1) for prompt in prompts]


class Parrot(Forgetful):
    """Counts what it is asked."""

    deterministic = True

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return super().respond(prompts)


class MoodyParrot(Parrot):
    """A parrot whose answers are not to be remembered."""

    deterministic = False


class FailingParrot(Parrot):
    """Fails on every second prompt."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [r if i % 2 else Response("", error="timeout") for i, r in enumerate(super().respond(prompts))]


class TooFew(Student):
    """Forgets one answer."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [Response("x")] * (len(prompts) - 1)


class Lowercase(Reward):
    """Share of lower-case letters in the answer."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [sum(map(str.islower, r.response.text)) / max(len(r.response.text), 1) for r in rollouts]


class Silent(Reward):
    """Can score nothing."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [math.nan] * len(rollouts)


class Alike(Reward):
    """Gives all answers to a query the same reward, no sum of which is exact in float32."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.1 + 0.2 * len(r.query.text) for r in rollouts]


class OneQuery(Lowercase):
    """Tells the answers to the query q0 apart, and no others."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [x if r.query.id == "q0" else 0.3 for x, r in zip(super().score(rollouts), rollouts, strict=True)]


class OneTooMany(Reward):
    """Gives one reward too many."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.0] * (len(rollouts) + 1)


class Even(Reward):
    """Whether the answer's characters add up to an even number: nothing that can be learnt."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(zlib.crc32(r.response.text.encode()) % 2) for r in rollouts]


class StopsInProcess1(Parrot):
    """Can answer for four steps; then the process of rank 1 must stop."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        if os.environ["RANK"] == "1" and len(self.asked) >= 21:  # 2 + 2 + 1 queries of three samples, and 2 after them
            raise StudentStopped("the budget is spent")
        return super().respond(prompts)


class ScoresOnlyInProcess1(Lowercase):
    """Can score nothing in any other process."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return super().score(rollouts) if os.environ["RANK"] == "1" else [math.nan] * len(rollouts)


class SeededTeacher(Teacher):
    """Samples for each query by a seed of its own, so that it does not matter which process does it."""

    def sample(self, queries: Sequence[Query], samples: int = 1, greedy: bool = False, **_: Any) -> list[Instruction]:
        written: list[Instruction] = []
        for query in queries:
            torch.manual_seed(zlib.crc32(query.id.encode()))
            written += super().sample([query], samples, greedy)
        return written


class Network(torch.nn.Module):
    """Stands for a student that someone made a module of."""


class KillAt(Callback):
    """Kills its own process with SIGKILL in a hook, once so many steps were made."""

    def __init__(self, step: int, hook: str) -> None:
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class SignalAt(Callback):
    """Sends its own process a signal in a hook, once so many steps were made."""

    def __init__(self, step: int, number: int, hook: str = "on_train_batch_end", times: int = 1) -> None:
        self.step = step
        self.number = number
        self.times = times
        setattr(self, hook, self._send)

    def _send(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


class RemoveLogs(Callback):
    """Removes the log folder after a step, as someone tidying up would."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            shutil.rmtree(str(trainer.log_dir))


class OtherQueriesInProcess1(QueryDataModule):
    """Has as many queries of other names in process 1, as where a file was changed on one of several machines."""

    def load(self, split: Split) -> Sequence[Query]:
        queries = super().load(split)
        return (
            [replace(query, id=f"{query.id}, changed") for query in queries] if os.environ["RANK"] == "1" else queries
        )


class StopsAloneInProcess1(Callback):
    """Ends process 1 alone in a hook, in a way after which a run is saved; the others know nothing of it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._stop)

    def _stop(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_rank == 1:
            raise StudentStopped("only here")


class Poisoned(Callback):
    """Makes the gradient of some steps infinite."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        pl_module.teacher.poisoned = trainer.fit_loop.epoch_loop._batches_that_stepped in self.steps


class PoisonedTeacher(Teacher):
    """Its log-probabilities of a third of the instructions are no numbers while it is poisoned."""

    poisoned = False

    @staticmethod
    def hits(text: str) -> bool:
        return zlib.crc32(text.encode()) % 3 == 0

    def log_probs(
        self, instructions: Sequence[Instruction], entropy: bool = False, entropy_gradient: bool = False
    ) -> LogProbs:
        found = super().log_probs(instructions, entropy)
        if not self.poisoned:
            return found
        bad = torch.tensor([[math.nan if self.hits(z.text) else 0.0] for z in instructions])
        return replace(found, values=found.values + bad)


class OutOfMemory(Parrot):
    """Runs out of GPU memory at its third batch, in one process."""

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank
        self.batches = 0

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.batches += 1
        if self.batches == 3 and os.environ.get("RANK", "0") == str(self.rank):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nA second line.")
        return super().respond(prompts)


class Watch(Callback):
    """Writes down memory, open files and the time of each step."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.began = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        seconds = time.perf_counter() - self.began
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        row = {"step": trainer.global_step, "seconds": seconds, "memory": memory}
        with open(self.path, "a") as file:
            file.write(json.dumps(row | {"files": len(os.listdir("/proc/self/fd"))}) + "\n")


class SixQueries(QueryDataModule):
    """Six queries per split, which differ in their share of lower-case letters; none to predict on."""

    def load(self, split: Split) -> list[Query]:
        return [] if split == "predict" else [Query(f"{split}{i}", f"{split} {10**i}") for i in range(6)]


def small_module(
    model: str,
    student: Student | None = None,
    reward: Reward | None = None,
    teacher: type[Teacher] = Teacher,
    **settings: Any,
) -> WeakToStrong:
    """Return a module with a small teacher on ``model``, seeded."""
    torch.manual_seed(0)
    policy = teacher(model, TeacherPrompt("{query}"), LoRA(4, 8), dtype="float32", max_new_tokens=4)
    return WeakToStrong(policy, student or Parrot(), reward or Lowercase(), **{"samples_per_query": 2} | settings)
