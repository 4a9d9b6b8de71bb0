"""The score that all clients of `clients.py` share: does the answer hold the label, in whatever case?

Read by `wst test`, and beside its task by lm-eval; inspect's `includes` scorer has the same rule.
"""

from __future__ import annotations

from typing import Any


def holds(answer: str, label: str) -> float:
    """Return 1.0 if the answer holds the label, else 0.0."""
    return float(label.lower() in answer.lower())


def right(rollouts: Any) -> list[float]:  # noqa: ANN401 - wst's rollouts, which lm-eval's environment does not know
    """Return the reward of each rollout."""
    return [holds(rollout.response.text, rollout.query.target) for rollout in rollouts]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Return lm-eval's metric of one row."""
    return {"right": holds(results[0], doc["label"])}
