"""Print the tables of docs/results.md from the published rows, without a model.

    python benchmarks/results/tables.py              # every rows file here, as Markdown
    python benchmarks/results/tables.py demo_seed0   # one of them

The files are the `rows.jsonl` that `wst compare` wrote, gzipped; `wst compare --from FILE` makes its report of one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from wst.evaluation.figures import figures
from wst.evaluation.rows import read_rows

FOLDER = Path(__file__).parent
HEAD = (
    "| instructor | reward | 95% interval | gain over no instruction | relative gain | p (Holm) | helped | harmed "
    "| leak | words | cut |"
)


def table(path: Path) -> str:
    """Return the Markdown table of a rows file; rewards are means over its queries."""
    (student,) = figures(read_rows(path), {})["students"].values()
    lines = [HEAD, "|---|" + "---:|" * 10]
    for arm, cell in student["arms"].items():
        gain = cell["vs_unaided"] or {}
        shown = [
            f"{arm} (best fixed)" if arm == student["best_fixed"] else arm,
            f"{cell['mean']:.3f}",
            _range(cell["ci95"]),
            f"{gain['mean']:+.3f} ({_range(gain['ci95'])})" if gain else "",
            _relative(gain),
            f"{gain['p_holm']:.4f}" if gain else "",
            *("" if cell[key] is None else f"{cell[key]:.1%}" for key in ("help", "harm", "leak")),
            f"{cell['response_words']:.1f}",
            f"{cell['response_truncated']:.0%}",
        ]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _relative(gain: dict[str, Any]) -> str:
    """Return the gain in percent of the unaided mean, with its interval if it has one."""
    if not gain or gain["relative"] is None:
        return ""
    low, high = gain["relative_ci95"]
    return f"{gain['relative']:+.0%}" + ("" if low is None else f" ({low:+.0%} … {high:+.0%})")


def _range(interval: list[Any]) -> str:
    return " … ".join("?" if bound is None else f"{bound:.3f}" for bound in interval)


def files(names: list[str]) -> list[Path]:
    """Return the rows files of these names, or all of them."""
    there = {path.name.removesuffix(".jsonl.gz"): path for path in sorted(FOLDER.glob("*.jsonl.gz"))}
    if unknown := [name for name in names if name not in there]:
        sys.exit(f"no rows named {unknown[0]!r} in {FOLDER}; there are: {', '.join(there)}")
    return [there[name] for name in names or there]


if __name__ == "__main__":
    for file in files(sys.argv[1:]):
        print(f"{file.name.removesuffix('.jsonl.gz')}\n\n{table(file)}")
