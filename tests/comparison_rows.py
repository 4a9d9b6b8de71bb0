"""Made-up rows, data and students for the tests of comparisons."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from toys import Parrot

from wst import FieldMap, LoRA, Prompt, QueryDataModule, Response, StudentPrompt, Teacher, TeacherPrompt
from wst.evaluation import NONE

KINDS = {NONE: "none", "fixed 1": "fixed", "fixed 2": "fixed", "teacher": "trained"}


def made_rows(scalar: bool = False, students: tuple[str, ...] = ("s",)) -> list[dict[str, Any]]:
    """Return rows of two fixed instructions and a teacher, with a failed answer and a few leaks."""
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


def reviews(folder: Path, count: int = 10) -> QueryDataModule:
    rows = [{"id": f"q{i}", "text": f"Query NUMBER {i}", "label": "yes"} for i in range(count)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QueryDataModule(test=str(path), fields=FieldMap(id="id", query="text", target="label"), eval_batch_size=4)


def tiny_teacher(model: str) -> Teacher:
    return Teacher(model, TeacherPrompt("{query}"), max_new_tokens=5, dtype="float32", lora=LoRA(r=4, alpha=8))


BEFORE = StudentPrompt(placement="before")


class Shout(Parrot):
    """Writes instructions in capitals, and counts."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response(prompt.messages[0].content.upper(), tokens=3) for prompt in prompts]


class Down(Parrot):
    """Never answers."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response("", error="connection refused") for _ in prompts]
