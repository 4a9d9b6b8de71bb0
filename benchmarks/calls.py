"""Reward on held-out queries against student calls spent, for each measure that may save calls, alone and together.

    python benchmarks/calls.py run --out runs/calls            # each run in a process of its own; what is done is kept
    python benchmarks/calls.py table --out runs/calls --picture runs/calls/calls.png

A call is an answer that the student had to give in training, in a validation or in a warm start; an answer that it has
given before in the run, and those for the held-out queries or to calibrate a reward, are not counted. Each run leaves
``TASK.ARM.SEED.jsonl``: a row for each time that the held-out queries were tried.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from calls_public import PUBLIC
from calls_table import table
from calls_tasks import ARMS, MODEL, TASKS, Task, build, tiny
from lightning import Callback, Trainer, seed_everything
from same_weights import write_models

import wst
from wst.environment import Environment
from wst.inference.distil import race
from wst.types import Instruction, Prompt, Query, Response

RACE, GEPA, GEPA_STUDENT, TRL = "race", "gepa", "gepa, student reflects", "trl rloo"
SEARCHES = (RACE, GEPA, GEPA_STUDENT)
PEERS = (*SEARCHES, TRL)
Row = dict[str, Any]


class Counted(wst.Student):
    """Asks another student each prompt once, and counts."""

    deterministic = True

    def __init__(self, student: wst.Student) -> None:
        self.student = student
        self.calls = 0
        self.counting = True
        self._answers: dict[Any, Response] = {}

    def check(self) -> None:
        """Check the other student."""
        self.student.check()

    def setup(self, device: torch.device) -> None:
        """Load the other student."""
        self.student.setup(device)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Ask for what is new."""
        new = {p.messages: p for p in prompts if p.messages not in self._answers}
        if new:
            self._answers |= dict(zip(new, self.student.respond(list(new.values())), strict=True))
            self.calls += len(new) * self.counting
        return [self._answers[prompt.messages] for prompt in prompts]


class Curve(Callback):
    """Tries the held-out queries every so many calls, and ends the run when the calls are spent."""

    def __init__(self, student: Counted, queries: Sequence[Query], calls: int, every: int, path: Path) -> None:
        self.student, self.queries, self.calls, self.every, self.path = student, queries, calls, every, path
        self.rows: list[Row] = []
        self.in_validation = self._before = 0
        self.began = time.perf_counter()

    def on_train_start(self, trainer: Trainer, module: Any) -> None:  # noqa: ANN401
        """Try the untrained teacher: callbacks are asked before the module makes its warm start."""
        self.note(trainer.global_step, module)

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:  # noqa: ANN401
        """Try the teacher, if it is time, or the end."""
        if self.after(trainer.global_step, module):
            trainer.should_stop = True

    def after(self, step: int, module: Any) -> bool:  # noqa: ANN401
        """Try the teacher after a step, if it is time; return whether all calls are spent."""
        spent = self.student.calls >= self.calls
        if spent or self.student.calls - self.rows[-1]["calls"] >= self.every:
            self.note(step, module)
        return spent

    def on_validation_start(self, *_: Any) -> None:  # noqa: ANN401
        """Count the calls of a validation apart as well."""
        self._before = self.student.calls

    def on_validation_end(self, *_: Any) -> None:  # noqa: ANN401
        """Count the calls of a validation apart as well."""
        self.in_validation += self.student.calls - self._before

    def on_train_end(self, trainer: Trainer, module: Any) -> None:  # noqa: ANN401
        """Try the last teacher, if it was not tried."""
        if self.rows[-1]["step"] < trainer.global_step:
            self.note(trainer.global_step, module)

    def note(self, step: int, module: Any) -> None:  # noqa: ANN401
        """Try the teacher on the held-out queries, and write a row."""
        self.student.counting = False
        instructions = module.teacher.sample(self.queries, greedy=True)
        rollouts = module.environment.respond(self.queries, instructions)
        rewards, leaks = module.environment.score(rollouts).total, module.environment.leaks(rollouts)
        self.student.counting = True
        row = {"calls": self.student.calls, "validation": self.in_validation, "step": step}
        row |= {"reward": _mean(rewards), "leak": _mean(leaks), "seconds": round(time.perf_counter() - self.began, 1)}
        self.rows.append(row | {"example": instructions[0].text})
        _append(self.path, self.rows[-1])


