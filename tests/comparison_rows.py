"""Rows of a comparison, made up: two fixed instructions and a teacher, with a failed answer and a few leaks."""

from typing import Any

import numpy as np

from wst.evaluation import NONE

KINDS = {NONE: "none", "fixed 1": "fixed", "fixed 2": "fixed", "teacher": "trained"}


def made_rows(scalar: bool = False, students: tuple[str, ...] = ("s",)) -> list[dict[str, Any]]:
    generator = np.random.default_rng(1)
    rows = []
    for student in students:
        for arm, right in zip(KINDS, (0.3, 0.35, 0.2, 0.7), strict=True):
            for i in range(120):
                reward = float(generator.normal(right)) if scalar else float(generator.random() < right)
                rows.append(
                    {
                        "student": student,
                        "arm": arm,
                        "kind": KINDS[arm],
                        "id": f"q{i}",
                        "query": f"query {i}",
                        "target": "yes",
                        "instruction": None if arm == NONE else f"{arm} says hello to {i}",
                        "instruction_truncated": arm == "teacher" and i % 2 == 0,
                        "response": "a b c",
                        "response_tokens": 4,
                        "truncated": i % 4 == 0,
                        "reward": None if (arm, i) == ("teacher", 5) else reward,
                        "leak": None if arm == NONE else float(arm == "teacher" and i % 10 == 0),
                        "error": "timeout" if (arm, i) == ("teacher", 5) else None,
                    }
                )
    return rows
