"""The rows of an evaluation: one for every query, arm and student. All figures are computed from them."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wst.environment import Environment
from wst.errors import DataError
from wst.evaluation.metrics import json_number
from wst.rewards.base import LARGEST, Scores
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

_TEXTS = ("student", "arm", "kind", "id", "query", "response")
_REQUIRED = {*_TEXTS, "instruction", "reward"}
_NUMBERS = ("reward", "leak", "response_tokens", "truncated", "instruction_truncated")


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


def score_once(environment: Environment, rollouts: Sequence[Rollout], known: dict[Any, tuple[float, Any]]) -> Scores:
    """Score rollouts, equal responses to a query once: scored in another batch, they would differ by float noise.

    Args:
        environment: Scores what is not known.
        rollouts: [n]
        known: Rewards and parts by query and response; the new ones are added. Share it between the arms of a student.
    """

    def key(rollout: Rollout) -> Any:  # noqa: ANN401
        instruction = rollout.instruction if environment.reward.reads_instruction else None
        response = rollout.response
        return rollout.query.id, response.text, response.truncated, response.refused, response.error, instruction

    missing: dict[Any, Rollout] = {}
    for rollout in rollouts:
        if key(rollout) not in known:
            missing.setdefault(key(rollout), rollout)
    scores = environment.score(list(missing.values()))
    for i, new in enumerate(missing):
        known[new] = scores.total[i], {name: values[i] for name, values in scores.parts.items()}
    found = [known[key(rollout)] for rollout in rollouts]
    names = dict.fromkeys(name for _, parts in found for name in parts)
    return Scores([r for r, _ in found], {name: [parts.get(name, math.nan) for _, parts in found] for name in names})


def read_rows(path: Path) -> list[Row]:
    """Read a ``rows.jsonl``, plain or gzipped (``.gz``).

    Raises:
        DataError: If the file cannot be read, a line is not a JSON object, or a key is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the rows.jsonl of `wst compare` or `wst test`")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read, or is not UTF-8 ({error}); give the rows.jsonl of `wst compare` or `wst test`"
        ) from error
    rows: list[Row] = []
    seen: set[tuple[str, str, str]] = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); correct or remove the line") from error
        missing = sorted(_REQUIRED - set(row)) if isinstance(row, dict) else sorted(_REQUIRED)
        if missing:
            raise DataError(
                f"{path}, line {number}: no {', '.join(missing)}; give the rows.jsonl of `wst compare` or `wst test`"
            )
        if fault := _fault(row):
            raise DataError(f"{path}, line {number}: {fault}")
        what = row["student"], row["arm"], row["id"]
        if what in seen:
            raise DataError(
                f"{path}, line {number}: a second row of student {what[0]!r:.60}, arm {what[1]!r:.60}, id "
                f"{what[2]!r:.60}; remove one of them"
            )
        seen.add(what)
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def _fault(row: Row) -> str | None:
    """Return which value of a row has the wrong type."""
    for key, value in row.items():
        if key in _TEXTS and not isinstance(value, str):
            return f"{key} must be a text, got {value!r:.40}"
        several = key == "target" and isinstance(value, list) and all(isinstance(answer, str) for answer in value)
        if key in ("instruction", "target", "error") and not several and not isinstance(value, str | None):
            kinds = "a text, a list of texts" if key == "target" else "a text"
            return f"{key} must be {kinds} or null, got {value!r:.40}"
        number = (
            isinstance(value, int | float)
            and abs(value) <= LARGEST
            and not (key == "reward" and isinstance(value, bool))
        )
        if (key in _NUMBERS or key.startswith("reward/")) and value is not None and not number:
            return f"{key} must be a number or null, got {value!r:.40}"
    turns = row.get("history", [])
    if not isinstance(turns, list) or any(
        not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in turns
    ):
        return "history must be a list of turns with role and content"
    return None
