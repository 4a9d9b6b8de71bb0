"""The figures of an evaluation as cells of a table, for the terminal and for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from wst.evaluation.figures import COMPARISONS
from wst.terminal import printable

Cell = str | Text

CAPTION = "p: Holm-corrected over the instructors; words, cut, calls and cost: of the responses"


def grid_of(entry: dict[str, Any], binary: bool) -> list[Sequence[Cell]]:
    """Return the names of the columns and a row for each instructor, without columns that are empty.

    Args:
        entry: A student's in ``results.json``.
        binary: Whether all rewards are 0 or 1.
    """
    lines = []
    for arm, cell in entry["arms"].items():
        name = as_text(f"{arm} (best fixed)" if arm == entry["best_fixed"] else arm)
        lines.append({"instructor": name, **_line(cell, binary)})
    names = list(dict.fromkeys(name for line in lines for name in line))
    names = [name for name in names if any(line.get(name, "-") != "-" for line in lines)]
    return [names, *([line.get(name, "-") for name in names] for line in lines)]


def as_html(results: dict[str, Any]) -> str:
    """Return the tables of ``results.json`` as HTML, in which every text of the data is escaped."""
    parts = []
    for student, entry in results["students"].items():
        names, *rows = grid_of(entry, results["right_or_wrong"])
        parts += [
            f"<p><b>{_escaped(student)}</b>: mean reward on {results['n']} queries</p>",
            f"<table><tr>{''.join(f'<th>{_escaped(name)}</th>' for name in names)}</tr>",
            *(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in rows),
            f"</table><p>{_escaped(results['summary'][student])}</p>",
        ]
    return f"<div>{''.join(parts)}<p><small>{CAPTION}</small></p></div>"


def _escaped(cell: Cell) -> str:
    return html.escape(printable(cell if isinstance(cell, str) else cell.plain))


def as_text(text: str, style: str = "") -> Text:
    """Return a text that a terminal shows and does not obey."""
    return Text(printable(text, 1000), style=style)


def _line(cell: dict[str, Any], binary: bool) -> dict[str, Cell]:
    if cell["mean"] is None:
        return {"mean": "-", "95% interval": as_text(cell.get("error") or "nothing could be scored", "red")}
    low, high = cell["ci95"]
    unaided, fixed, untrained = (cell[field] or {} for field in COMPARISONS)
    better, worse = ("help", "harm") if binary else ("better", "worse")
    line: dict[str, Cell] = {
        "mean": f"{cell['mean']:.3f}",
        "95% interval": "-" if low is None else f"{low:.3f}-{high:.3f}",
        "rel. gain": shown(unaided.get("relative"), "+.0%"),
        "gain": shown(unaided.get("mean"), "+.3f"),
        "p": _p(unaided.get("p_holm")),
        "by length": shown(unaided.get("by_length"), "+.3f"),
        "over fixed": shown(fixed.get("mean"), "+.3f"),
        "p (fixed)": _p(fixed.get("p_holm")),
        "over untrained": shown(untrained.get("mean"), "+.3f"),
        "p (untrained)": _p(untrained.get("p_holm")),
        better: shown(cell["help"], ".0%"),
        worse: shown(cell["harm"], ".0%"),
        "leak": shown(cell["leak"], ".0%"),
        "words": shown(cell["response_words"], ".1f"),
        "cut": shown(cell["response_truncated"], ".0%"),
        "calls": shown(cell["calls"], "d"),
        "cost": shown(cell["cost"], ".4g"),
    }
    for name, mean in cell["parts"].items():
        column = printable(name, 40)
        line[f"reward {column}" if column in line else column] = shown(mean, ".3f")
    return line


def shown(value: float | None, how: str) -> str:
    """Return a figure in a format, or a dash."""
    return "-" if value is None else format(value, how)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
