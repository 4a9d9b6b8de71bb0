"""What the student answers on its own: the measure that every gain is taken from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from wst.distributed import collective_errors, gather, local_share
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward, Scores, score
from wst.students.base import Student, respond
from wst.types import Query, Response, Rollout


class UnaidedAnswers:
    """Unaided answers and their rewards. A deterministic student is asked once for each query, others in each step.

    Args:
        student: Answers.
        reward: Scores.
        prompt: Makes the student's prompt.
    """

    def __init__(self, student: Student, reward: Reward, prompt: StudentPrompt) -> None:
        self.student = student
        self.reward = reward
        self.prompt = prompt
        self._responses: dict[str, Response] = {}
        self._rewards: dict[str, float] = {}

    def begin_step(self) -> None:
        """Forget what a student that samples answered in the step before."""
        if not self.student.deterministic:
            self._responses, self._rewards = {}, {}

    def prefetch(self, queries: Sequence[Query]) -> None:
        """Let a student that works in the background begin."""
        for query in queries:
            if query.id not in self._responses:
                self.student.prefetch(self.prompt(query, None))

    def responses(self, queries: Sequence[Query]) -> dict[str, Response]:
        """What the student answers, by query id."""
        answers = dict(self._responses)
        new = [query for query in queries if query.id not in answers]
        if new:
            found = respond(self.student, [self.prompt(query, None) for query in new])
            answers |= dict(zip([query.id for query in new], found, strict=True))
            # What failed is asked for again next time.
            self._responses = {key: response for key, response in answers.items() if response.error is None}
        return {query.id: answers[query.id] for query in queries}

    def rewards(self, queries: Sequence[Query]) -> Tensor:
        """Rewards [queries]; NaN where an answer could not be scored."""
        rewards = dict(self._rewards)
        new = [query for query in queries if query.id not in rewards]
        if new:
            answers = self.responses(new)
            scores = self.score([Rollout(query, None, answers[query.id]) for query in new])
            rewards |= dict(zip([query.id for query in new], scores.total, strict=True))
            self._rewards = {key: reward for key, reward in rewards.items() if not math.isnan(reward)}
        return torch.tensor([rewards[query.id] for query in queries])

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score any rollouts; a reward that compares with the unaided answer is given it."""
        if self.reward.needs_unaided:
            own = {r.query.id: r.response for r in rollouts if r.instruction is None}
            missing = {r.query.id: r.query for r in rollouts if r.query.id not in own}
            own |= self.responses(list(missing.values()))
            rollouts = [replace(rollout, unaided=own[rollout.query.id]) for rollout in rollouts]
        return score(self.reward, rollouts)

    def calibrate(self, queries: Sequence[Query]) -> None:
        """Show the reward what the student answers; of several processes, each asks for its part of it."""
        with collective_errors():
            answers = self.responses(local_share(queries))
        for found in gather(answers):
            answers |= found
        self.reward.calibrate([Rollout(query, None, answers[query.id], answers[query.id]) for query in queries])
