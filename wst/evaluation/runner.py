"""The work of a comparison: batches that are written and answered, and kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from wst.errors import ConfigError, WSTError, debugging
from wst.evaluation.instructors import Arm, AskedStudent
from wst.evaluation.journal import Journal, key_of
from wst.evaluation.metrics import json_number
from wst.prompts import StudentPrompt
from wst.rewards.base import Reward, score
from wst.settings import identity_of
from wst.students.base import Student, respond
from wst.types import Instruction, Prompt, Query, Response, Rollout, rollout_row

_ENOUGH = 8  #: so many failures and no success say that the rest will fail too


@dataclass(frozen=True)
class Answerer:
    """A student that answers, and what makes rewards of its answers."""

    name: str
    student: Student
    prompt: StudentPrompt
    reward: Reward


class Work:
    """The batches of a comparison, and what is known of them."""

    def __init__(self, queries: Sequence[Query], batch_size: int, folder: Path, device: torch.device) -> None:
        self.queries = queries
        self.starts = range(0, len(queries), batch_size)
        self.batch_size = batch_size
        self.folder = folder
        self.device = device
        self.journal = Journal(folder / "journal.jsonl")
        self.rows: list[dict[str, Any]] = []
        self.unaided: dict[str, dict[str, Response]] = {}  #: answers without an instruction, by student and query
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
                    try:
                        if isinstance(arm, AskedStudent):
                            self.writing[arm.name] = _accounts(arm.student, self.folder, f"instructions/{arm.name}")
                    finally:
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
        self, answerer: Answerer, arms: Sequence[Arm], instructions: dict[str, list[dict[str, Any]]]
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
        answerer: Answerer,
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
        rollouts = self._beside_unaided(answerer, arm, rollouts)
        rewards = score(answerer.reward, rollouts).total
        leaks = answerer.reward.leaks(rollouts)
        head = {"student": answerer.name, "arm": arm.name, "kind": arm.kind}
        self.rows += [
            head
            | rollout_row(rollout)
            | _history(rollout.query)
            | {"instruction_truncated": row["truncated"], "response_tokens": answer["response_tokens"]}
            | {"reward": json_number(reward), "leak": json_number(leak), "error": answer["error"]}
            for rollout, row, answer, reward, leak in zip(rollouts, written, answers, rewards, leaks, strict=True)
        ]

    def _beside_unaided(self, answerer: Answerer, arm: Arm, rollouts: list[Rollout]) -> list[Rollout]:
        """Give a reward what it needs of the student's answers without an instruction, which are the first arm's.

        Raises:
            ConfigError: If it needs them and there are none.
        """
        reward = answerer.reward
        if arm.kind == "none":
            self.unaided[answerer.name] = {rollout.query.id: rollout.response for rollout in rollouts}
        if not reward.needs_unaided and not reward.calibration_size:
            return rollouts
        own = self.unaided.get(answerer.name)
        if own is None:
            raise ConfigError(
                f"the reward {type(reward).__name__} needs the answers of {answerer.name} without an instruction, "
                "which could not be had"
            )
        if reward.calibration_size:
            alone = [Rollout(query, None, own[query.id], own[query.id]) for query in self.queries]
            reward.calibrate(alone[: reward.calibration_size])
        return [replace(rollout, unaided=own[rollout.query.id]) for rollout in rollouts]

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
            if debugging():
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


def _history(query: Query) -> dict[str, Any]:
    turns = [{"role": turn.role, "content": turn.content} for turn in query.history]
    return {"history": turns} if turns else {}
