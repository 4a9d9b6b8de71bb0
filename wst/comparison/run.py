"""Running a comparison: every arm writes, every student answers, the reward scores."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wst.comparison.arms import USUAL, Arm, AskedStudent, FixedInstruction, NoInstruction, TeacherArm
from wst.comparison.curve import training_curve
from wst.comparison.figures import figures, read_rows
from wst.comparison.journal import Journal, as_json, key_of
from wst.comparison.report import write_report
from wst.data import QueryDataModule
from wst.errors import ConfigError, WSTError
from wst.files import write_whole
from wst.identity import identity_of
from wst.prompts import StudentPrompt, TeacherPrompt
from wst.rewards.base import Reward, score
from wst.rollout import Instruction, Prompt, Query, Response, Rollout
from wst.students.base import Student, respond
from wst.teacher import Teacher

if TYPE_CHECKING:
    import pandas as pd

LEAST_RESAMPLES = 1000  #: with fewer, no p-value could be small enough to stand a correction for several arms

_ENOUGH = 8  #: so many failures and no success say that the rest will fail too


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
    work = _Work(queries, data.eval_batch_size, Path(output), place)
    cells: dict[str, Any] = {}
    with work.progress:
        instructions, errors = work.write(arms)
        reward.setup(place)
        for name, student in students.items():
            answerer = _Answerer(name, student, student_prompt or StudentPrompt(), reward)
            cells[name] = work.answer(answerer, [arm for arm in arms if arm.name in instructions], instructions)
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
    extra: Any = None
    with suppress(OSError, ValueError, KeyError, TypeError):  # none there, or another program's
        extra = json.loads(path.with_name("results.json").read_text(encoding="utf-8"))["inputs"]
    folder = Path(output) if output is not None else path.parent
    return _finish(read, extra if isinstance(extra, dict) else {}, folder, resamples)


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


@dataclass(frozen=True)
class _Answerer:
    name: str
    student: Student
    prompt: StudentPrompt
    reward: Reward


class _Work:
    """The batches of a comparison, and what is known of them."""

    def __init__(self, queries: list[Query], batch_size: int, folder: Path, device: torch.device) -> None:
        self.queries = queries
        self.starts = range(0, len(queries), batch_size)
        self.batch_size = batch_size
        self.folder = folder
        self.device = device
        self.journal = Journal(folder / "journal.jsonl")
        self.rows: list[dict[str, Any]] = []
        self.writing: dict[str, Any] = {}  #: what asked students that keep accounts have cost, by arm
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )

    # ------------------------------------------------------------ instructions

    def write(self, arms: Sequence[Arm]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """Let every arm write: instructions by arm, one a query, and why an arm could not."""
        written: dict[str, list[dict[str, Any]]] = {}
        errors: dict[str, str] = {}
        for arm in arms:
            with self._guarded(f"arm {arm.name}", errors, arm.name):
                try:
                    written[arm.name] = self._write(arm)
                finally:
                    if isinstance(arm, AskedStudent):
                        self.writing[arm.name] = _accounts(arm.student, self.folder, f"instructions/{arm.name}")
                    arm.close()
        return written, errors

    def _write(self, arm: Arm) -> list[dict[str, Any]]:
        identity, device = arm.identity(), self.device.type
        keys = [key_of("instruction", identity, device, _plain_query(query)) for query in self.queries]

        def ready() -> None:
            if isinstance(arm, AskedStudent) and arm.student.accounts is not None:
                arm.student.accounts.open(self.folder, f"instructions/{arm.name}")
            arm.setup(self.device)

        def make(places: list[int]) -> list[dict[str, Any]]:
            return [_instruction_row(made) for made in arm.instruct([self.queries[i] for i in places])]

        return self._fill(f"{arm.name} writes", keys, make, _Once(ready))

    # ----------------------------------------------------------------- answers

    def answer(
        self, answerer: _Answerer, arms: Sequence[Arm], instructions: dict[str, list[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Let a student answer under every arm; gives why it could not, and what it cost by arm."""
        student = answerer.student
        loaded = _Once(lambda: student.setup(self.device))
        told: dict[str, Any] = {"error": None, "errors": {}, "accounts": {}}
        with self._guarded(f"student {answerer.name}", told, "error"):
            identity = [identity_of(student), self.device.type]
            try:
                for arm in arms:
                    place = f"arm {arm.name}, student {answerer.name}"
                    with self._guarded(place, told["errors"], arm.name):
                        self._answer(answerer, identity, arm, instructions[arm.name], loaded)
                    if loaded.failed:
                        told |= {"error": told["errors"][arm.name], "errors": {}}
                        break
                    stage = f"answers/{answerer.name}/{arm.name}"
                    told["accounts"][arm.name] = _accounts(student, self.folder, stage)
            finally:
                student.close()
        return told

    def _answer(
        self,
        answerer: _Answerer,
        identity: Any,  # noqa: ANN401 - what JSON knows
        arm: Arm,
        written: list[dict[str, Any]],
        loaded: _Once,
    ) -> None:
        student = answerer.student
        pairs = list(zip(self.queries, written, strict=True))
        prompts = [answerer.prompt(query, _instruction(row)) for query, row in pairs]
        keys = [
            f"no instruction: {row['error']}" if row["error"] else key_of("answer", identity, _plain_prompt(prompt))
            for prompt, row in zip(prompts, written, strict=True)
        ]

        def ready() -> None:
            loaded()
            if student.accounts is not None:
                student.accounts.open(self.folder, f"answers/{answerer.name}/{arm.name}")

        def make(places: list[int]) -> list[dict[str, Any]]:
            return [_response_row(response) for response in respond(student, [prompts[i] for i in places])]

        answers = self._fill(f"{answerer.name} answers: {arm.name}", keys, make, _Once(ready))
        rollouts = [
            Rollout(query, _instruction(row), _response(answer))
            for (query, row), answer in zip(pairs, answers, strict=True)
        ]
        rewards = score(answerer.reward, rollouts).total
        leaks = answerer.reward.leaks(rollouts)
        head = {"student": answerer.name, "arm": arm.name, "kind": arm.kind}
        self.rows += [
            head
            | _query_row(query)
            | {"instruction": row["text"], "instruction_truncated": row["truncated"]}
            | answer
            | {"reward": _number(reward), "leak": _number(leak)}
            for (query, row), answer, reward, leak in zip(pairs, answers, rewards, leaks, strict=True)
        ]

    # ------------------------------------------------------------------- both

    def _fill(
        self, description: str, keys: list[str], make: Callable[[list[int]], list[dict[str, Any]]], ready: _Once
    ) -> list[dict[str, Any]]:
        """Make what the journal does not have, batch by batch, each key once.

        Raises:
            WSTError: If nothing could be made.
        """
        made: dict[str, dict[str, Any]] = {}
        with self._task(description) as step:
            for start in self.starts:
                todo: dict[str, int] = {}
                for place in range(start, min(start + self.batch_size, len(keys))):
                    key = keys[place]
                    if key in made:
                        continue
                    if key.startswith("no instruction: "):
                        made[key] = _response_row(Response("", error=key))
                        continue
                    known = self.journal.get(key)
                    if known is not None and not known["error"]:
                        made[key] = known
                    else:
                        todo[key] = place
                if todo:
                    ready()
                    torch.manual_seed(int(next(iter(todo))[:8], 16))
                    new = dict(zip(todo, make(list(todo.values())), strict=True))
                    self.journal.put(new)
                    made |= new
                enough = len(made) >= _ENOUGH or start == self.starts[-1]
                if enough and all(row["error"] for row in made.values()):  # no use in trying all the others
                    raise WSTError(f"all of the first {len(made)} failed ({next(iter(made.values()))['error']})")
                step()
        return [made[key] for key in keys]

    @contextmanager
    def _guarded(self, what: str, errors: dict[str, Any], name: str) -> Iterator[None]:
        """Note an error under a name, and go on; with ``WST_DEBUG=1`` it is raised."""
        try:
            yield
        except Exception as error:
            if os.environ.get("WST_DEBUG", "") not in ("", "0"):
                raise
            lines = str(error).strip().splitlines() or [""]
            said = lines[0] if isinstance(error, WSTError) else f"{type(error).__name__}: {lines[0]}"
            errors[name] = said
            self.progress.console.print(f"{what}: {said}", style="red", highlight=False, markup=False)

    @contextmanager
    def _task(self, description: str) -> Iterator[Callable[[], None]]:
        shown = description if len(description) < 60 else f"{description[:57]}..."
        task = self.progress.add_task(" ".join(shown.split()), total=len(self.starts))
        yield lambda: self.progress.advance(task)


