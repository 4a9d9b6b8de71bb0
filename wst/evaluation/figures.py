"""The figures of a comparison, computed from its rows alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics import MeanMetric

from wst.errors import DataError
from wst.evaluation.instructors import NONE
from wst.evaluation.metrics import PairedRewards, holm

SCHEMA = "wst.compare/1"

_NEEDED = {"student", "arm", "kind", "id", "query", "instruction", "response", "reward"}

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Read ``rows.jsonl``.

    Raises:
        DataError: If the file is not there, a line is not JSON, or a field is missing.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give the rows.jsonl that `wst compare` wrote")
    rows: list[Row] = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read, or is not UTF-8 ({error}); give the rows.jsonl of `wst compare`"
        ) from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); mend or remove the line") from error
        missing = sorted(_NEEDED - set(row)) if isinstance(row, dict) else sorted(_NEEDED)
        if missing:
            raise DataError(f"{path}, line {number}: no {', '.join(missing)}; give the rows.jsonl of `wst compare`")
        if not isinstance(row["reward"], int | float | None) or isinstance(row["reward"], bool):
            raise DataError(f"{path}, line {number}: reward must be a number or null, got {row['reward']!r:.40}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: holds no rows")
    return rows


def figures(rows: Sequence[Row], extra: dict[str, Any], resamples: int = 10_000) -> dict[str, Any]:
    """Compute ``results.json``; docs/compare.md has its schema.

    Args:
        rows: As in ``rows.jsonl``.
        extra: What the rows cannot tell: ``arms`` and ``students`` with errors and accounts, ``curve``.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value.
    """
    kinds = {name: arm["kind"] for name, arm in extra.get("arms", {}).items()}
    for row in rows:
        kinds.setdefault(row["arm"], row["kind"])
    told_arms = extra.get("arms", {})
    told = extra.get("students", {})
    names = list(dict.fromkeys([*told, *(row["student"] for row in rows)]))
    students = {name: _student(name, rows, kinds, told.get(name) or {}, resamples) for name in names}
    binary = all(row["reward"] in (0, 1, None) for row in rows)
    return {
        "schema": SCHEMA,
        "n": len({row["id"] for row in rows}),
        "right_or_wrong": binary,
        "arms": {
            name: {"kind": kind} | {field: told_arms.get(name, {}).get(field) for field in ("error", "writing")}
            for name, kind in kinds.items()
        },
        "students": students,
        "summary": {name: summary(name, entry, kinds, binary) for name, entry in students.items()},
        "curve": extra.get("curve"),
        "inputs": extra,
    }


def _student(
    name: str, rows: Sequence[Row], kinds: dict[str, str], told: dict[str, Any], resamples: int
) -> dict[str, Any]:
    mine: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["student"] == name:
            mine.setdefault(row["arm"], {})[row["id"]] = row
    arms = [arm for arm in kinds if arm in mine]
    ids = list(dict.fromkeys(id_ for arm in arms for id_ in mine[arm]))
    table = torch.full((len(ids), len(arms)), math.nan, dtype=torch.float64)
    for j, arm in enumerate(arms):
        for i, id_ in enumerate(ids):
            reward = mine[arm].get(id_, {}).get("reward")
            if reward is not None:
                table[i, j] = reward
    metric = PairedRewards(arms, resamples)
    metric.update(table)
    estimates = metric.compute() if arms else {}
    fixed = [arm for arm in arms if kinds[arm] == "fixed" and not math.isnan(estimates[arm].mean)]
    # By the gain, which is over the queries that both have a reward for: what failed must not decide.
    height = {arm: metric.gain(arm, NONE).mean if NONE in arms else estimates[arm].mean for arm in fixed}
    best_fixed = max(fixed, key=height.__getitem__, default=None)
    cells: dict[str, Any] = {}
    for arm in arms:
        cells[arm] = _lengths(list(mine[arm].values()))
        cells[arm] |= {"mean": _json(estimates[arm].mean), "ci95": estimates[arm].to_dict()["ci95"]}
        cells[arm] |= {"relative_gain": None, "help": None, "harm": None}
        if NONE in arms and arm != NONE:
            moves = metric.moves(arm, NONE)
            cells[arm] |= {"help": _json(moves.better), "harm": _json(moves.worse)}
            cells[arm]["relative_gain"] = _json(metric.relative_gain(arm, NONE))
        cells[arm] |= _accounts(told.get("accounts", {}).get(arm))
        cells[arm]["error"] = (told.get("errors") or {}).get(arm)
    for field, over in (("vs_unaided", NONE if NONE in arms else None), ("vs_best_fixed", best_fixed)):
        others = [arm for arm in arms if over is not None and arm not in (over, NONE)]
        p_values = [metric.p_value(arm, str(over)) for arm in others]
        for arm in arms:
            cells[arm][field] = None
        for arm, p, adjusted in zip(others, p_values, holm(p_values), strict=True):
            gain = metric.gain(arm, str(over)).to_dict()
            cells[arm][field] = gain | {"p": _json(p), "p_holm": _json(adjusted)}
    for arm, error in (told.get("errors") or {}).items():
        cells.setdefault(arm, {"n": 0, "mean": None, "error": error})
    return {"error": told.get("error"), "best_fixed": best_fixed, "arms": cells}


def _lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """Shares and lengths of an arm's rows, as means over those that have them."""
    with_instruction = [row for row in rows if row["instruction"] is not None]
    answered = [row for row in rows if not row.get("error")]
    return {
        "n": len(rows),
        "scored": sum(row["reward"] is not None for row in rows),
        "failed": len(rows) - len(answered),
        "leak": _mean([row.get("leak") for row in with_instruction]),
        "instruction_words": _mean([len(row["instruction"].split()) for row in with_instruction]),
        "instruction_truncated": _mean([row.get("instruction_truncated") for row in with_instruction]),
        "response_words": _mean([len(row["response"].split()) for row in answered]),
        "response_tokens": _mean([row.get("response_tokens") or None for row in answered]),
        "response_truncated": _mean([row.get("truncated") for row in answered]),
    }


