"""``wst gate FOLDER --config FILE``: give no instruction where the teacher is not sure enough to do no harm."""

from __future__ import annotations

import argparse
from dataclasses import replace

from wst.cli.check import load_run
from wst.cli.options import teacher_parser
from wst.environment import Environment
from wst.errors import ConfigError
from wst.inference.artefact import Artefact
from wst.inference.card import write_card
from wst.inference.gate import Gate, check_rows, choose
from wst.inference.instructor import Instructor
from wst.students.accounts import open_ledgers
from wst.types import Query


def run(args: list[str]) -> int:
    """Choose the threshold on validation queries, write it into ``wst.json``, and return the exit code.

    Raises:
        WSTError: If the config or the teacher cannot be used, or there are too few validation queries.
    """
    options, rest = _parser().parse_known_args(args)
    artefact = replace(Artefact.read(options.teacher), gate=None)
    module, data = load_run("gate", rest)
    queries = list(data.queries("val"))
    if not queries:
        raise ConfigError("gate: there are no validation queries; give data a val file, or train and val_share")
    instructor = Instructor(artefact, options.device, options.base, data.eval_batch_size)
    gate = find_gate(instructor, module.environment, queries, options.harm, options.delta)
    gated = replace(artefact, gate=gate.to_dict())
    gated.write()
    write_card(gated)
    print(
        f"threshold {gate.threshold:.2f} nats a token: {gate.instructed:.0%} of {gate.rows} validation queries get an "
        f"instruction, {gate.harmed:.1%} are made worse; at most {gate.harm:.1%} of queries will be, with probability "
        f"{1 - gate.delta:.0%}\nmean gain over no instruction: {gate.gain:+.3f} of {gate.gain_without:+.3f} "
        "without the gate"
    )
    return 0


def find_gate(
    instructor: Instructor, environment: Environment, queries: list[Query], harm: float, delta: float = 0.1
) -> Gate:
    """Answer validation queries with and without instruction, and choose the threshold.

    Args:
        instructor: The teacher, without a gate.
        environment: Student and reward; loaded here, on the teacher's device, and closed again.
        queries: Validation queries, which the teacher was not trained on.
        harm: Largest share of queries that may be made worse.
        delta: Probability that this is exceeded.

    Raises:
        ConfigError: If a level is not between 0 and 1.
        DataError: If there are too few, or too few could be scored.
    """
    check_rows(len(queries), harm, delta)
    open_ledgers(environment.students(), instructor.artefact.folder, "gate")
    environment.check()
    environment.setup(instructor.load().placed)
    try:
        if environment.reward.calibration_size:
            environment.calibrate(queries[: environment.reward.calibration_size])
        rewards: list[float] = []
        confidences: list[float] = []
        for start in range(0, len(queries), instructor.batch_size):
            batch = queries[start : start + instructor.batch_size]
            written = instructor.write(batch)
            confidences += instructor.confidences(written)
            rewards += environment.score(environment.respond(batch, list(written))).total
        unaided = [float(reward) for reward in environment.unaided_rewards(queries)]
    finally:
        environment.close()
    return choose(confidences, rewards, unaided, harm, delta)


def _parser() -> argparse.ArgumentParser:
    parser = teacher_parser(
        "gate",
        "Choose, on validation queries, below which confidence of the teacher's no instruction is given.",
        rest=True,
    )
    parser.add_argument("--harm", type=float, default=0.02, help="share of queries that may be made worse (0.02)")
    parser.add_argument("--delta", type=float, default=0.1, help="probability that this is exceeded (0.1)")
    return parser
