"""``wst compare``: instructors compared on one test set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wst.cli.errors import OneLineErrors, guarded
from wst.cli.parser import mend
from wst.evaluation.comparison import Comparison, compare, rebuild

mend()


class _Parser(OneLineErrors, ArgumentParser):
    hint = "; see `wst compare --help` for the options"


def run(args: list[str]) -> int:
    """Run the command and give its exit code: 1 if an arm or a student could not be run, 2 for a user's mistake."""

    def command() -> int:
        again = any(arg.partition("=")[0] == "--from" for arg in args)
        comparison = _rebuild(args) if again else _compare(args)
        # A pipe has no width: a table cut to 80 columns would be of no use there.
        show(comparison, Console(width=None if sys.stdout.isatty() else 160))
        return int(bool(comparison.errors))

    return guarded(command)


def _compare(args: list[str]) -> Comparison:
    parser = _Parser(prog="wst compare", description="Compare who instructs the student best, and whom it harms.")
    parser.add_argument("--config", action="config", help="a YAML file with the options below; later ones count")
    parser.add_argument("--from", metavar="ROWS.jsonl", help="rebuild figures and report without asking anyone")
    parser.add_function_arguments(compare, sub_configs=True)
    config = parser.parse_args(args)
    made = parser.instantiate(config)
    options = {name: value for name, value in vars(made).items() if name not in ("config", "from")}
    return compare(**options)


def _rebuild(args: list[str]) -> Comparison:
    parser = _Parser(prog="wst compare --from")
    parser.add_argument("--from", dest="rows", type=str, required=True)
    parser.add_argument("--output", type=str | None, default=None)
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args(args)
    return rebuild(options.rows, options.output, options.resamples)


def show(comparison: Comparison, console: Console) -> None:
    """Print a table for each student, what it says in words, and where the files are."""
    results = comparison.results
    for student, entry in results["students"].items():
        console.print(_table(student, entry, results))
        console.print(results["summary"][student], highlight=False, markup=False)
        console.print()
    if len(results["students"]) > 1:
        console.print(_transfer(results))
    for arm, entry in results["arms"].items():
        if entry["writing"] is not None:
            cost = "" if entry["writing"]["cost"] is None else f", cost {entry['writing']['cost']:.4g}"
            console.print(f"{arm}: {entry['writing']['calls']} calls to write{cost}", highlight=False, markup=False)
    for what, error in comparison.errors.items():
        console.print(f"{what} could not be run: {error}", style="red", highlight=False, markup=False)
    for name in ("report.html", "results.json", "rows.jsonl"):
        console.print(str(Path(comparison.folder) / name), highlight=False, soft_wrap=True, markup=False)


def _table(student: str, entry: dict[str, Any], results: dict[str, Any]) -> Table:
    binary = results["right_or_wrong"]
    table = Table(title=Text(f"{student}: mean reward on {results['n']} queries"), title_style="bold")
    table.add_column("instructor", overflow="fold", max_width=38)
    columns = ("mean", "95% interval", "rel. gain", "gain", "p", "over fixed", "p")
    for name in (
        *columns,
        *(("help", "harm") if binary else ("better", "worse")),
        "leak",
        "words",
        "cut",
        "calls",
        "cost",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for arm, cell in entry["arms"].items():
        if cell["mean"] is None:
            table.add_row(Text(arm), "-", Text(cell.get("error") or "nothing could be scored", style="red"))
            continue
        unaided, fixed = cell["vs_unaided"] or {}, cell["vs_best_fixed"] or {}
        low, high = cell["ci95"]
        table.add_row(
            Text(arm + (" (best fixed)" if arm == entry["best_fixed"] else "")),
            f"{cell['mean']:.3f}",
            "-" if low is None else f"{low:.3f}-{high:.3f}",
            _shown(cell["relative_gain"], "+.0%"),
            _shown(unaided.get("mean"), "+.3f"),
            _p(unaided.get("p_holm")),
            _shown(fixed.get("mean"), "+.3f"),
            _p(fixed.get("p_holm")),
            _shown(cell["help"], ".0%"),
            _shown(cell["harm"], ".0%"),
            _shown(cell["leak"], ".0%"),
            _shown(cell["response_words"], ".1f"),
            _shown(cell["response_truncated"], ".0%"),
            _shown(cell["calls"], "d"),
            _shown(cell["cost"], ".4g"),
        )
    table.caption = "p: Holm-corrected over the instructors; words, cut, calls and cost: of the responses"
    return table


def _transfer(results: dict[str, Any]) -> Table:
    table = Table(title="Transfer: mean reward by instructor and student", title_style="bold")
    table.add_column("instructor", overflow="fold", max_width=60)
    for student in results["students"]:
        table.add_column(Text(student), justify="right")
    for arm in results["arms"]:
        means = [entry["arms"].get(arm, {}).get("mean") for entry in results["students"].values()]
        table.add_row(Text(arm), *(_shown(mean, ".3f") for mean in means))
    return table


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