def _mean(values: Sequence[float | bool | None]) -> float | None:
    known = torch.tensor([float(value) for value in values if value is not None], dtype=torch.float64)
    if not len(known):
        return None
    metric = MeanMetric().set_dtype(torch.float64)
    metric.update(known)
    return float(metric.compute())


def _accounts(figures: dict[str, Any] | None) -> dict[str, Any]:
    figures = figures or {}
    return {"calls": figures.get("calls"), "cost": figures.get("cost")}


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value


def summary(student: str, entry: dict[str, Any], kinds: dict[str, str], binary: bool) -> str:
    """Say in plain words who instructs a student best, how sure that is, and who harms it."""
    if entry["error"]:
        return f"{student} could not be asked: {entry['error']}"
    cells = {arm: cell for arm, cell in entry["arms"].items() if cell["mean"] is not None}
    if NONE not in cells or len(cells) < 2:
        return f"There is nothing to compare for {student}."
    unaided = cells[NONE]["mean"]
    others = [arm for arm in cells if arm != NONE]
    shown = [arm for arm in others if _shown(cells[arm]["vs_unaided"])]
    better = [arm for arm in shown if cells[arm]["vs_unaided"]["mean"] > 0]
    worse = [arm for arm in shown if cells[arm]["vs_unaided"]["mean"] < 0]
    if better:
        text = _praise(student, max(better, key=lambda arm: cells[arm]["mean"]), cells, kinds, binary)
    elif len(worse) == len(others):
        return f"Every instructor makes {student} worse than no instruction, whose mean reward is {unaided:.3f}."
    else:
        best = max(others, key=lambda arm: cells[arm]["mean"])
        text = (
            f"No instructor is shown to make {student} better: the highest mean reward is that of "
            f"{_called(best, kinds)}, {cells[best]['mean']:.3f}{_within(cells[best])}, against {unaided:.3f} with no "
            "instruction"
        )
    if worse:
        text += f". Worse than no instruction: {', '.join(_called(arm, kinds) for arm in worse)}"
    return text + "."


def _praise(student: str, best: str, cells: dict[str, Any], kinds: dict[str, str], binary: bool) -> str:
    cell, name = cells[best], _called(best, kinds)
    text = (
        f"{name[0].upper()}{name[1:]} instructs {student} best: mean reward {cell['mean']:.3f}{_within(cell)}, against "
        f"{cells[NONE]['mean']:.3f} with no instruction"
    )
    if binary:
        text += f"; it puts {cell['help']:.0%} of the answers right that were wrong, and {cell['harm']:.0%} wrong"
    over = cell["vs_best_fixed"]
    if over is not None:
        beats = _shown(over) and over["mean"] > 0
        text += f". It {'beats' if beats else 'is not shown to beat'} the best fixed instruction ({over['mean']:+.3f})"
    if cell["leak"] is not None and cell["leak"] >= 0.005:
        text += f". {cell['leak']:.0%} of its instructions hold the answer already"
    return text


def _shown(difference: dict[str, Any] | None) -> bool:
    return difference is not None and difference["p_holm"] is not None and difference["p_holm"] < 0.05


def _within(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"]
    return "" if low is None else f" (95% interval {low:.3f} to {high:.3f})"


def _called(arm: str, kinds: dict[str, str]) -> str:
    return f"the fixed instruction “{arm}”" if kinds[arm] == "fixed" else arm
