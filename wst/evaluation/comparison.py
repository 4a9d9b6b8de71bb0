"""`wst.compare`: every arm writes, every student answers, the reward scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wst.data import QueryDataModule
from wst.errors import ConfigError, DataError
from wst.evaluation.curve import training_curve
from wst.evaluation.figures import SCHEMA
from wst.evaluation.instructors import USUAL, Arm, AskedStudent, FixedInstruction, TeacherArm
from wst.evaluation.report import Comparison, write_comparison
from wst.evaluation.rows import UNTRAINED, read_rows
from wst.evaluation.runner import Runner
from wst.modeling.loading import resolve_device
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward, RewardLike, as_reward
from wst.settings import check_arguments
from wst.students.accounts import Accounts, open_ledgers
from wst.students.base import Student
from wst.students.function import as_student
from wst.teacher import Teacher
from wst.terminal import printable, show
from wst.types import Query

MIN_RESAMPLES = 1000  #: With fewer, no p-value could be small enough to survive a correction for several arms.


def compare(
    data: QueryDataModule,
    students: dict[str, Student],
    reward: RewardLike,
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

    Every batch is written to the journal in the output folder when it is done. Called again, the comparison continues
    where it stopped, and asks again only for what failed.

    Args:
        data: Provides the test queries.
        students: The students that answer, by name. With several, the results are a transfer matrix.
        reward: Scores the responses.
        teacher: The untrained teacher is an arm; its prompt and settings are used for ``trained`` and ``asked`` too.
        trained: Trained teachers by name: adapter folders, folders of fully fine-tuned models, or checkpoints, which
            remember their own prompt, limits and LoRA shape.
        fixed: Instructions that are the same for every query.
        asked: Students, by name, that are asked with the teacher's prompt to write the instruction.
        student_prompt: Template of the student's prompt; None for the default one.
        limit: Largest number of queries, in the order of the data; None for all.
        output: Folder for the results.
        run: Log folder of a training run, whose reward curve is shown in the report.
        resamples: Bootstrap resamples for an interval, and sign flips for a p-value; at least 1000.
        device: Device of local models: "auto", "cpu", "cuda", "cuda:1", ...

    Returns:
        The figures and rows. `Comparison.errors` names the arms that could not be run.

    Raises:
        ConfigError: If a setting is impossible, before any model is loaded.
        DataError: If the data cannot be read.
    """
    check_arguments(compare, locals())
    reward = as_reward(reward)
    asked = {name: as_student(student) for name, student in (asked or {}).items()}
    arms = _arms(teacher, trained or {}, fixed, asked)
    if not students:
        raise ConfigError("compare: students is empty; name at least one")
    students = {name: as_student(student) for name, student in students.items()}
    _check_resamples(resamples)
    place, folder = resolve_device(device), Path(output)
    queries = test_queries("compare", data, limit)
    for student in (*students.values(), *asked.values()):
        student.check()
    reward.check()
    curve = training_curve(Path(run)) if run is not None else None
    runner = Runner(queries, data.eval_batch_size, folder, place)
    found: dict[str, Any] = {}
    with runner.progress:
        written, arms_found = runner.write(arms)
        reward.setup(place)
        judges = open_ledgers(reward.students(), folder, "scores")
        uncalibrated, size = reward.state_dict(), reward.calibration_size
        for name, student in students.items():
            if reward.calibration_size != size:  # each student is measured by its own answers
                _restore(reward, uncalibrated, size)
            made = [arm for arm in arms if arm.name in written]
            found[name] = runner.answer(name, student, reward, student_prompt, made, written)
    reward.close()
    if runner.journal.reused:
        reused, path = runner.journal.reused, printable(str(runner.journal.path))
        show(f"{reused} instructions and answers are of an earlier run, from {path}; remove it for new ones")
    paid = {name: {"run": accounts.run()} for name, accounts in (_accounts(students) | judges).items()}
    extra = {"arms": arms_found, "students": found, "accounts": paid, "curve": curve}
    return write_comparison(runner.rows, extra, folder, resamples)


