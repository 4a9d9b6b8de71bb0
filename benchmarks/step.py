"""Seconds of a training step: ours, TRL's RLOOTrainer's, and what the models alone cost (the floor).

    python benchmarks/step.py [--beta 0.05] [--queries 8] [--samples 4] [--instruction-tokens 24] [--answer-tokens 24]

The arms make the same step (same models and number format, same prompts, same sampling, the same student with the same
batched generation) and alternate in one process. Memory is measured in a process for each arm. TRL comes with
``pip install -e '.[bench]'``.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from arms import Bench, Floor, Ours, Trl, write_student

PHASES = ("sample", "respond", "score", "update")


def table(arms: dict[str, list[dict[str, float]]]) -> str:
    """Rows of seconds by phase: medians, with the range of whole steps."""
    lines = ["| arm | step | range | sample | respond | update |", "|---|---:|---|---:|---:|---:|"]
    for name, seconds in arms.items():
        middle = {key: statistics.median(row.get(key, 0.0) for row in seconds) for key in ("step", *PHASES)}
        whole = [row["step"] for row in seconds]
        phases = " | ".join(f"{middle[phase]:.2f}" for phase in ("sample", "respond", "update"))
        lines.append(f"| {name} | {middle['step']:.2f} s | {min(whole):.2f} … {max(whole):.2f} | {phases} |")
    return "\n".join(lines)


def ratios(one: list[dict[str, float]], two: list[dict[str, float]]) -> str:
    """How many times as long one arm takes as another: median and range over the pairs of neighbours."""
    found = [a["step"] / b["step"] for a, b in zip(one, two, strict=False)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} … {max(found):.2f})"


def keep_memory() -> None:
    """Begin again with the settings of `make demo`, by which glibc keeps freed blocks.

    Otherwise an arm pays for the pages that the arm before it gave back.
    """
    kept = {"MALLOC_TOP_PAD_": 10**9, "MALLOC_MMAP_THRESHOLD_": 4 * 10**9, "MALLOC_TRIM_THRESHOLD_": 8 * 10**9}
    if not kept.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {k: str(v) for k, v in kept.items()})


def main() -> None:
    """Print the table."""
    keep_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beta", type=float, default=0.05, help="weight of the KL; 0: no reference pass")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--instruction-tokens", type=int, default=24)
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--placement", default="system", help="of the instruction in the student's prompt")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each arm, after one to warm up")
    parser.add_argument("--without-memory", action="store_true")
    parser.add_argument("--only", choices=("ours", "TRL"), help="one arm alone; prints the peak of its memory")
    parser.add_argument("--student", help="folder of the student; by default one is written")
    options = parser.parse_args()
    options.rows = options.queries * options.samples
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    place = tempfile.TemporaryDirectory()
    bench = Bench(options, options.student or write_student(Path(place.name)))
    if options.only == "ours":
        Ours(bench).run(2)
    if options.only == "TRL":
        trl = Trl(bench)
        trl.start(2)
        trl.step()
        trl.step()
    if options.only:
        gpu = torch.cuda.max_memory_allocated() / 1e6 if bench.device.type == "cuda" else None
        print(f"\n{gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}")
        return
    ours, trl, floor = Ours(bench), Trl(bench), Floor(bench)
    trl.start(options.repeats + 1)

    def others() -> None:
        trl.step()
        floor.step()

    ours.run(options.repeats + 1, others)
    arms = {"ours": ours.seconds[1:], "TRL": trl.seconds[1:], "floor": floor.seconds[1:]}
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{device}; {options.queries} queries x {options.samples}, {options.instruction_tokens} instruction and ",
        end="",
    )
    print(f"{options.answer_tokens} answer tokens, beta {options.beta}; median of {options.repeats} steps\n")
    print(table(arms))
    rest = [1 - row["models"] / row["step"] for row in arms["ours"]]
    rate = statistics.median(row["tokens"] / row["step"] for row in arms["ours"])
    print(f"\nTRL / ours: {ratios(arms['TRL'], arms['ours'])}. ours / floor: {ratios(arms['ours'], arms['floor'])}.")
    print(f"Ours: {rate:.0f} sampled tokens a second; {statistics.median(rest):.1%} of a step is not spent in models.")
    if options.without_memory:
        return
    for name in ("ours", "TRL"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--student", bench.student.source]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{name}: {float(done.stdout.split()[-1]):.0f} MB at the most", flush=True)


if __name__ == "__main__":
    main()
