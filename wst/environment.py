"""The environment of the teacher: a frozen student that answers and a reward that scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from wst.distributed import collective_errors, gather, local_share, rank
from wst.errors import ConfigError, ContractError
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward, Scores, as_reward, score
from wst.settings import check_arguments
from wst.students.base import Student, respond
from wst.students.function import as_student
from wst.types import Instruction, Query, Response, Rollout


class Environment:
    """What an instruction is worth: the student answers under it, and the reward scores the answer.

    Training, validation, test, prediction and comparison all go through this class:

    1. `check` says early what is missing, `setup` loads student and reward, `close` releases them.
    2. `calibrate` shows the reward what the student answers without an instruction, if the reward asks for that.
    3. `begin_step` discards unaided answers of the step before, where the student samples; `prefetch` announces prompts
       to a student that works in the background.
    4. `respond` turns queries and instructions into rollouts; `score` and `leaks` turn rollouts into numbers.
    5. `unaided_responses` and `unaided_rewards` are the same for the student without an instruction.

    For unaided answers, a deterministic student is asked once a query, any other student once a query and step; one
    that failed is asked for again when it is next needed. A rollout whose call failed (``response.error``) has
    reward NaN: unknown, never 0. With several ranks, each rank passes its own queries; only `calibrate` communicates.

    Args:
        student: Answers the prompts; a function of messages becomes a `FunctionStudent`.
        reward: Scores the answers; a function of rollouts becomes a `FunctionReward`.
        prompt: Builds the student's prompt from query and instruction; None for the default prompt.

    Raises:
        ConfigError: If student or reward is a ``torch.nn.Module``, or cannot be called.
    """

    def __init__(self, student: Student, reward: Reward, prompt: StudentPrompt | None = None) -> None:
        self.prompt = prompt
        self.student = student
        self.reward = reward

    @property
    def student(self) -> Student:
        """The student; assigning another one discards what the old one answered."""
        return self._student

    @student.setter
    def student(self, student: Student) -> None:
        _refuse_module("student", student)
        self._student = as_student(student)
        self._responses: dict[tuple[object, ...], Response] = {}
        self._rewards: dict[tuple[object, ...], float] = {}

    @property
    def reward(self) -> Reward:
        """The reward; assigning another one discards what the old one scored."""
        return self._reward

    @reward.setter
    def reward(self, reward: Reward) -> None:
        _refuse_module("reward", reward)
        self._reward = as_reward(reward)
        self._rewards = {}

    @property
    def prompt(self) -> StudentPrompt:
        """The template of the student's prompt; assigning another one discards the answers under the old one."""
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: StudentPrompt | None) -> None:
        check_arguments(Environment, {"prompt": prompt})
        self._prompt = prompt or StudentPrompt()
        self._responses, self._rewards = {}, {}

    # ---------------------------------------------------------------- lifecycle

    def check(self) -> None:
        """Check that all models are available, before any of them is loaded."""
        self.student.check()
        self.reward.check()

    def setup(self, device: torch.device) -> None:
        """Load student and reward; idempotent."""
        self.student.setup(device)
        self.reward.setup(device)

    def close(self) -> None:
        """Release what `setup` took."""
        self.student.close()
        self.reward.close()

    def students(self) -> dict[str, Student]:
        """Return the student and those that the reward asks, by name."""
        return {"student": self.student, **self.reward.students()}

    def calibrate(self, queries: Sequence[Query]) -> None:
        """Show the reward what the student answers to these queries; each rank asks for a share of them.

        Rank 0 calibrates, and the others take over its state: a judge that is asked twice may say something else.

        Raises:
            ContractError: If the reward's state does not hold its calibration.
        """
        with collective_errors():
            answers = self.unaided_responses(local_share(queries))
        for found in gather(answers):
            answers |= found
        with collective_errors():
            if rank() == 0:
                self.reward.calibrate([Rollout(q, None, answers[q.id], unaided=answers[q.id]) for q in queries])
        state = gather(self.reward.state_dict())[0]
        with collective_errors():
            if rank() > 0:
                self.reward.load_state_dict(state)
                if self.reward.calibration_size:  # it is 0 once the reward is calibrated
                    raise ContractError(
                        f"{type(self.reward).__name__}: its state_dict() lacks the calibration, which checkpoints and "
                        "other processes need; return it there, and restore it in load_state_dict()"
                    )

    # ----------------------------------------------------------------- rollouts

    def begin_step(self) -> None:
        """Discard the unaided answers of the step before, unless the student is deterministic."""
        if not self.student.deterministic:
            self._responses, self._rewards = {}, {}

    def prefetch(self, query: Query, instruction: Instruction | None, draw: int = 0) -> None:
        """Announce a prompt that `respond` will ask for; a student that works in the background starts on it."""
        self.student.prefetch(replace(self.prompt(query, instruction), sample=draw))

    def prefetch_unaided(self, queries: Sequence[Query]) -> None:
        """Announce the queries whose unaided answers will be asked for."""
        for query in queries:
            if _key(query) not in self._responses:
                self.prefetch(query, None)

    def respond(
        self,
        queries: Sequence[Query],
        instructions: Sequence[Instruction | None],
        draws: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Let the student answer each query under its instruction.

        Args:
            queries: Any number.
            instructions: One a query; None for no instruction.
            draws: `Prompt.sample` of each prompt: which of several sampled answers is meant; None for 0 everywhere.

        Returns:
            One rollout a query, in order. A call that failed is a response with ``error`` set.

        Raises:
            ContractError: If the student does not return one response a prompt.
        """
        prompts = [
            replace(self.prompt(query, instruction), sample=draw)
            for query, instruction, draw in zip(queries, instructions, draws or [0] * len(queries), strict=True)
        ]
        responses = respond(self.student, prompts)
        return [Rollout(*row) for row in zip(queries, instructions, responses, strict=True)]

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score rollouts; a reward that compares with the unaided answer is given it.

        Raises:
            ContractError: If the reward does not return one number a rollout.
        """
        if self.reward.needs_unaided:
            unaided = {r.query.id: r.response for r in rollouts if r.instruction is None}
            missing = {r.query.id: r.query for r in rollouts if r.query.id not in unaided}
            unaided |= self.unaided_responses(list(missing.values()))
            rollouts = [replace(rollout, unaided=unaided[rollout.query.id]) for rollout in rollouts]
        return score(self.reward, rollouts)

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return 1.0 for each instruction that contains the gold answer, 0.0 if not, NaN if there is none."""
        return self.reward.leaks(rollouts)

    # ------------------------------------------------------------------ unaided

    def unaided_responses(self, queries: Sequence[Query]) -> dict[str, Response]:
        """Return what the student answers without an instruction, by query id."""
        answers = dict(self._responses)
        new = [query for query in queries if _key(query) not in answers]
        if new:
            found = respond(self.student, [self.prompt(query, None) for query in new])
            answers |= dict(zip(map(_key, new), found, strict=True))
            self._responses = {key: response for key, response in answers.items() if response.error is None}
        return {query.id: answers[_key(query)] for query in queries}

    def unaided_rewards(self, queries: Sequence[Query]) -> Tensor:
        """Return the rewards [queries] of the unaided answers; NaN where one could not be scored."""
        rewards = dict(self._rewards)
        new = [query for query in queries if _key(query) not in rewards]
        if new:
            answers = self.unaided_responses(new)
            scores = self.score([Rollout(query, None, answers[query.id]) for query in new])
            rewards |= dict(zip(map(_key, new), scores.total, strict=True))
            self._rewards = {key: reward for key, reward in rewards.items() if not math.isnan(reward)}
        return torch.tensor([rewards[_key(query)] for query in queries])


def _key(query: Query) -> tuple[object, ...]:
    """Return what an unaided answer belongs to: two splits may number their queries alike."""
    return query.id, query.text, query.history, query.targets


def _refuse_module(name: str, thing: object) -> None:
    if isinstance(thing, nn.Module):
        raise ConfigError(
            f"{name} {type(thing).__name__} is a torch.nn.Module, so its weights would enter checkpoints and "
            "optimizer; make it a plain class that keeps its model in a list or dict"
        )