def one(out: Path, task_name: str, arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Make a run, unless it is done; return its file."""
    target = out / f"{task_name}.{arm}.{seed}.jsonl"
    if target.is_file():
        return target
    out.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    seed_everything(seed, verbose=False)
    task = PUBLIC[task_name][0](options) if task_name in PUBLIC else TASKS[task_name]
    model, asked = MODEL, options.student
    if options.tiny:
        task, model = tiny(task), str(out / "tiny/lm")
        asked = model
        if not Path(model).is_dir():
            write_models(out / "tiny")
            seed_everything(seed, verbose=False)
    cache = wst.AnswerCache(str(out / "answers.sqlite"))
    student = Counted(wst.LocalStudent(asked, max_new_tokens=task.answer_tokens, batch_size=64, cache=cache))
    limits = {"limit_val": options.val or options.held_out, "limit_test": options.held_out, "shuffle_seed": seed}
    if arm == RACE:
        _race(task, model, student, seed, limits, options, part)
    elif arm in SEARCHES:
        _gepa(task, model, asked if arm == GEPA_STUDENT else model, student, seed, limits, options, part)
    elif arm == TRL:
        _trl(task, model, student, seed, limits, options, part)
    else:
        _train(task, model, arm, student, limits, options, part)
    part.rename(target)
    return target


def _train(
    task: Task, model: str, arm: str, student: Counted, limits: Row, options: argparse.Namespace, path: Path
) -> None:
    module, data = build(task, ARMS[arm], student, model, limits)
    _ready(module, data, student, options)
    a_step = data.batch_size * module.samples_per_query
    curve = Curve(student, data.queries(options.split)[: options.held_out], options.calls, options.every, path)
    trainer = Trainer(
        accelerator="cpu" if options.tiny else "auto",
        devices=1,
        max_steps=3 * -(-options.calls // a_step),  # answers given before spend nothing
        val_check_interval=max(1, options.val_calls // a_step),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if options.val else 0,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=path.parent,  # of what a run that is ended by a signal saves
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[curve],
    )
    trainer.fit(module, data)


def _trl(
    task: Task, model: str, student: Counted, seed: int, limits: Row, options: argparse.Namespace, path: Path
) -> None:
    """Train by TRL's RLOOTrainer, with the settings of the default arm."""
    from calls_trl import train

    module, data = build(task, ARMS["default"], student, model, limits)
    module.teacher.load(_device(options))
    _ready(module, data, student, options)
    curve = Curve(student, data.queries(options.split)[: options.held_out], options.calls, options.every, path)
    curve.note(0, module)
    rows = data.batch_size * module.samples_per_query
    train(module, data.queries("train"), rows, seed, lambda step: curve.after(step, module))


def _race(
    task: Task, model: str, student: Counted, seed: int, limits: Row, options: argparse.Namespace, path: Path
) -> None:
    """Race given sentences and samples of the untrained teacher, once for each number of calls."""
    module, data = build(task, ARMS["default"], student, model, limits)
    module.teacher.load(_device(options))
    _ready(module, data, student, options)
    test, train = list(data.queries(options.split)[: options.held_out]), data.queries("train")
    samples = [z.text for z in module.teacher.sample([train[i] for i in range(min(28, len(train)))]) if z.text.strip()]
    began, fewest = time.perf_counter(), 8 * math.ceil(math.log2(8))
    for calls in sorted({max(fewest, options.calls * i // 4) for i in range(1, 5)}):
        fits = max(n for n in range(8, 33) if n * math.ceil(math.log2(n)) <= calls)
        sentences = list(dict.fromkeys([*task.sentences, *samples]))[:fits]
        student.counting = False  # a race of fewer calls would have been another race, which this one does not pay for
        finished = race(sentences, train, module.environment, calls, seed)
        _append(path, _of_sentence(finished.winner, finished.calls, module.environment, test, began))


def _gepa(
    task: Task,
    model: str,
    reflecting: str,
    student: Counted,
    seed: int,
    limits: Row,
    options: argparse.Namespace,
    path: Path,
) -> None:
    """Search by GEPA once; its best sentence over the calls makes the rows."""
    from calls_gepa import reflector, search

    module, data = build(task, ARMS["default"], student, model, limits)
    _ready(module, data, student, options)
    test, train = list(data.queries(options.split)[: options.held_out]), data.queries("train")
    began = time.perf_counter()
    reflect = reflector(reflecting, _device(options))
    found = search(module.environment, train, task.sentences[0], options.calls, reflect, seed)
    student.counting = False
    for best in found:
        _append(path, _of_sentence(best.sentence, best.calls, module.environment, test, began))


def _of_sentence(sentence: str, calls: int, environment: Environment, queries: Sequence[Query], began: float) -> Row:
    rollouts = environment.respond(queries, [Instruction(sentence)] * len(queries))
    rewards, leaks = environment.score(rollouts).total, environment.leaks(rollouts)
    row = {"calls": calls, "validation": 0, "step": 0, "reward": _mean(rewards), "leak": _mean(leaks)}
    return row | {"seconds": round(time.perf_counter() - began, 1), "example": sentence}


def _ready(module: wst.WeakToStrong, data: wst.QueryDataModule, student: Counted, options: argparse.Namespace) -> None:
    """Load student and reward; what calibrates the reward is asked for in every arm alike, and is not counted."""
    module.environment.setup(_device(options))
    if size := module.environment.reward.calibration_size:
        student.counting = False
        module.environment.calibrate(data.queries("train")[:size])
        student.counting = True


def _device(options: argparse.Namespace) -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")


def run(options: argparse.Namespace) -> int:
    """Make all runs that are not done, each in a process of its own."""
    jobs = [(task, arm, seed) for seed in options.seeds for task in options.tasks for arm in options.arms]
    left = [job for job in jobs if not (options.out / "{}.{}.{}.jsonl".format(*job)).is_file()]
    print(f"{len(jobs)} runs, {len(left)} of them to be made", flush=True)
    failed = 0
    for number, (task, arm, seed) in enumerate(left, 1):
        began = time.perf_counter()
        command = [sys.executable, __file__, "one", *sys.argv[2:], "--tasks", task, "--arms", arm, "--seeds", str(seed)]
        code = subprocess.run(command).returncode
        failed += code != 0
        seconds = time.perf_counter() - began
        print(f"{number} of {len(left)}: {task}, {arm}, seed {seed}: {seconds:.0f} s, exit code {code}", flush=True)
    return int(failed > 0)


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def main(arguments: Sequence[str] | None = None) -> int:
    """Make runs, one run, or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "one", "table"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' files")
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, *PUBLIC], default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *PEERS], default=[*ARMS, RACE, GEPA, TRL])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--student", default=MODEL, help="model that answers (that of the teacher)")
    parser.add_argument("--calls", type=int, default=480, help="student calls of a run (480)")
    parser.add_argument("--every", type=int, default=64, help="calls between two tries of the held-out queries (64)")
    parser.add_argument("--held_out", type=int, default=100, help="held-out queries (100)")
    parser.add_argument("--val", type=int, default=16, help="validation queries (16); 0 leaves validations out")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="held-out queries: 'val' to choose by")
    parser.add_argument("--val_calls", type=int, default=160, help="training calls between two validations (160)")
    parser.add_argument("--target", type=float, help="reward whose calls are counted (the end of the default arm)")
    parser.add_argument("--picture", type=Path, help="where `table` draws the curves")
    parser.add_argument("--gsm8k", help="folder with train.jsonl and test.jsonl, for the task gsm8k")
    parser.add_argument("--helpful", nargs=2, metavar=("TRAIN", "TEST"), help="files of HH-RLHF, for the task helpful")
    parser.add_argument("--preference", help="folder of the preference model, for the task helpful")
    parser.add_argument("--tiny", action="store_true", help="the tests' tiny model instead of SmolLM2")
    options = parser.parse_args(arguments)
    for task in options.tasks if options.what != "table" else ():
        for needed in PUBLIC[task][1] if task in PUBLIC else ():
            if getattr(options, needed) is None:
                parser.error(f"the task {task} needs --{needed}")
    if options.what != "one":
        return run(options) if options.what == "run" else table(options, [*ARMS, *PEERS])
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for task in options.tasks:
        for arm in options.arms:
            for seed in options.seeds:
                one(options.out, task, arm, seed, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
