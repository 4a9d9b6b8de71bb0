"""The work of a comparison: arms write, students answer, the journal keeps every batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wst.environment import Environment
from wst.errors import StorageError, WSTError, debugging
from wst.evaluation.instructors import Arm, AskedStudent
from wst.evaluation.journal import Entry, Journal, key_of
from wst.evaluation.rows import Row, result_rows, score_once
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward
from wst.settings import identity_of
from wst.students.base import Student, respond
from wst.terminal import never_fatal, printable
from wst.types import Instruction, Message, Prompt, Query, Response, Rollout

Written = Instruction | str | None  #: An instruction; None for no instruction; a string says why it is missing.

_ENOUGH = 8  #: After so many failures without a success, the rest of an arm is not tried.


class _Journaled(Student):
    """Answers from the journal, and asks a student only for what the journal lacks.

    Args:
        name: Of the student in this comparison: of two students of one's own, nothing else may be known apart.
        student: Asked; loaded when it is first needed.
        journal: Holds the answers.
        device: Where the student is loaded.
    """

    def __init__(self, name: str, student: Student, journal: Journal, device: torch.device) -> None:
        self.student = student
        self.deterministic = student.deterministic
        self.unusable = False  #: whether loading was tried and failed
        self._journal = journal
        self._identity = [name, identity_of(student), device.type]
        self._load = cache(partial(student.setup, device))

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Return the student's answers."""
        keys = [key_of("answer", self._identity, _plain(prompt.messages)) for prompt in prompts]
        entries = self._journal.fill(keys, lambda places: self._ask([prompts[i] for i in places]))
        return [
            Response(
                entry["response"],
                entry["response_tokens"],
                entry["truncated"],
                prompt_tokens=entry.get("prompt_tokens", 0),
                refused=entry.get("refused", False),
                error=entry["error"],
            )
            for entry in entries
        ]

    def _ask(self, prompts: list[Prompt]) -> list[Entry]:
        self.unusable = True
        self._load()
        self.unusable = False
        return [
            {
                "response": response.text,
                "response_tokens": response.tokens,
                "truncated": response.truncated,
                "prompt_tokens": response.prompt_tokens,
                "refused": response.refused,
                "error": response.error,
            }
            for response in respond(self.student, prompts)
        ]

    def close(self) -> None:
        """Release the student."""
        self.student.close()


