"""Running a comparison: every arm writes, every student answers, the reward scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wst.data import QueryDataModule
from wst.errors import ConfigError, DataError
from wst.evaluation.curve import training_curve
from wst.evaluation.figures import SCHEMA, figures, read_rows
from wst.evaluation.instructors import USUAL, Arm, AskedStudent, FixedInstruction, NoInstruction, TeacherArm
from wst.evaluation.journal import as_json
from wst.evaluation.report import write_report
from wst.evaluation.runner import Answerer, Work
from wst.files import write_whole
from wst.prompts import StudentPrompt, TeacherPrompt
from wst.rewards.base import Reward
from wst.students.base import Student
from wst.teacher import Teacher

if TYPE_CHECKING:
    import pandas as pd

LEAST_RESAMPLES = 1000  #: with fewer, no p-value could be small enough to stand a correction for several arms


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        results: The content of ``results.json``; docs/compare.md has its schema.
        rows: Every query under every arm with every student, as in ``rows.jsonl``.
        folder: Where the files are.
    """

    results: dict[str, Any]
    rows: list[dict[str, Any]]
    folder: Path

    @property
    def errors(self) -> dict[str, str]:
        """Why what could not be run could not; by arm, student, or both."""
        found = {f"arm {name}": arm["error"] for name, arm in self.results["arms"].items() if arm.get("error")}
        for student, entry in self.results["students"].items():
            if entry.get("error"):
                found[f"student {student}"] = entry["error"]
            cells = entry["arms"].items()
            found |= {f"arm {arm} with student {student}": cell["error"] for arm, cell in cells if cell.get("error")}
        return found

    def to_pandas(self) -> pd.DataFrame:
        """Give the figures as a table: one row for each student and arm, nested figures as ``a.b``."""
        import pandas as pd

        kinds = {name: arm["kind"] for name, arm in self.results["arms"].items()}
        return pd.json_normalize(
            [
                {"student": student, "arm": arm, "kind": kinds[arm], **cell}
                for student, entry in self.results["students"].items()
                for arm, cell in entry["arms"].items()
            ]
        )


def compare(
    data: QueryDataModule,
    students: dict[str, Student],
    reward: Reward,
    teacher: Teacher | None = None,
    trained: dict[str, str] | None = None,
    fixed: list[str] = USUAL,
    asked: dict[str, Student] | None = None,
    student_prompt: StudentPrompt | None = None,
    limit: int | None = None,
    output: str = "runs/compare",
    run: str | None = None,
    resamples: int = 10_000,
    device: str = "auto",
) -> Comparison:
    """Compare instructors on the same test queries, with one student or several.

    Every batch is kept in the output folder as soon as it is there; called again, the comparison goes on where it was
    stopped, and asks again only what had failed.

    Args:
        data: Its test queries are used.
        students: Who answers, by name. With several, the results are a transfer matrix.
        reward: Scores the answers.
        teacher: Its untrained self is an arm; its prompt and settings serve ``trained`` and ``asked`` too.
        trained: Trained teachers by name: adapter folders, or checkpoints, which remember their own settings.
        fixed: Instructions that are the same for every query.
        asked: Students that are asked, with the teacher's prompt, to write the instruction.
        student_prompt: How query and instruction become the student's prompt; None: the default one.
        limit: At most so many queries, in the order of the data; None: all.
        output: Folder for the results.
        run: Log folder of a training run, whose reward curve goes into the report.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value; at least 1000.
        device: Where local models go: "auto", "cpu", "cuda", "cuda:1", ...

    Returns:
        The figures and rows. Arms that could not be run are named in `Comparison.errors`.

    Raises:
        ConfigError: If a setting is impossible, before any model is loaded.
        DataError: If the data cannot be read.
    """
    asked = asked or {}
    arms = _arms(teacher, trained or {}, fixed, asked)
    if not students:
        raise ConfigError("compare: students is empty; name at least one")
    if limit is not None and limit < 1:
        raise ConfigError(f"compare: limit must be at least 1, or null for all, got {limit}")
    _check_resamples(resamples)
    place = _device(device)
    queries = data.queries("test")[:limit]
    if not queries:
        raise ConfigError("compare: there are no test queries; give data a test file, or train and test_share")
    curve = training_curve(Path(run)) if run is not None else None
    work = Work(queries, data.eval_batch_size, Path(output), place)
    cells: dict[str, Any] = {}
    with work.progress:
        instructions, errors = work.write(arms)
        reward.setup(place)
        for name, student in students.items():
            answerer = Answerer(name, student, student_prompt or StudentPrompt(), reward)
            cells[name] = work.answer(answerer, [arm for arm in arms if arm.name in instructions], instructions)
    reward.close()
    extra = {
        "arms": {
            arm.name: {"kind": arm.kind, "error": errors.get(arm.name), "writing": work.writing.get(arm.name)}
            for arm in arms
        },
        "students": cells,
        "curve": curve,
    }
    return _finish(work.rows, extra, Path(output), resamples)


