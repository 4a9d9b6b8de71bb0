"""Judges for tests: a scripted student and the shortest possible rubrics."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from wst.rewards import Reward
from wst.rewards.base import score
from wst.students.base import Student
from wst.types import Prompt, Query, Response, Rollout

NAN = math.nan


class Jury(Student):
    """Answers with a function of the prompt's turns; records the batches it was asked."""

    deterministic = True

    def __init__(self, says: Callable[[list[str]], str | Response]) -> None:
        self.says = says
        self.batches: list[list[Prompt]] = []
        self.events: list[object] = []

    def setup(self, device: torch.device) -> None:
        self.events.append(device)

    def check(self) -> None:
        self.events.append("check")

    def close(self) -> None:
        self.events.append("close")

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.batches.append(list(prompts))
        said = [self.says([message.content for message in prompt.messages]) for prompt in prompts]
        return [Response(answer) if isinstance(answer, str) else answer for answer in said]


def rollout(response: str, unaided: str | None = None, target: str | None = None) -> Rollout:
    query = Query(f"row of {response}", "Tell me.", target=target)
    return Rollout(query, None, Response(response), None if unaided is None else Response(unaided))


def rewards(reward: Reward, *rollouts: Rollout) -> Any:
    return pytest.approx(score(reward, rollouts).total, nan_ok=True)


ONE, PAIR = "<{response}>", "<{response_a} {response_b}>"  #: the shortest rubrics


def inside(text: str) -> str:
    """Return what was filled into one of the shortest rubrics."""
    return text.split("<", 1)[1].split(">", 1)[0]


def asked(jury: Jury) -> list[str]:
    """Return the last turn of every prompt that the jury was asked."""
    return [prompt.messages[-1].content for batch in jury.batches for prompt in batch]
