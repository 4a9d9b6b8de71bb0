"""GEPA (arXiv 2507.19457) on a task of `calls.py`: one sentence for all queries, with as many student calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gepa
from gepa.core.adapter import EvaluationBatch, GEPAAdapter
from gepa.utils.stop_condition import MaxCandidateProposalsStopper

import wst
from wst.environment import Environment
from wst.types import Instruction, Message, Prompt, Query, Rollout

_PART = "instruction"


@dataclass(frozen=True)
class Found:
    """A sentence, and the calls after which it was GEPA's best by its validation queries."""

    calls: int
    sentence: str


class Adapter(GEPAAdapter[Query, Rollout, str]):
    """Asks our student, and scores with our reward.

    Args:
        environment: Student, reward, and how the student's prompt is built.
    """

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    def evaluate(
        self, batch: list[Query], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Rollout, str]:
        """Ask for an answer to each query under the candidate's sentence."""
        rollouts = self.environment.respond(batch, [Instruction(candidate[_PART])] * len(batch))
        rewards = [float(reward) for reward in self.environment.score(rollouts).total]
        answers = [rollout.response.text for rollout in rollouts]
        return EvaluationBatch(answers, rewards, list(rollouts) if capture_traces else None)

    def make_reflective_dataset(
        self,
        candidate: dict[str, str],
        eval_batch: EvaluationBatch[Rollout, str],
        components_to_update: list[str],
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Show each query with the answer, the reward and the right answer."""
        rows = [
            {
                "Inputs": rollout.query.text,
                "Generated Outputs": rollout.response.text,
                "Feedback": f"Score {reward:.2f}. The right answer is: {rollout.query.target}",
            }
            for rollout, reward in zip(eval_batch.trajectories or (), eval_batch.scores, strict=True)
        ]
        return {part: rows for part in components_to_update}


def reflector(model: str, device: Any) -> Callable[[str | list[dict[str, Any]]], str]:  # noqa: ANN401
    """Return a function that asks a local model to reflect.

    Args:
        model: The teacher's base, or the student itself.
        device: Where it is loaded.
    """
    writer = wst.LocalStudent(model, max_new_tokens=64, temperature=1.0, max_prompt_tokens=1536)
    writer.setup(device)

    def reflect(prompt: str | list[dict[str, Any]]) -> str:
        text = prompt if isinstance(prompt, str) else "\n\n".join(str(turn["content"]) for turn in prompt)
        return writer.respond([Prompt((Message("user", text),))])[0].text

    return reflect


def search(
    environment: Environment,
    train: Sequence[Query],
    first: str,
    calls: int,
    reflect: Callable[[str | list[dict[str, Any]]], str],
    seed: int,
) -> list[Found]:
    """Return the best sentence over the calls, the earliest first.

    GEPA's own settings: minibatches of 3, parents from the Pareto front, a full validation of what did better on its
    minibatch. It validates on 24 training queries, and reflects on the others.

    Args:
        environment: Student, reward, and how the student's prompt is built.
        train: Training queries.
        first: The sentence that the search begins with.
        calls: Answers that the search may ask for.
        reflect: The model that reflects.
        seed: Of the search.
    """
    result = gepa.optimize(
        {_PART: first},
        list(train[24:]),
        list(train[:24]),
        adapter=Adapter(environment),
        reflection_lm=reflect,
        reflection_minibatch_size=3,
        max_metric_calls=calls,
        # A model that proposes what it has proposed before spends no calls, and would never end.
        stop_callbacks=MaxCandidateProposalsStopper(calls),
        cache_evaluation=True,
        logger=_Silent(),
        seed=seed,
    )
    found: list[Found] = []
    best = float("-inf")
    for candidate, spent, score in zip(
        result.candidates, result.discovery_eval_counts, result.val_aggregate_scores, strict=True
    ):
        if score > best:
            best = score
            found.append(Found(spent, candidate[_PART]))
    return found


class _Silent:
    def log(self, message: str) -> None:
        """Say nothing."""
