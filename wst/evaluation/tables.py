"""The tables of an evaluation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wst.evaluation.figures import COMPARISONS
from wst.evaluation.report import Comparison
from wst.terminal import never_fatal, printable

Cell = str | Text

_WIDTH_OF_A_PIPE = 160  # a pipe has no width of its own, and a table cut to 80 columns would be of no use there
_FEW = 4  #: so many arms fit beside each other


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print a table for each student, the finding in words, and the paths of the files; never raises."""
    with never_fatal():
        _show(comparison, console or Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE))


def _show(comparison: Comparison, console: Console) -> None:
    results = comparison.results
    say = partial(console.print, highlight=False, markup=False)
    for student, entry in results["students"].items():
        title = _text(f"{student}: mean reward on {results['n']} queries")
        console.print(_table(title, entry, results["right_or_wrong"], console))
        say(printable(results["summary"][student]), end="\n\n")
    if len(results["students"]) > 1:
        console.print(_transfer(results))
    for arm, entry in results["arms"].items():
        if entry["writing"] is not None:
            cost = "" if entry["writing"]["cost"] is None else f", cost {entry['writing']['cost']:.4g}"
            say(f"{printable(arm)}: {entry['writing']['calls']} calls to write{cost}")
    for what, error in comparison.errors.items():
        say(printable(f"{what} could not be run: {error}"), style="red")
    if not comparison.written:
        say(f"nothing was scored: the earlier results in {comparison.folder} are left as they were", style="red")
        return
    for name in ("report.html", "results.json", "rows.jsonl"):
        say(printable(str(comparison.folder / name)), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text, 1000), style=style)


def _table(title: Text, entry: dict[str, Any], binary: bool, console: Console) -> Table:
    """Return the arms as lines, or as columns where a few arms would not fit the terminal; omit empty columns."""
    lines = []
    for arm, cell in entry["arms"].items():
        name = _text(f"{arm} (best fixed)" if arm == entry["best_fixed"] else arm)
        lines.append({"instructor": name, **_line(cell, binary)})
    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if any(line.get(name, "-") != "-" for line in lines)]
    grid: list[Sequence[Cell]] = [names, *([line.get(name, "-") for name in names] for line in lines)]
    table = _grid(title, grid)
    if len(lines) <= _FEW and _width(console, table) > console.width:
        table = _grid(title, list(zip(*grid, strict=True)))
    table.caption = "p: Holm-corrected over the instructors; words, cut, calls and cost: of the responses"
    return table


def _grid(title: Text, grid: Sequence[Sequence[Cell]]) -> Table:
    table = Table(title=title, title_style="bold")
    for place, name in enumerate(grid[0] if grid else []):
        first = place == 0
        table.add_column(name, justify="left" if first else "right", no_wrap=not first, max_width=38 if first else None)
    for line in grid[1:]:
        table.add_row(*line)
    return table


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _line(cell: dict[str, Any], binary: bool) -> dict[str, Cell]:
    if cell["mean"] is None:
        return {"mean": "-", "95% interval": _text(cell.get("error") or "nothing could be scored", "red")}
    low, high = cell["ci95"]
    unaided, fixed, untrained = (cell[field] or {} for field in COMPARISONS)
    better, worse = ("help", "harm") if binary else ("better", "worse")
    return {
        "mean": f"{cell['mean']:.3f}",
        "95% interval": "-" if low is None else f"{low:.3f}-{high:.3f}",
        "rel. gain": _shown(unaided.get("relative"), "+.0%"),
        "gain": _shown(unaided.get("mean"), "+.3f"),
        "p": _p(unaided.get("p_holm")),
        "by length": _shown(unaided.get("by_length"), "+.3f"),
        "over fixed": _shown(fixed.get("mean"), "+.3f"),
        "p (fixed)": _p(fixed.get("p_holm")),
        "over untrained": _shown(untrained.get("mean"), "+.3f"),
        "p (untrained)": _p(untrained.get("p_holm")),
        better: _shown(cell["help"], ".0%"),
        worse: _shown(cell["harm"], ".0%"),
        "leak": _shown(cell["leak"], ".0%"),
        "words": _shown(cell["response_words"], ".1f"),
        "cut": _shown(cell["response_truncated"], ".0%"),
        "calls": _shown(cell["calls"], "d"),
        "cost": _shown(cell["cost"], ".4g"),
        **{printable(name, 40): _shown(mean, ".3f") for name, mean in cell["parts"].items()},
    }


def _transfer(results: dict[str, Any]) -> Table:
    header: list[Cell] = ["instructor", *map(_text, results["students"])]
    lines: list[list[Cell]] = [
        [_text(arm), *(_shown(entry["arms"].get(arm, {}).get("mean"), ".3f") for entry in results["students"].values())]
        for arm in results["arms"]
    ]
    return _grid(Text("Transfer: mean reward by instructor and student"), [header, *lines])


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
