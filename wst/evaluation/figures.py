"""The figures of an evaluation, computed from its rows alone, and the finding in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from wst.evaluation.metrics import (
    Values,
    estimate_gain,
    estimate_mean,
    gain_by_length,
    help_and_harm,
    holm,
    json_number,
    paired_p_value,
    relative_gain,
)
from wst.evaluation.rows import NONE, STUDENT, TEST_ARMS, Row

SCHEMA = "wst.results/2"

#: Differences of rewards below this share of the range of a student's rewards are float noise and count as 0.
TOLERANCE = 1e-4

#: With fewer scored queries the summary says that they are too few.
FEW = 20

#: Fields of a cell that compare an arm with another one.
COMPARISONS = ("vs_unaided", "vs_best_fixed", "vs_untrained")


def figures(rows: Sequence[Row], extra: dict[str, Any], resamples: int = 10_000) -> dict[str, Any]:
    """Return the content of ``results.json``; docs/compare.md lists its keys.

    Args:
        rows: As in ``rows.jsonl``.
        extra: What the rows do not hold: ``arms`` and ``students`` with errors and costs, ``accounts``, ``curve``.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value.
    """
    arms = {name: {"error": None, "writing": None} | arm for name, arm in extra.get("arms", {}).items()}
    for row in rows:
        arms.setdefault(row["arm"], {"error": None, "writing": None, "kind": row["kind"]})
    kinds = {name: arm["kind"] for name, arm in arms.items()}
    ran = extra.get("students", {})
    names = dict.fromkeys([*ran, *(row["student"] for row in rows)])
    binary = all(row["reward"] in (0, 1, None) for row in rows)
    students = {
        name: _student([row for row in rows if row["student"] == name], kinds, ran.get(name) or {}, binary, resamples)
        for name in names
    }
    return {
        "schema": SCHEMA,
        "n": len({row["id"] for row in rows}),
        "right_or_wrong": binary,
        "arms": arms,
        "students": students,
        "summary": {name: summary(name, entry, kinds, binary) for name, entry in students.items()},
        "accounts": extra.get("accounts") or {},
        "curve": extra.get("curve"),
        "inputs": extra,
    }


def arm_means(rows: Sequence[Row]) -> dict[str, float]:
    """Return what `wst test` logs: each arm's mean reward, and its share of leaks where there are gold answers."""
    means: dict[str, float] = {}
    for name, (arm, _) in TEST_ARMS.items():
        mine = [row for row in rows if row["arm"] == arm]
        reward, leak = (_mean(row[key] for row in mine) for key in ("reward", "leak"))
        means[name] = math.nan if reward is None else reward
        if leak is not None:
            means[f"leak/{name}"] = leak
    return means


def _student(
    rows: Sequence[Row], kinds: dict[str, str], ran: dict[str, Any], binary: bool, resamples: int
) -> dict[str, Any]:
    """Return the figures of one student: its cells by arm, and the best fixed instruction."""
    by_arm: dict[str, dict[str, Row]] = {arm: {} for arm in kinds}
    for row in rows:
        by_arm[row["arm"]][row["id"]] = row
    by_arm = {arm: mine for arm, mine in by_arm.items() if mine}
    ids = list(dict.fromkeys(id_ for mine in by_arm.values() for id_ in mine))
    rewards = {arm: column(mine.get(id_, {}).get("reward") for id_ in ids) for arm, mine in by_arm.items()}
    words = {arm: column(_words(mine.get(id_)) for id_ in ids) for arm, mine in by_arm.items()}
    errors, accounts = ran.get("errors") or {}, ran.get("accounts") or {}
    known = [row["reward"] for row in rows if row["reward"] is not None]
    noise = TOLERANCE * (max(known) - min(known)) if known else 0.0

    def differences(arm: str, over: str) -> Values:
        """Return the paired differences [queries] of two arms, without float noise."""
        found = rewards[arm] - rewards[over]
        return np.where(np.abs(found) <= noise, 0.0, found)

    cells: dict[str, Any] = {}
    for arm, mine in by_arm.items():
        cells[arm] = estimate_mean(rewards[arm], binary, resamples).to_dict() | _lengths(list(mine.values()))
        cells[arm] |= dict.fromkeys(("help", "harm", *COMPARISONS)) | {"error": errors.get(arm)}
        cells[arm] |= {name: (accounts.get(arm) or {}).get(name) for name in ("calls", "cost")}
        if NONE in by_arm and arm != NONE:
            shares = help_and_harm(differences(arm, NONE))
            cells[arm] |= dict(zip(("help", "harm"), map(json_number, shares), strict=True))

    fixed = [arm for arm in by_arm if kinds[arm] == "fixed" and cells[arm]["mean"] is not None]
    # Compared by gain, which uses only queries with both rewards: failed responses must not decide.
    before = rewards.get(NONE, np.zeros(len(ids)))
    gains = {arm: gain for arm in fixed if (gain := _mean(rewards[arm] - before)) is not None}
    best_fixed = max(gains, key=gains.__getitem__, default=None)
    untrained = next((arm for arm in by_arm if kinds[arm] == "untrained"), None)
    trained = [arm for arm in by_arm if kinds[arm] == "trained"]
    instructed = [arm for arm in by_arm if arm != NONE]
    for field, over, others in zip(
        COMPARISONS, (NONE, best_fixed, untrained), (instructed, instructed, trained), strict=True
    ):
        if over not in by_arm:
            continue
        others = [arm for arm in others if arm != over]
        p_values = [paired_p_value(differences(arm, over), resamples) for arm in others]
        for arm, p, adjusted in zip(others, p_values, holm(p_values), strict=True):
            relative = relative_gain(differences(arm, over), rewards[over]).to_dict()
            pair, lengths = (np.stack([table[arm], table[over]], axis=1) for table in (rewards, words))
            cells[arm][field] = estimate_gain(differences(arm, over), binary, resamples).to_dict() | {
                "relative": relative["mean"],
                "relative_ci95": relative["ci95"],
                "by_length": json_number(gain_by_length(pair, lengths)),
                "p": json_number(p),
                "p_holm": json_number(adjusted),
            }
    for arm, error in errors.items():
        cells.setdefault(arm, {"n": 0, "mean": None, "error": error})
    return {"error": ran.get("error"), "best_fixed": best_fixed, "arms": cells}


