"""The best static sentence: is an instruction for each query needed at all?

Sentences race on training queries by successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943): each round
spends an equal share of the student calls on the sentences that are left, all on the same new queries, and keeps the
better half by the mean over all rounds so far.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from wst.environment import Environment
from wst.errors import ConfigError, DataError, StudentStopped
from wst.terminal import printable, show
from wst.types import Instruction, Query


@dataclass(frozen=True)
class Standing:
    """A sentence at the end of a race.

    Attributes:
        sentence: The instruction.
        reward: Mean reward over the queries it was tried on; NaN if none could be scored.
        tried: Number of queries it was tried on.
    """

    sentence: str
    reward: float
    tried: int


@dataclass(frozen=True)
class Race:
    """A finished race.

    Attributes:
        standings: All sentences, the winner first.
        calls: Student calls spent.
    """

    standings: list[Standing]
    calls: int

    @property
    def winner(self) -> str:
        """The best sentence."""
        return self.standings[0].sentence


def race(
    sentences: Sequence[str], queries: Sequence[Query], environment: Environment, budget: int, seed: int = 0
) -> Race:
    """Race sentences under a budget of student calls.

    Args:
        sentences: Different instructions that are not blank, at least one.
        queries: Training queries; they are drawn in a random order, and again from the start when all were used.
        environment: Student and reward, both set up.
        budget: Student calls at most, those without an instruction included where the reward needs them.
        seed: Makes the order of the queries.

    Raises:
        ConfigError: If the budget does not give each sentence a query in the first round.
        DataError: If there are no queries.
        StudentStopped: If no answer of a round could be scored.
    """
    remaining = list(dict.fromkeys(sentences))
    if not remaining or any(not sentence.strip() for sentence in remaining):
        raise ConfigError("distil: give at least one sentence, none of them blank")
    if not queries:
        raise DataError("distil: there are no training queries to race sentences on")
    unaided = int(environment.reward.needs_unaided)
    rounds = check_budget(budget, len(remaining), unaided)
    order = random.Random(seed).sample(range(len(queries)), len(queries))
    rewards: dict[str, list[float]] = {sentence: [] for sentence in remaining}
    used = calls = 0
    for n in range(rounds):
        share = budget // rounds // (len(remaining) + unaided)
        drawn = [queries[order[(used + i) % len(order)]] for i in range(share)]
        used += share
        asked = [query for _ in remaining for query in drawn]
        rollouts = environment.respond(asked, [Instruction(sentence) for sentence in remaining for _ in drawn])
        scores = environment.score(rollouts).total
        calls += len(rollouts) + unaided * share
        if all(map(math.isnan, scores)):
            fault = next((rollout.response.error for rollout in rollouts if rollout.response.error), "no reward")
            raise StudentStopped(f"distil: no answer of round {n + 1} could be scored ({fault}); see to the student")
        for place, sentence in enumerate(remaining):
            rewards[sentence] += scores[place * share : (place + 1) * share]
        remaining = sorted(remaining, key=lambda sentence: -_mean(rewards[sentence], worst=True))
        show(
            f"race: round {n + 1} of {rounds}, {calls} calls, {len(remaining)} sentences, the best so far "
            f"{_mean(rewards[remaining[0]]):.3f}: {printable(remaining[0], 80)}"
        )
        remaining = remaining[: math.ceil(len(remaining) / 2)]
    last = {sentence: place for place, sentence in enumerate(remaining)}
    ranked = sorted(rewards, key=lambda s: (last.get(s, len(last)), -len(rewards[s]), -_mean(rewards[s], worst=True)))
    return Race([Standing(s, _mean(rewards[s]), len(rewards[s])) for s in ranked], calls)


def check_budget(budget: int, sentences: int, unaided: int = 0) -> int:
    """Return the number of rounds of a race.

    Args:
        budget: Student calls at most.
        sentences: Number of sentences.
        unaided: Answers without an instruction for each query.

    Raises:
        ConfigError: If the budget does not give each sentence a query in each round.
    """
    rounds = max(1, math.ceil(math.log2(sentences)))
    if budget < (least := rounds * (sentences + unaided)):
        raise ConfigError(
            f"distil: a budget of {budget} calls is too small for {sentences} sentences in {rounds} rounds; give at "
            f"least {least}, or fewer sentences"
        )
    return rounds


def _mean(rewards: Sequence[float], worst: bool = False) -> float:
    """Return the mean of what is not NaN; of nothing, NaN, or, where it is to be sorted by, the worst."""
    mean = float(torch.tensor(list(rewards)).nanmean())
    return -math.inf if worst and math.isnan(mean) else mean
