"""``wst distil FOLDER --config FILE``: find out whether one fixed sentence does as well as the teacher."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from wst.cli.check import load_run
from wst.cli.options import teacher_parser
from wst.environment import Environment
from wst.errors import ConfigError
from wst.evaluation import USUAL, Comparison, compare
from wst.evaluation.comparison import test_queries
from wst.evaluation.journal import storage_errors
from wst.evaluation.metrics import Values, estimate_gain, is_binary, paired_p_value
from wst.evaluation.rows import NONE, UNTRAINED
from wst.evaluation.tables import show
from wst.files import write_whole
from wst.inference.artefact import Artefact
from wst.inference.distil import Race, check_budget, race
from wst.inference.instructor import Instructor
from wst.settings import check_counts
from wst.students.accounts import open_ledgers
from wst.types import Query

_TEACHER, _STUDENT = "trained teacher", "student"


def run(args: list[str]) -> int:
    """Race sentences on training queries, compare the winner with the teacher on test queries, and print the verdict.

    Raises:
        WSTError: If the config, the teacher or the budget cannot be used.
    """
    options, rest = _parser().parse_known_args(args)
    artefact = Artefact.read(options.teacher)
    module, data = load_run("distil", rest)
    sentences = _lines(Path(options.sentences)) if options.sentences else list(USUAL)
    check_counts("distil", 0, samples=options.samples)
    environment, folder = module.environment, Path(options.output)
    test_queries("distil", data, options.limit)
    if taken := {NONE, UNTRAINED, _TEACHER}.intersection(sentences):
        raise ConfigError(f"distil: {taken.pop()!r} is the name of an arm of the comparison; leave that sentence out")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    open_ledgers(environment.students(), folder, "race")
    instructor = Instructor(artefact, options.device, options.base, data.eval_batch_size)
    finished = run_race(instructor, environment, data.queries("train"), sentences, options.samples, options.budget)
    write_whole(folder / "sentence.txt", finished.winner + "\n")
    standings = [asdict(one) | {"reward": None if np.isnan(one.reward) else one.reward} for one in finished.standings]
    write_whole(folder / "race.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in standings))
    comparison = compare(
        data,
        {_STUDENT: environment.student},
        environment.reward,
        module.teacher.unloaded(prompt=artefact.prompt, experience=None),
        {_TEACHER: options.teacher},
        [finished.winner],
        student_prompt=environment.prompt,
        limit=options.limit,
        output=options.output,
        device=options.device,
    )
    show(comparison)
    said = verdict(comparison, finished)
    write_whole(folder / "verdict.txt", said + "\n")
    print(said)
    return int(bool(comparison.errors))


def run_race(
    instructor: Instructor,
    environment: Environment,
    queries: Sequence[Query],
    sentences: Sequence[str],
    samples: int,
    budget: int,
) -> Race:
    """Race given sentences and instructions that the teacher writes for training queries.

    Args:
        instructor: The teacher.
        environment: Student and reward; loaded here, on the teacher's device, and closed again.
        queries: Training queries.
        sentences: Given sentences.
        samples: Training queries, drawn at random, whose instructions take part.
        budget: Student calls at most.
    """
    environment.check()
    size, unaided = environment.reward.calibration_size, int(environment.reward.needs_unaided)
    check_budget(budget - min(size, len(queries)), max(1, len(sentences)), unaided)  # before the teacher is loaded
    drawn = random.Random(0).sample(range(len(queries)), min(samples, len(queries)))
    written = [instruction.text for instruction in instructor.write([queries[i] for i in drawn])]
    raced = list(dict.fromkeys([*sentences, *filter(str.strip, written)]))
    if not raced:
        raise ConfigError("distil: there is nothing to race; give --sentences, or --samples above 0")
    calibration = list(queries[:size])
    check_budget(budget - len(calibration), len(raced), unaided)
    environment.setup(instructor.placed)
    try:
        if calibration:
            environment.calibrate(calibration)
        found = race(raced, queries, environment, budget - len(calibration))
        return replace(found, calls=found.calls + len(calibration))
    finally:
        environment.close()


def verdict(comparison: Comparison, finished: Race) -> str:
    """Return sentences on whether the teacher beats the winning sentence on the test queries."""
    spent = (
        f"{len(finished.standings)} sentences raced for {finished.calls} student calls; the winner: {finished.winner!r}"
    )
    teacher, sentence = (_rewards(comparison, arm) for arm in (_TEACHER, finished.winner))
    if len(teacher) != len(sentence):
        return f"{spent}\nno verdict: the teacher or the sentence could not be tried"
    known = ~np.isnan(teacher - sentence)
    if not known.any():
        return f"{spent}\nno verdict: no test query could be scored under both"
    gain = estimate_gain((teacher - sentence)[known], is_binary(np.concatenate([teacher[known], sentence[known]])))
    p = paired_p_value((teacher - sentence)[known])
    figures = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}), p = {p:.3g}, {int(known.sum())} test queries"
    if p < 0.05 and gain.mean > 0:
        said = "instructions for each query are worth it: the teacher is ahead of the sentence by"
    elif p < 0.05:
        said = "take the sentence: the teacher is behind it by"
    else:
        said = "no difference shown; the sentence is the simpler choice: teacher less sentence"
    return f"{spent}\n{said} {figures}"


def _rewards(comparison: Comparison, arm: str) -> Values:
    rows = sorted((row["id"], row["reward"]) for row in comparison.rows if row["arm"] == arm)
    return np.array([np.nan if reward is None else reward for _, reward in rows], dtype=np.float64)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"distil: --sentences {path}: cannot be read ({error}); give UTF-8 text, one a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _parser() -> argparse.ArgumentParser:
    parser = teacher_parser(
        "distil",
        "Race static sentences on training queries, and compare the best with the teacher on test queries.",
        rest=True,
    )
    parser.add_argument("--budget", type=int, default=400, help="student calls for the race (400)")
    parser.add_argument("--samples", type=int, default=32, help="training queries whose instructions take part (32)")
    parser.add_argument("--sentences", help="text file of sentences that take part, one a line (the usual ones)")
    parser.add_argument("--limit", type=int, help="test queries at most (all)")
    parser.add_argument(
        "--output", default="runs/distil", help="folder for sentence.txt and the comparison (runs/distil)"
    )
    return parser
