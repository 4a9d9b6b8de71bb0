"""The files of an evaluation: ``rows.jsonl``, ``results.json`` and ``report.html``, one page that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wst.evaluation.cells import as_html
from wst.evaluation.figures import figures
from wst.evaluation.journal import as_json, storage_errors
from wst.evaluation.rows import Row
from wst.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

_PLACE = "/*DATA*/null"


@dataclass(frozen=True)
class Comparison:
    """The result of `wst.compare` or of `wst test`.

    Attributes:
        results: The content of ``results.json``; docs/compare.md lists its keys.
        rows: Every query under every arm with every student, as in ``rows.jsonl``.
        folder: Where the files are.
        written: Whether they were written. Results without a single reward do not replace earlier ones.
    """

    results: dict[str, Any] = field(repr=False)
    rows: list[Row] = field(repr=False)
    folder: Path
    written: bool = True

    def __post_init__(self) -> None:
        """Keep the whole path: the process may change its working folder."""
        object.__setattr__(self, "folder", self.folder.absolute())

    @property
    def errors(self) -> dict[str, str]:
        """Why an arm, a student, or a student under an arm could not be run."""
        found = {f"arm {name}": arm["error"] for name, arm in self.results["arms"].items() if arm.get("error")}
        for student, entry in self.results["students"].items():
            if entry.get("error"):
                found[f"student {student}"] = entry["error"]
            cells = entry["arms"].items()
            found |= {f"arm {arm} with student {student}": cell["error"] for arm, cell in cells if cell.get("error")}
        return found

    def _repr_html_(self) -> str:
        """Return the tables that a notebook shows."""
        return as_html(self.results)

    def to_pandas(self) -> pd.DataFrame:
        """Return the figures as a table: one row for each student and arm, nested figures as ``a.b``."""
        import pandas as pd

        kinds = {name: arm["kind"] for name, arm in self.results["arms"].items()}
        return pd.json_normalize(
            [
                {"student": student, "arm": arm, "kind": kinds[arm], **cell}
                for student, entry in self.results["students"].items()
                for arm, cell in entry["arms"].items()
            ]
        )


def write_comparison(rows: list[Row], extra: dict[str, Any], folder: Path, resamples: int = 10_000) -> Comparison:
    """Compute the figures and write the three files, unless nothing was scored and there are earlier results.

    Args:
        rows: All rows.
        extra: What the rows do not hold; see `figures`.
        folder: Where the files go.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value.

    Raises:
        StorageError: If a file cannot be written; an earlier file of that name is whole.
    """

    def write(name: str, text: str) -> None:
        with storage_errors(folder / name):
            write_whole(folder / name, text)

    if all(row["reward"] is None for row in rows) and (folder / "results.json").is_file():
        return Comparison(figures(rows, extra, resamples), rows, folder, written=False)
    write("rows.jsonl", "".join(as_json(row) + "\n" for row in rows))  # first: all else can be made from it
    results = figures(rows, extra, resamples)
    write("results.json", as_json(results, indent=2) + "\n")
    write("report.html", _page(results, rows))
    return Comparison(results, rows, folder)


def _page(results: dict[str, Any], rows: Sequence[Row]) -> str:
    """Return the report. Its script creates every element from the data as text, so nothing is read as markup."""
    shown = {key: value for key, value in results.items() if key != "inputs"}
    data = as_json({"results": shown, "rows": list(rows)})
    # Inside a script element only these characters could end it or begin a comment.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return resources.files("wst.evaluation").joinpath("report.html").read_text(encoding="utf-8").replace(_PLACE, data)