class _Once:
    """Does something when it is first needed."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action: Callable[[], None] | None = action
        self.failed = False  #: whether it was tried, and could not be done

    def __call__(self) -> None:
        if self._action is not None:
            self.failed = True
            self._action()
            self.failed, self._action = False, None


def _accounts(student: Student, folder: Path, stage: str) -> dict[str, Any] | None:
    """What a stage has cost, over all that was done in the folder; None for a student that keeps no accounts."""
    if student.accounts is None:
        return None
    student.accounts.open(folder, stage)  # if all was in the journal, nobody has
    figures = student.accounts.run().get(stage) or {"calls": 0, "cost": 0.0 if student.accounts.prices else None}
    return {name: figures.get(name, 0) for name in ("calls", "cost", "prompt_tokens", "completion_tokens")}


def _instruction_row(made: Instruction | str | None) -> dict[str, Any]:
    if isinstance(made, str):
        return {"text": None, "truncated": False, "error": made}
    return {
        "text": None if made is None else made.text,
        "truncated": made is not None and made.truncated,
        "error": None,
    }


def _instruction(row: dict[str, Any]) -> Instruction | None:
    return None if row["text"] is None else Instruction(row["text"], truncated=row["truncated"])


def _response_row(response: Response) -> dict[str, Any]:
    return {
        "response": response.text,
        "response_tokens": response.tokens,
        "truncated": response.truncated,
        "error": response.error,
    }


def _response(row: dict[str, Any]) -> Response:
    return Response(row["response"], row["response_tokens"], row["truncated"], error=row["error"])


def _plain_query(query: Query) -> list[Any]:
    return [query.id, query.text, [[turn.role, turn.content] for turn in query.history]]


def _plain_prompt(prompt: Prompt) -> list[Any]:
    return [[turn.role, turn.content] for turn in prompt.messages]


def _query_row(query: Query) -> dict[str, Any]:
    row: dict[str, Any] = {"id": query.id, "query": query.text, "target": query.target}
    if query.history:
        row["history"] = [{"role": turn.role, "content": turn.content} for turn in query.history]
    return row


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
