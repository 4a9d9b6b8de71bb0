"""The tables of an evaluation on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from wst.evaluation.cells import CAPTION, Cell, as_text, grid_of, shown
from wst.evaluation.report import Comparison
from wst.terminal import never_fatal, printable

_WIDTH_OF_A_PIPE = 160  # a pipe has no width of its own, and a table cut to 80 columns would be of no use there
_FEW = 4  #: so many arms fit beside each other
_NAME = 38  #: characters of an instructor's name in a line, before it is broken
_SHORT_NAME = 24
#: What a terminal too narrow for all columns leaves to the report, the least missed first.
_LEFT_OUT = (
    *("by length", "p (fixed)", "p (untrained)", "words", "cut", "help", "harm", "better", "worse"),
    *("rel. gain", "calls", "cost", "over fixed", "over untrained", "gain", "p", "leak"),
)


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print a table for each student, the finding in words, and the paths of the files; never raises."""
    with never_fatal():
        _show(comparison, console or Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_PIPE))


def _show(comparison: Comparison, console: Console) -> None:
    results, folder = comparison.results, comparison.folder
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    say = partial(console.print, highlight=False, markup=False)
    for student, entry in results["students"].items():
        title = as_text(f"{student}: mean reward on {results['n']} queries")
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
        say(f"nothing was scored: the earlier results in {folder} are left as they were", style="red")
        return
    for name in ("report.html", "results.json", "rows.jsonl"):
        say(printable(str(folder / name)), soft_wrap=True)


def _table(title: Text, entry: dict[str, Any], binary: bool, console: Console) -> Table:
    """Return the arms as lines, or as columns where a few arms would not fit the terminal; omit empty columns.

    Of many arms on a narrow terminal, the columns that are missed least are left to the report.
    """
    grid = grid_of(entry, binary)
    table, left_out = _grid(title, grid), list[str]()
    if _width(console, table) > console.width:
        if len(grid) - 1 <= _FEW:
            table = _grid(title, list(zip(*grid, strict=True)))
        else:
            table, left_out = _narrow(title, grid, console)
    table.caption = f"{CAPTION}; in report.html: {', '.join(left_out)}" if left_out else CAPTION
    return table


def _narrow(title: Text, grid: list[Sequence[Cell]], console: Console) -> tuple[Table, list[str]]:
    """Return a table that fits, if dispensable columns are enough for that, and the names of those left out."""
    table, left_out = _grid(title, grid, _SHORT_NAME), list[str]()
    parts = [str(name) for name in grid[0] if name not in ("instructor", "mean", "95% interval")]
    for name in (*_LEFT_OUT, *parts):
        if name in grid[0] and _width(console, table) > console.width:
            left_out.append(name)
            place = list(grid[0]).index(name)
            grid = [[*line[:place], *line[place + 1 :]] for line in grid]
            table = _grid(title, grid, _SHORT_NAME)
    return table, left_out


def _grid(title: Text, grid: Sequence[Sequence[Cell]], width: int = _NAME) -> Table:
    table = Table(title=title, title_style="bold")
    for place, name in enumerate(grid[0] if grid else []):
        first = place == 0
        table.add_column(
            _unread(name), justify="left" if first else "right", no_wrap=not first, max_width=width if first else None
        )
    for line in grid[1:]:
        table.add_row(*map(_unread, line))
    return table


def _unread(cell: Cell) -> Text:
    """Return a cell as text, in which rich looks for no markup: a reward names its own parts."""
    return cell if isinstance(cell, Text) else Text(cell)


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _transfer(results: dict[str, Any]) -> Table:
    header: list[Cell] = ["instructor", *map(as_text, results["students"])]
    lines: list[list[Cell]] = [
        [
            as_text(arm),
            *(shown(entry["arms"].get(arm, {}).get("mean"), ".3f") for entry in results["students"].values()),
        ]
        for arm in results["arms"]
    ]
    return _grid(Text("Transfer: mean reward by instructor and student"), [header, *lines])