def rebuild(rows: str, output: str | None = None, resamples: int = 10_000) -> Comparison:
    """Compute the figures and write the report from ``rows.jsonl``, without asking anyone.

    What the rows do not hold (costs, arms that could not be run, the training curve) is taken from a ``results.json``
    next to them, if there is one.

    Args:
        rows: The file.
        output: Folder for the results; None: the file's own, if it is called rows.jsonl.
        resamples: As in `compare`.

    Raises:
        ConfigError: If the results would overwrite those of other rows.
        DataError: If the file cannot be read as rows of a comparison.
    """
    _check_resamples(resamples)
    path = Path(rows)
    if output is None and path.name != "rows.jsonl":
        raise ConfigError(f"compare: {path} is not called rows.jsonl; give --output, a folder for its results")
    read = read_rows(path)
    beside = path.with_name("results.json")
    extra = _inputs(beside) if beside.is_file() else {}
    return _finish(read, extra, Path(output) if output is not None else path.parent, resamples)


def _inputs(path: Path) -> dict[str, Any]:
    """Give what a ``results.json`` holds that its rows do not."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if results["schema"] == SCHEMA:
            return dict(results["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path}: not the results.json of `wst compare` ({SCHEMA}); take it away to go without its costs")


def _finish(rows: list[dict[str, Any]], extra: dict[str, Any], folder: Path, resamples: int) -> Comparison:
    """Compute the figures and write the three files."""
    results = figures(rows, extra, resamples)
    write_whole(folder / "rows.jsonl", "".join(as_json(row) + "\n" for row in rows))
    write_whole(folder / "results.json", as_json(results, indent=2) + "\n")
    write_report(folder / "report.html", results, rows)
    return Comparison(results, rows, folder)


def _check_resamples(resamples: int) -> None:
    if resamples < LEAST_RESAMPLES:
        raise ConfigError(f"compare: resamples must be at least {LEAST_RESAMPLES}, got {resamples}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"compare: device {name!r} is unknown; give auto, cpu, cuda or cuda:N") from error


def _arms(
    teacher: Teacher | None, trained: dict[str, str], fixed: Sequence[str], asked: dict[str, Student]
) -> list[Arm]:
    if asked and teacher is None:
        raise ConfigError("compare: asked needs teacher, whose prompt it is asked with")
    if any(not text.strip() for text in fixed):
        raise ConfigError("compare: fixed holds an empty instruction; take it out, no instruction is an arm already")
    prompt = teacher.prompt if teacher is not None else TeacherPrompt()
    arms: list[Arm] = [NoInstruction(), *(FixedInstruction(text) for text in fixed)]
    if teacher is not None:
        arms.append(TeacherArm("untrained teacher", teacher))
    arms += [AskedStudent(name, student, prompt) for name, student in asked.items()]
    arms += [TeacherArm(name, teacher, path) for name, path in trained.items()]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"compare: two arms are called {name!r}; give one of them another name")
    return arms
