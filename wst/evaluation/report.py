"""The report: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from wst.evaluation.journal import as_json
from wst.files import write_whole

_PLACE = "/*DATA*/null"


def write_report(path: Path, results: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Write the report of a comparison.

    The page's script makes every element from the data as text, so that nothing in an instruction or a response is
    ever read as markup.
    """
    shown = {key: value for key, value in results.items() if key != "inputs"}
    data = as_json({"results": shown, "rows": list(rows)})
    # Within a script element only these could end it, or begin a comment.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    template = resources.files("wst.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    write_whole(path, template.replace(_PLACE, data))
