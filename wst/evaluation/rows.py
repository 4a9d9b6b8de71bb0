"""The rows of an evaluation: one for every query, arm and student. All figures are computed from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wst.errors import DataError
from wst.evaluation.metrics import json_number
from wst.rewards.base import Scores
from wst.types import Rollout, rollout_row

Row = dict[str, Any]  #: One line of ``rows.jsonl``; docs/compare.md lists its keys.

NONE = "no instruction"  #: Name of the arm that all other arms are compared with.
UNTRAINED = "untrained teacher"  #: Name of the arm of the teacher before training.

STUDENT = "student"  #: Name of the student of `wst test`.

#: Arms of `wst test`: the name each is logged under, its name in the rows, and its kind.
TEST_ARMS = {
    "unaided": (NONE, "none"),
    "untrained": (UNTRAINED, "untrained"),
    "trained": ("trained teacher", "trained"),
}

_REQUIRED = {"student", "arm", "kind", "id", "query", "instruction", "response", "reward"}


def result_rows(
    student: str, arms: Sequence[tuple[str, str]], rollouts: Sequence[Rollout], scores: Scores, leaks: Sequence[float]
) -> list[Row]:
    """Return one row for each rollout.

    Args:
        student: Name of the student.
        arms: Name and kind of each arm; see `wst.evaluation.instructors.Arm`.
        rollouts: The responses, [arms * queries], arm after arm.
        scores: Their rewards; the parts of a composite reward become keys ``reward/NAME``.
        leaks: [arms * queries], as `Reward.leaks` returns them.
    """
    rows = []
    for i, rollout in enumerate(rollouts):
        arm, kind = arms[i * len(arms) // len(rollouts)]
        history = [{"role": turn.role, "content": turn.content} for turn in rollout.query.history]
        rows.append(
            {"student": student, "arm": arm, "kind": kind}
            | rollout_row(rollout)
            | ({"history": history} if history else {})
            | {
                "instruction_truncated": rollout.instruction is not None and rollout.instruction.truncated,
                "response_tokens": rollout.response.tokens,
                "reward": json_number(scores.total[i]),
                "leak": json_number(leaks[i]),
                "error": rollout.response.error,
            }
            | {f"reward/{name}": json_number(values[i]) for name, values in scores.parts.items()}
        )
    return rows


def read_rows(path: Path) -> list[Row]:
    """Read a ``rows.jsonl``.

    Raises:
        DataError: If the file cannot be read, a line is not a JSON object, or a key is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the rows.jsonl of `wst compare` or `wst test`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read, or is not UTF-8 ({error}); give the rows.jsonl of `wst compare` or `wst test`"
        ) from error
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); correct or remove the line") from error
        missing = sorted(_REQUIRED - set(row)) if isinstance(row, dict) else sorted(_REQUIRED)
        if missing:
            raise DataError(
                f"{path}, line {number}: no {', '.join(missing)}; give the rows.jsonl of `wst compare` or `wst test`"
            )
        if not isinstance(row["reward"], int | float | None) or isinstance(row["reward"], bool):
            raise DataError(f"{path}, line {number}: reward must be a number or null, got {row['reward']!r:.40}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows
