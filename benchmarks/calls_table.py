"""The table and the picture of `calls.py`, from the rows of its runs."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Row = dict[str, Any]


def load(out: Path) -> dict[str, dict[str, list[list[Row]]]]:
    """Return the rows of all runs that are done, by task, arm and seed."""
    found: dict[str, dict[str, list[list[Row]]]] = {}
    for path in sorted(out.glob("*.*.*.jsonl")):
        task, arm, _ = path.name.removesuffix(".jsonl").split(".")
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found.setdefault(task, {}).setdefault(arm, []).append(rows)
    return found


def held_out(rows: Sequence[Row], calls: float) -> float:
    """Return the reward of the last teacher that was tried within so many calls; 0 before the first."""
    known = [row["reward"] for row in rows if row["calls"] <= calls]
    return float(known[-1]) if known else 0.0


def area(rows: Sequence[Row], calls: int) -> float:
    """Return the mean reward over the calls, from none to all of them."""
    return float(np.mean([held_out(rows, spent) for spent in np.linspace(0, calls, 201)]))


def calls_to(rows: Sequence[Row], target: float) -> float:
    """Return the calls after which the reward was first at least the target; infinite if it never was."""
    return next((float(row["calls"]) for row in rows if row["reward"] >= target), math.inf)


def table(options: argparse.Namespace, order: Sequence[str]) -> int:
    """Print a table for each task, its arms in this order, and draw a picture."""
    found = {task: {arm: arms[arm] for arm in order if arm in arms} for task, arms in load(options.out).items()}
    for task, arms in found.items():
        ends = [held_out(rows, options.calls) for rows in arms.get("default", [])]
        target = options.target if options.target is not None else median(ends) if ends else math.nan
        print(f"\n### {task}\n\nTarget {target:.3f}; medians with ranges over the seeds.\n")
        print("| arm | seeds | reward at the end | area | calls to the target | leak at the end |")
        print("|---|---:|---|---|---|---|")
        for arm, runs in arms.items():
            figures = [
                [held_out(rows, options.calls) for rows in runs],
                [area(rows, options.calls) for rows in runs],
                [calls_to(rows, target) for rows in runs],
                [rows[-1]["leak"] for rows in runs],
            ]
            shown = [_shown(values, digits) for values, digits in zip(figures, (3, 3, 0, 3), strict=True)]
            print(f"| {arm} | {len(runs)} | {' | '.join(shown)} |")
    if options.picture:
        draw(found, options)
    return 0


def _shown(values: Sequence[float], digits: int) -> str:
    def number(value: float) -> str:
        return "never" if math.isinf(value) else "-" if math.isnan(value) else f"{value:.{digits}f}"

    low, middle, high = map(number, (min(values), sorted(values)[(len(values) - 1) // 2], max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def draw(found: dict[str, dict[str, list[list[Row]]]], options: argparse.Namespace) -> None:
    """Draw a panel for each task: the median of each arm, and the range of the default."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(4.6 * len(found), 3.8), dpi=130, squeeze=False)
    grid = np.linspace(0, options.calls, 201)
    arms = list(dict.fromkeys(arm for of_task in found.values() for arm in of_task))
    colors = dict(zip(arms, mpl.colormaps["tab20"].colors, strict=False))
    for axes, (task, of_task) in zip(panels[0], found.items(), strict=True):
        for arm, runs in of_task.items():
            curves = np.array([[held_out(rows, calls) for calls in grid] for rows in runs])
            width = 2.2 if arm in ("default", "two samples", "race", "gepa") else 1.0
            axes.plot(grid, np.median(curves, axis=0), lw=width, color=colors.get(arm, "black"), label=arm)
            if arm == "default":
                axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colors[arm], alpha=0.15, lw=0)
        axes.set(title=task, xlabel="student calls", ylabel="held-out reward")
        axes.grid(alpha=0.25)
    handles = {text: line for axes in panels[0] for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), fontsize=8, ncols=6, loc="lower center", frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(options.picture)
