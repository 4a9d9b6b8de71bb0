"""Does a gate keep the harm of a teacher that was made harmful on purpose under the level asked for?

    python benchmarks/gate.py --rows compare/rows.jsonl --teacher teacher/best

The rows are those of a `wst compare` with the arms "no instruction", "untrained teacher" and "trained teacher", one
student, and the teacher is the trained one. It is made harmful: for three queries in ten it gives the untrained
teacher's instruction instead. Nothing is answered again. `choose` is repeated on random halves of the rows, validation
and test: how often is the share of test rows made worse above the level, and what remains of the gain?
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from wst import Instruction, Query
from wst.inference import Instructor
from wst.inference.gate import choose

HARMFUL = 0.3  #: share of queries with an instruction of the untrained teacher


def spoilt(path: Path, teacher: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return confidences, rewards and unaided rewards [3, queries] of the teacher that was made harmful."""
    arms: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        arms[row["arm"]][row["id"]] = row
    unaided = arms["no instruction"]
    names = ("untrained teacher", "trained teacher")
    given = [arms[names[random.Random(name).random() > HARMFUL]][name] for name in unaided]
    instructor = Instructor.from_pretrained(teacher, "cpu")
    own = instructor._loaded()
    written = []
    for row in given:
        words = own.tokenizer(row["instruction"], add_special_tokens=False)["input_ids"]
        end = () if row["instruction_truncated"] else own.end_ids[:1]
        written.append(Instruction(row["instruction"], own.encode(Query(row["id"], row["query"])), (*words, *end)))
    batches = [written[start : start + 50] for start in range(0, len(written), 50)]
    confidences = [value for batch in batches for value in instructor.confidences(batch)]
    rewards = [[row["reward"] for row in rows] for rows in (given, unaided.values())]
    return np.array([confidences, *rewards], dtype=np.float64)


def repeated(rows: np.ndarray[Any, np.dtype[np.float64]], harm: float, repetitions: int) -> dict[str, Any]:
    """Choose gates on random halves; return how often the other half keeps the level, and what remains of the gain."""
    confidences, change = rows[0], rows[1] - rows[2]
    chance = np.random.default_rng(0)
    harms, instructed, gains = [], [], []
    for _ in range(repetitions):
        val, test = np.array_split(chance.permutation(len(change)), 2)
        gate = choose(*rows[:, val].tolist(), harm=harm)
        opened = confidences[test] >= gate.threshold
        harms.append(float(np.mean(opened & (change[test] < 0))))
        instructed.append(float(np.mean(opened)))
        gains.append(float(np.mean(opened * change[test])))
    return {
        "level": harm,
        "kept in": f"{sum(share <= harm for share in harms)} of {repetitions}",
        "made worse: mean, largest": [round(float(np.mean(harms)), 3), round(max(harms), 3)],
        "instructed": round(float(np.mean(instructed)), 3),
        "gain": round(float(np.mean(gains)), 3),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="rows.jsonl of a comparison")
    parser.add_argument("--teacher", required=True, help="the trained teacher's folder")
    parser.add_argument("--repetitions", type=int, default=200)
    options = parser.parse_args()
    rows = spoilt(options.rows, options.teacher)
    change = rows[1] - rows[2]
    always = {"unaided": np.mean(rows[2]), "gain": np.mean(change), "made worse": np.mean(change < 0)}
    right = (rows[1] >= rows[2])[np.argsort(-rows[0])]
    always["gain if it knew what harms"] = np.mean(np.maximum(change, 0))
    always["harmless among the more confident half"] = np.mean(right[: len(right) // 2])
    print("without a gate", json.dumps({key: round(float(value), 3) for key, value in always.items()}))
    for harm in (0.05, 0.1):
        print(json.dumps(repeated(rows, harm, options.repetitions)))


if __name__ == "__main__":
    main()
