"""What a test finds: each arm's rewards, the trained teacher's gains, and what they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from wst.evaluation.metrics import PairedRewards, gain_by_length, json_number, nan_mean
from wst.rewards.base import Scores
from wst.training.record import ARMS
from wst.types import Rollout


def arm_rows(rollouts: list[Rollout], scores: Scores, leaks: list[float]) -> dict[str, dict[str, Any]]:
    """Part what was found of all arms, one after the other as in `ARMS`, into the arms."""
    answers = [rollout.response for rollout in rollouts]
    words = [float(len(answer.text.split())) if answer.error is None else math.nan for answer in answers]
    n = len(rollouts) // len(ARMS)
    rows = {arm: slice(i * n, (i + 1) * n) for i, arm in enumerate(ARMS)}
    return {
        arm: {
            "rollouts": rollouts[part],
            "rewards": scores.total[part],
            "words": words[part],
            "leaks": leaks[part],
            "parts": {name: values[part] for name, values in scores.parts.items()},
        }
        for arm, part in rows.items()
    }


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join what processes found, lists and dicts of lists; one that had nothing to do may lack keys."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping):
                whole[key] = joined([whole.get(key, {}), value])
            else:
                whole[key] = whole.get(key, []) + value
    return whole


class ArmResults:
    """Collects the rows of a test. Every process is told of all of them, so that there is nothing to synchronise."""

    def __init__(self) -> None:
        self.rewards, self.words = (PairedRewards(ARMS, sync_on_compute=False) for _ in range(2))
        self._leaks: dict[str, list[float]] = {arm: [] for arm in ARMS[1:]}

    def add(self, arms: Mapping[str, Mapping[str, Any]]) -> None:
        """Take the rows of a batch, by arm as `arm_rows` gives them."""
        for metric, name in ((self.rewards, "rewards"), (self.words, "words")):
            metric.update(torch.tensor([arms[arm][name] for arm in ARMS]).T)
        for arm, found in self._leaks.items():
            found += arms[arm]["leaks"]

    def means(self) -> dict[str, float]:
        """Give what is logged: each arm's mean reward, and how often its instructions held the answer."""
        rewards = {arm: estimate.mean for arm, estimate in self.rewards.compute().items()}
        return rewards | {f"leak/{arm}": share for arm, share in self.leak_shares().items()}

    def leak_shares(self) -> dict[str, float]:
        """Share of each arm's instructions that held the gold answer; empty where there are no gold answers."""
        shares = {arm: float(nan_mean(torch.tensor(found))) for arm, found in self._leaks.items() if found}
        return {arm: share for arm, share in shares.items() if not math.isnan(share)}

    def to_dict(self) -> dict[str, Any]:
        """Give the content of ``results.json``; `wst.callbacks.TestReport` explains it."""
        others = {f"trained_vs_{over}": over for over in ARMS[:2]}
        rewards, words = self.rewards, self.words
        by_length = {
            name: gain_by_length(rewards.pair("trained", over), words.pair("trained", over))
            for name, over in others.items()
        }
        return {
            "n": rewards.n,
            "arms": {arm: estimate.to_dict() for arm, estimate in rewards.compute().items()},
            "gain": {name: rewards.gain("trained", over).to_dict() for name, over in others.items()},
            "relative_gain": {n: json_number(rewards.relative_gain("trained", over)) for n, over in others.items()},
            "leak": self.leak_shares(),
            "words": {arm: json_number(estimate.mean) for arm, estimate in words.compute().items()},
            "gain_by_length": {name: json_number(part) for name, part in by_length.items()},
        }
