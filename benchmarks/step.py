"""Seconds of a training step: ours, TRL's RLOOTrainer's, and what the models alone cost (the floor).

    python benchmarks/step.py [--beta 0.05] [--queries 8] [--samples 4] [--instruction-tokens 24] [--answer-tokens 24]

The arms make the same step (same models and number format, same prompts, same sampling, the same student with the same
batched generation). Each has a process of its own, lest it meet the memory that another has left behind, and they take
turns, one step each. TRL comes with ``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import IO, Any, cast

import torch
from arms import Bench, Floor, Ours, Trl, write_student

from wst.modeling.allocator import keep_freed_blocks

ARMS: dict[str, Any] = {"ours": Ours, "TRL": Trl, "floor": Floor}
#: The update is log-probabilities, KL, backward pass and optimizer; TRL's and the floor's: all else.
PHASES = ("sample", "respond", "score", "update")

Rows = list[dict[str, float]]


def arguments() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=0.05, help="weight of the KL; 0: no reference pass")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--instruction-tokens", type=int, default=24)
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--placement", default="system", help="of the instruction in the student's prompt")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each arm, after one to warm up")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--keep-freed", action="store_true", help="let glibc keep freed blocks for all arms, not just for ours"
    )
    parser.add_argument("--profile", action="store_true", help="no turns: what operations a step of ours is spent in")
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--student", help=argparse.SUPPRESS)
    return parser


# ----------------------------------------------------------------- an arm's process


def work(options: argparse.Namespace) -> None:
    """Make a step for each line that comes in, and tell of it in one that goes out."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    if options.keep_freed or options.worker == "ours":
        keep_freed_blocks()  # as the command line does
    bench = Bench(options, options.student)

    def done(seconds: dict[str, float]) -> None:
        cuda = bench.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else peak_of_process()
        print(json.dumps({**seconds, "memory": peak}), file=told, flush=True)

    ARMS[options.worker](bench).run(options.repeats + 1, sys.stdin.readline, done)


def peak_of_process() -> float:
    """Megabytes that this process has held at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def profiled(options: argparse.Namespace, student: str) -> str:
    """Return the operations of the third of three steps, as rows of seconds and shares."""
    cuda = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    recorder, steps = torch.profiler.profile(activities=kinds), 3
    left = [steps]

    def go() -> None:
        left[0] -= 1
        if not left[0]:
            recorder.start()

    def done(_: dict[str, float]) -> None:
        if not left[0]:
            recorder.stop()

    keep_freed_blocks()
    Ours(Bench(options, student)).run(steps, go, done)
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    seconds = {event.key: getattr(event, own) / 1e6 for event in recorder.key_averages()}
    whole = sum(seconds.values())
    most = sorted(seconds.items(), key=lambda item: -item[1])[:12]
    lines = ["| operation | s | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {spent:.2f} | {spent / whole:.1%} |" for name, spent in most]
    rest = whole - sum(spent for _, spent in most)
    return "\n".join([*lines, f"| all others | {rest:.2f} | {rest / whole:.1%} |"])


# ------------------------------------------------------------------- taking turns


class Arm:
    """An arm's process, seen from outside."""

    def __init__(self, name: str, student: str, log: IO[str]) -> None:
        self.name, self.rows = name, cast(Rows, [])
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name, "--student", student]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True)

    def step(self) -> None:
        """Let it make one step.

        Raises:
            RuntimeError: If it has ended.
        """
        try:
            print(file=self.process.stdin, flush=True)
            line = cast(IO[str], self.process.stdout).readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"arm {self.name}: its process ended with {self.process.wait()}")
        self.rows.append(json.loads(line))


def table(arms: dict[str, Rows]) -> str:
    """Rows of seconds by phase: medians, with the range of whole steps."""
    lines = [f"| arm | step | range | {' | '.join(PHASES)} | other | peak |", f"|---|---:|---|{'---:|' * 6}"]
    for name, rows in arms.items():
        for row in rows:
            row["other"] = row["step"] - sum(row.get(phase, 0.0) for phase in PHASES)
        whole = [row["step"] for row in rows]
        phases = [statistics.median(row.get(phase, 0.0) for row in rows) for phase in (*PHASES, "other")]
        seconds = " | ".join(f"{phase:.2f}" for phase in phases)
        spread = f"{min(whole):.2f} to {max(whole):.2f}"
        lines.append(
            f"| {name} | {statistics.median(whole):.2f} s | {spread} | {seconds} | {rows[-1]['memory']:.0f} MB |"
        )
    return "\n".join(lines)


def ratios(one: Rows, two: Rows) -> str:
    """How many times as long one arm takes as another: median and range over the pairs of neighbours."""
    found = [a["step"] / b["step"] for a, b in zip(one, two, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def machine() -> str:
    """Name the hardware."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def main() -> None:
    """Print the table."""
    options = arguments().parse_args()
    options.rows = options.queries * options.samples
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        student = write_student(Path(folder))
        if options.profile:
            print(f"\n{machine()}\n\n{profiled(options, student)}")
            return
        arms = [Arm(name, student, log) for name in options.arms]
        try:
            for _ in range(options.repeats + 1):
                for arm in arms:
                    arm.step()
        except RuntimeError:
            log.seek(0)
            print(log.read()[-4000:], file=sys.stderr)
            raise
        finally:
            for arm in arms:
                arm.process.kill()
    found = {arm.name: arm.rows[1:] for arm in arms}
    sizes = f"{options.queries} queries x {options.samples}, {options.instruction_tokens} instruction and "
    sizes += f"{options.answer_tokens} answer tokens, placement {options.placement}, beta {options.beta}"
    print(f"\n{machine()}; {sizes}; median of {options.repeats} steps\n\n{table(found)}\n")
    if "ours" not in found:
        return
    if "TRL" in found:
        print(f"TRL / ours: {ratios(found['TRL'], found['ours'])}")
    if "floor" in found:
        print(f"ours / floor: {ratios(found['ours'], found['floor'])}")
    rest = statistics.median(1 - row["models"] / row["step"] for row in found["ours"])
    rate = statistics.median(row["tokens"] / row["step"] for row in found["ours"])
    print(f"ours: {rate:.0f} sampled tokens a second; {rest:.1%} of a step is not spent in models")


if __name__ == "__main__":
    main()