class Runner:
    """Runs arms and students over the queries, batch by batch.

    Args:
        queries: The test queries.
        batch_size: Queries in a batch.
        folder: Holds the journal and the ledger of calls.
        device: Where local models are loaded.
    """

    def __init__(self, queries: Sequence[Query], batch_size: int, folder: Path, device: torch.device) -> None:
        self.queries = queries
        self.batch_size = batch_size
        self.folder = folder
        self.device = device
        self.journal = Journal(folder / "journal.jsonl")
        self.rows: list[Row] = []
        self.progress = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )

    # ------------------------------------------------------------ instructions

    def write(self, arms: Sequence[Arm]) -> tuple[dict[str, list[Written]], dict[str, dict[str, Any]]]:
        """Write the instructions of every arm.

        Returns:
            The instructions by arm, one a query; and what is known of each arm: kind, error, and the cost of writing.
        """
        written: dict[str, list[Written]] = {}
        known: dict[str, dict[str, Any]] = {}
        for arm in arms:
            known[arm.name] = {"kind": arm.kind, "error": None, "writing": None}
            with self._guarded(f"arm {arm.name}", known[arm.name], "error"):
                student = arm.student if isinstance(arm, AskedStudent) else None
                try:
                    with self._booked(student, f"instructions/{arm.name}", known[arm.name], "writing"):
                        written[arm.name] = self._write(arm)
                finally:
                    arm.close()
        return written, known

    def _write(self, arm: Arm) -> list[Written]:
        identity, load = arm.identity(), cache(partial(arm.setup, self.device))

        def make(queries: Sequence[Query], places: Sequence[int]) -> list[Entry]:
            load()
            return [_instruction_entry(written) for written in arm.instruct([queries[i] for i in places])]

        entries: list[Entry] = []
        for _, queries in self._batches(f"{arm.name} writes"):
            keys = [
                key_of("instruction", identity, self.device.type, [query.id, query.text, _plain(query.history)])
                for query in queries
            ]
            entries += self.journal.fill(keys, partial(make, queries))
            self._stop_if_all_failed([entry["error"] for entry in entries])
        return [
            entry["error"] if entry["error"] is not None else _instruction(entry["text"], entry["truncated"])
            for entry in entries
        ]

    # ----------------------------------------------------------------- answers

    def answer(
        self,
        name: str,
        student: Student,
        reward: Reward,
        prompt: StudentPrompt | None,
        arms: Sequence[Arm],
        written: dict[str, list[Written]],
    ) -> dict[str, Any]:
        """Collect a student's answers under every arm, and score them.

        Args:
            name: Name of the student.
            student: Answers; loaded when it is first needed.
            reward: Scores; loaded.
            prompt: Template of the student's prompt.
            arms: The arm without an instruction must be the first one.
            written: Instructions by arm, one a query.

        Returns:
            Why the student could not be run at all, or under which arm it could not, and its costs by arm.
        """
        asked = _Journaled(name, student, self.journal, self.device)
        environment = Environment(asked, reward, prompt)
        known: dict[str, Any] = {"error": None, "errors": {}, "accounts": {}}
        scored: dict[Any, Any] = {}
        with self._guarded(f"student {name}", known, "error"):
            try:
                for arm in arms:
                    with (
                        self._guarded(f"arm {arm.name}, student {name}", known["errors"], arm.name),
                        self._booked(student, f"answers/{name}/{arm.name}", known["accounts"], arm.name),
                    ):
                        self._answer(name, environment, arm, written[arm.name], scored)
                    if asked.unusable:
                        known |= {"error": known["errors"][arm.name], "errors": {}}
                        break
            finally:
                student.close()
        return known

    def _answer(
        self, name: str, environment: Environment, arm: Arm, written: Sequence[Written], scored: dict[Any, Any]
    ) -> None:
        rollouts: list[Rollout] = []
        for start, queries in self._batches(f"{name} answers: {arm.name}"):
            batch = list(zip(queries, written[start : start + len(queries)], strict=True))
            asked = [(query, z) for query, z in batch if not isinstance(z, str)]
            answered = iter(environment.respond([query for query, _ in asked], [z for _, z in asked]))
            for query, z in batch:
                missing = Rollout(query, None, Response("", error=f"no instruction: {z}"))
                rollouts.append(missing if isinstance(z, str) else next(answered))
            self._stop_if_all_failed([rollout.response.error for rollout in rollouts])
        if environment.reward.calibration_size:
            environment.calibrate(self.queries[: environment.reward.calibration_size])
        scores, leaks = score_once(environment, rollouts, scored), environment.leaks(rollouts)
        self.rows += result_rows(name, [(arm.name, arm.kind)], rollouts, scores, leaks)

    # -------------------------------------------------------------------- both

    def _batches(self, description: str) -> Iterator[tuple[int, Sequence[Query]]]:
        """Yield the place of each batch and its queries, and show the progress."""
        starts = range(0, len(self.queries), self.batch_size)
        task = self.progress.add_task(printable(description, 60), total=len(starts))
        for start in starts:
            yield start, self.queries[start : start + self.batch_size]
            self.progress.advance(task)

    def _stop_if_all_failed(self, errors: Sequence[str | None]) -> None:
        """Stop an arm early if nothing but failures has come so far.

        Raises:
            WSTError: If so.
        """
        if len(errors) >= min(_ENOUGH, len(self.queries)) and None not in errors:
            raise WSTError(f"all of the first {len(errors)} failed ({errors[0]})")

    @contextmanager
    def _guarded(self, what: str, errors: dict[str, Any], name: str) -> Iterator[None]:
        """Record an error under a name and go on; with ``WST_DEBUG=1`` it is raised."""
        try:
            yield
        except Exception as error:
            if debugging() or isinstance(error, StorageError):  # nothing that follows could be kept either
                raise
            first = printable((str(error).strip().splitlines() or [""])[0])
            errors[name] = first if isinstance(error, WSTError) else f"{type(error).__name__}: {first}"
            shown = printable(f"{what}: {errors[name]}")
            with never_fatal():
                self.progress.console.print(shown, style="red", highlight=False, markup=False)

    @contextmanager
    def _booked(self, student: Student | None, stage: str, costs: dict[str, Any], name: str) -> Iterator[None]:
        """Book a student's calls under a stage, and record what the stage has cost, interrupted runs included."""
        accounts = None if student is None else student.accounts
        if accounts is None:
            yield
            return
        accounts.open(self.folder, stage)
        try:
            yield
        finally:
            figures = accounts.run().get(stage) or {"cost": 0.0 if accounts.prices else None}
            costs[name] = {key: figures.get(key, 0) for key in ("calls", "cost", "prompt_tokens", "completion_tokens")}


def _instruction_entry(written: Written) -> Entry:
    if isinstance(written, Instruction):
        return {"text": written.text, "truncated": written.truncated, "error": None}
    return {"text": None, "truncated": False, "error": written}


def _instruction(text: str | None, truncated: bool) -> Instruction | None:
    return None if text is None else Instruction(text, truncated=truncated)


def _plain(turns: Sequence[Message]) -> list[list[str]]:
    return [[turn.role, turn.content] for turn in turns]
