"""Seconds and peak memory of a step as each of its sizes grows, and of the start as the data set grows.

    python benchmarks/scaling.py [--quick]

Each row is a process of its own, which makes two steps and times the second. Teacher and student are SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from arms import DATA, TEACHER, Vowels, quiet_trainer
from lightning import Callback, Trainer

import wst
from wst.modeling.allocator import keep_freed_blocks

BASE = {"samples": 4, "queries": 8, "instruction": 24, "answer": 24}
SIZES = {
    "samples": (2, 4, 8, 16, 32),
    "queries": (4, 8, 16, 32, 64),
    "instruction": (16, 64, 128, 256),
    "answer": (16, 64, 256, 512),
}
ROWS = (10**3, 10**4, 10**5, 10**6)


def step(sizes: dict[str, int]) -> dict[str, float]:
    """Make two steps; give the second one's seconds by phase, and the peak of memory in megabytes."""
    keep_freed_blocks()  # as the command line does
    rows: list[dict[str, float]] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:  # noqa: ANN401
            rows.append(dict(outputs["record"].seconds))

    student = wst.LocalStudent(TEACHER, max_new_tokens=sizes["answer"], batch_size=64, cache=False)
    teacher = wst.Teacher(TEACHER, max_new_tokens=sizes["instruction"])
    module = wst.WeakToStrong(teacher, student, Vowels(), samples_per_query=sizes["samples"], micro_batch_size=32)
    data = wst.QueryDataModule(train=str(DATA), fields=wst.FieldMap(target=None), batch_size=sizes["queries"])
    quiet_trainer(2, Keep()).fit(module, data)
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() / 1e6 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"step": sum(rows[1].values()), **rows[1], "memory": peak}


def start(count: int) -> dict[str, float]:
    """Return the seconds until the first batch of so many rows, and the memory that the rows take."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for i in range(count):
                file.write(json.dumps({"text": f"Review {i}: " + "rather long, and not convincing. " * 6}) + "\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        data = wst.QueryDataModule(train=str(path), fields=wst.FieldMap(target=None))
        data.setup("fit")
        next(iter(data.train_dataloader()))
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3}


def apart(kind: str, argument: Any) -> dict[str, float]:  # noqa: ANN401
    """Do it in a process of its own."""
    command = [sys.executable, __file__, "--only", kind, json.dumps(argument)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind} {argument}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smallest and largest size alone")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "JSON"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, argument = options.only
        print(json.dumps((step if kind == "step" else start)(json.loads(argument))))
        return
    print(f"Base: {BASE}\n\n| size | step s | sample | respond | update | peak MB |\n|---|---:|---:|---:|---:|---:|")
    for name, sizes in SIZES.items():
        for size in (sizes[0], sizes[-1]) if options.quick else sizes:
            row = apart("step", BASE | {name: size})
            phases = " | ".join(f"{row[phase]:.1f}" for phase in ("step", "sample", "respond", "update"))
            print(f"| {name} {size} | {phases} | {row['memory']:.0f} |", flush=True)
    print("\n| rows of data | s to the first batch | MB |\n|---|---:|---:|")
    for count in ROWS:
        row = apart("start", count)
        print(f"| {count:,} | {row['seconds']:.2f} | {row['memory']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