def column(values: Iterable[float | None]) -> Values:
    """Return figures as an array, NaN for None."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _words(row: Row | None) -> float | None:
    """Return the number of words of a response; None if there is no response."""
    return None if row is None or row.get("error") else len(row["response"].split())


def _lengths(rows: Sequence[Row]) -> dict[str, Any]:
    """Return counts, shares and mean lengths of an arm's rows, each over the rows that have the value."""
    instructed = [row for row in rows if row["instruction"] is not None]
    answered = [row for row in rows if not row.get("error")]
    parts = dict.fromkeys(key for row in rows for key in row if key.startswith("reward/"))
    return {
        "n": len(rows),
        "scored": sum(row["reward"] is not None for row in rows),
        "failed": len(rows) - len(answered),
        "parts": {key.removeprefix("reward/"): _mean(row.get(key) for row in rows) for key in parts},
        "leak": _mean(row.get("leak") for row in instructed),
        "instruction_words": _mean(len(row["instruction"].split()) for row in instructed),
        "instruction_truncated": _mean(row.get("instruction_truncated") for row in instructed),
        "response_words": _mean(map(_words, answered)),
        "response_tokens": _mean(row.get("response_tokens") or None for row in answered),
        "response_truncated": _mean(row.get("truncated") for row in answered),
    }


def _mean(values: Iterable[float | bool | None]) -> float | None:
    known = column(values)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else None


# ------------------------------------------------------------------------------------------------------ in words


def summary(student: str, entry: dict[str, Any], kinds: dict[str, str], binary: bool) -> str:
    """Return sentences on which arm instructs a student best, how certain that is, and which arms harm it."""
    student = "the student" if student == STUDENT else student
    if entry["error"]:
        return f"{student} could not be asked: {entry['error']}"
    cells = {arm: cell for arm, cell in entry["arms"].items() if cell["mean"] is not None}
    if NONE not in cells or len(cells) < 2:
        return f"There is nothing to compare for {student}."
    unaided, scored = cells[NONE]["mean"], min(cell["scored"] for cell in cells.values())
    few = f" Only {scored} queries have a reward: too few to be certain." if scored < FEW else ""
    others = [arm for arm in cells if arm != NONE]
    shown = [arm for arm in others if _shown(cells[arm]["vs_unaided"])]
    better = [arm for arm in shown if cells[arm]["vs_unaided"]["mean"] > 0]
    worse = [arm for arm in shown if cells[arm]["vs_unaided"]["mean"] < 0]
    if better:
        text = _praise(student, max(better, key=lambda arm: cells[arm]["mean"]), cells, kinds, binary)
    elif len(worse) == len(others):
        return f"Every instructor makes {student} worse than no instruction, whose mean reward is {unaided:.3f}." + few
    else:
        best = max(others, key=lambda arm: cells[arm]["mean"])
        text = (
            f"No instructor is shown to make {student} better: the highest mean reward is that of "
            f"{_called(best, kinds)}, {cells[best]['mean']:.3f}{_within(cells[best])}, against {unaided:.3f} with no "
            "instruction"
        )
    if worse:
        text += f". Worse than no instruction: {', '.join(_called(arm, kinds) for arm in worse)}"
    return f"{text}.{few}"


def _praise(student: str, best: str, cells: dict[str, Any], kinds: dict[str, str], binary: bool) -> str:
    cell, name = cells[best], _called(best, kinds)
    text = (
        f"{name[0].upper()}{name[1:]} instructs {student} best: mean reward {cell['mean']:.3f}{_within(cell)}, against "
        f"{cells[NONE]['mean']:.3f} with no instruction"
    )
    if binary:
        text += f"; it puts {cell['help']:.0%} of the answers right that were wrong, and {cell['harm']:.0%} wrong"
    for field, other in (("vs_best_fixed", "the best fixed instruction"), ("vs_untrained", "the untrained teacher")):
        if cell[field] is not None:
            beats = _shown(cell[field]) and cell[field]["mean"] > 0
            text += f". It {'beats' if beats else 'is not shown to beat'} {other} ({cell[field]['mean']:+.3f})"
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