def test_queries(owner: str, data: QueryDataModule, limit: int | None) -> Sequence[Query]:
    """Return the queries of a comparison.

    Args:
        owner: What an error names.
        data: Provides them.
        limit: Largest number of queries; None for all.

    Raises:
        ConfigError: If the limit is impossible, or there are none.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"{owner}: limit must be at least 1, or null for all, got {limit}")
    queries = data.queries("test")[:limit]
    if not queries:
        raise ConfigError(f"{owner}: there are no test queries; give data a test file, or train and test_share")
    return queries


def rebuild(rows: str, output: str | None = None, resamples: int = 10_000) -> Comparison:
    """Compute the figures and write the report from ``rows.jsonl`` alone.

    What the rows do not hold (costs, arms that could not be run, the training curve) is taken from a ``results.json``
    beside them, if there is one.

    Args:
        rows: The file.
        output: Folder for the results; None for the folder of the file, which must then be called rows.jsonl.
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
    try:
        return write_comparison(read, extra, Path(output) if output is not None else path.parent, resamples)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{beside}: its inputs are damaged ({error!r:.80}); move it away to go on without them"
        ) from error


def _inputs(path: Path) -> dict[str, Any]:
    """Return what a ``results.json`` holds that its rows do not."""
    results = None
    with suppress(OSError, ValueError, RecursionError):
        results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or results.get("schema") != SCHEMA or "inputs" not in results:
        raise DataError(f"{path}: not a results.json of {SCHEMA}; move it away to continue without its costs")
    if not _are_inputs(results["inputs"]):
        raise DataError(f"{path}: its inputs are damaged; move it away to go on without them")
    return dict(results["inputs"])


def _are_inputs(inputs: Any) -> bool:  # noqa: ANN401 - from a file
    """Return whether costs and curve are numbers: they are computed with, here and in the report."""

    def is_number(value: object) -> bool:
        return value is None or (isinstance(value, int | float) and math.isfinite(value))

    def are_figures(value: object) -> bool:
        return value is None or (isinstance(value, dict) and all(map(is_number, value.values())))

    try:
        arms, students, curve = (inputs.get(name) or {} for name in ("arms", "students", "curve"))
        costs = [arm.get("writing") for arm in arms.values()]
        costs += [cost for student in students.values() for cost in (student.get("accounts") or {}).values()]
        points = [number for points in curve.values() for step, reward in points for number in (step, reward)]
    except (AttributeError, TypeError, ValueError):
        return False
    return all(map(are_figures, costs)) and all(map(is_number, points))


def _restore(reward: Reward, uncalibrated: dict[str, Any], size: int) -> None:
    """Return a reward to its state of before its calibration.

    Raises:
        ConfigError: If it cannot go back.
    """
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        reward.load_state_dict(uncalibrated)
    if reward.calibration_size != size:
        raise ConfigError(
            f"compare: reward {type(reward).__name__} cannot be calibrated again for another student; give one student"
        )


def _accounts(students: dict[str, Student]) -> dict[str, Accounts]:
    return {name: student.accounts for name, student in students.items() if student.accounts is not None}


def _check_resamples(resamples: int) -> None:
    if resamples < MIN_RESAMPLES:
        raise ConfigError(f"compare: resamples must be at least {MIN_RESAMPLES}, got {resamples}")


def _arms(
    teacher: Teacher | None, trained: dict[str, str], fixed: Sequence[str], asked: dict[str, Student]
) -> list[Arm]:
    for option, given in (("asked", asked), ("trained", trained)):
        if given and teacher is None:
            raise ConfigError(f"compare: {option} needs teacher, whose prompt and model are used")
    if any(not text.strip() for text in fixed):
        raise ConfigError("compare: fixed holds an empty instruction; remove it, no instruction is an arm anyway")
    arms: list[Arm] = [FixedInstruction(text) for text in (None, *fixed)]
    if teacher is not None:
        arms.append(TeacherArm(UNTRAINED, teacher))
        arms += [AskedStudent(name, student, teacher.prompt) for name, student in asked.items()]
        arms += [TeacherArm(name, teacher, path) for name, path in trained.items()]
    names = [arm.name for arm in arms]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"compare: two arms are called {name!r}; give one of them another name")
    return arms
