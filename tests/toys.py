"""Students and rewards small enough to follow by hand; tests name them in configs too (`toys.Parrot`)."""

import math
import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
from lightning import Callback, Trainer

from wst import Prompt, Response, Reward, Rollout, Student


class Parrot(Student):
    """Answers with the last turn it is given; counts what it is asked."""

    deterministic = True

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response(prompt.messages[0].content, tokens=1) for prompt in prompts]


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


class OneTooMany(Reward):
    """Gives one reward too many."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [0.0] * (len(rollouts) + 1)


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
