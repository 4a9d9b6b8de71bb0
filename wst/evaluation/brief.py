"""The figures of one trained teacher, as its artefact and its model card show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wst.evaluation.figures import TOLERANCE, column
from wst.evaluation.metrics import Values, estimate_gain, estimate_mean, help_and_harm, json_number
from wst.evaluation.rows import TEST_ARMS, Row


def teacher_figures(trained: Values, unaided: Values, leaks: Values, untrained: Values | None = None) -> dict[str, Any]:
    """Return mean rewards and gains with 95% intervals, and the shares of help, harm and leaks.

    Args:
        trained: [n] rewards with the teacher's instructions; NaN where one could not be scored.
        unaided: [n] rewards without an instruction.
        leaks: [n] whether each instruction holds the gold answer; NaN where there is none.
        untrained: [n] rewards under the untrained teacher, if it was asked.
    """
    arms = {"reward": trained, "unaided": unaided} | ({} if untrained is None else {"untrained": untrained})
    known = np.concatenate(list(arms.values()))
    known = known[~np.isnan(known)]
    binary = bool(np.isin(known, (0.0, 1.0)).all())
    noise = TOLERANCE * float(np.ptp(known)) if len(known) else 0.0

    def gain(over: Values) -> Values:
        return np.where(np.abs(trained - over) <= noise, 0.0, trained - over)

    found: dict[str, Any] = {name: estimate_mean(values, binary).to_dict() for name, values in arms.items()}
    found["gain"] = estimate_gain(gain(unaided), binary).to_dict()
    if untrained is not None:
        found["gain_over_untrained"] = estimate_gain(gain(untrained), binary).to_dict()
    shares = map(json_number, help_and_harm(gain(unaided)))
    leaked = leaks[~np.isnan(leaks)]
    found |= dict(zip(("help", "harm"), shares, strict=True))
    found |= {"leak": float(leaked.mean()) if len(leaked) else None, "n": len(trained)}
    return found


def tested_figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Return `teacher_figures` of the rows of `wst test`."""
    columns = {}
    for name, (arm, _) in TEST_ARMS.items():
        mine = {row["id"]: row for row in rows if row["arm"] == arm}
        columns[name] = {key: column(row.get(key) for row in mine.values()) for key in ("reward", "leak")}
    rewards = {name: column["reward"] for name, column in columns.items()}
    return teacher_figures(rewards["trained"], rewards["unaided"], columns["trained"]["leak"], rewards["untrained"])
