"""Kills runs at random moments, takes them up again, and looks at what is left."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from runs import ended, forking_context, start, start_several, write_config
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 30
RUN = Path("runs/tiny/version_0")
FIT = ["fit", "--config", "config.yaml"]
RESUME = [*FIT, "--ckpt_path", "last"]


def configure(folder: Path, model: str, processes: int, url: str | None = None) -> None:
    """Write a run of 30 steps with a checkpoint after each and a validation after every tenth.

    With the address of an endpoint, that is the student, and the progress bar is on: it shows the answers that arrive.
    """
    several: dict[str, Any] = {"trainer.strategy": "ddp", "trainer.devices": processes} if processes > 1 else {}
    changes = {
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 10,
        "trainer.logger.init_args.default_hp_metric": False,
        "data.init_args.batch_size": 4 // processes,
        "model.init_args.baseline": {"class_path": "wst.MovingAverage"},
        "model.init_args.lr_scheduler": {
            "class_path": "wst.WarmupLinear",
            "init_args": {"warmup_steps": 5, "decay_steps": 20, "end_factor": 0.1},
        },
    }
    if url is not None:
        student = {"model": "fake", "base_url": url, "api_key_env": None, "backoff": 0.02}
        changes |= {
            "trainer.enable_progress_bar": True,
            "model.init_args.student": {"class_path": "wst.EndpointStudent", "init_args": student},
            "model.init_args.student_prompt": {"placement": "before"},
        }
    write_config(folder, model, **changes | several)


def begin(folder: Path, processes: int) -> list[Any]:
    """Start the run, or go on with it if it has saved a checkpoint."""
    args = RESUME if any(folder.glob("runs/tiny/version_*/checkpoints/last.ckpt")) else FIT
    return start_several(args, folder, processes) if processes > 1 else [start(args, folder)]


def newest(folder: Path) -> Path:
    """Folder of the run: a run that was killed before its first checkpoint is begun anew in a folder of its own."""
    return max((folder / "runs/tiny").iterdir(), key=lambda run: int(run.name.removeprefix("version_")))


def faults(folder: Path, expected: dict[str, torch.Tensor]) -> list[str]:
    """Say what is not as it is after an unbroken run."""
    run, found = newest(folder), []
    adapter = load_file(run / "teacher/last/adapter_model.safetensors")
    if adapter.keys() != expected.keys() or not all(torch.equal(adapter[name], expected[name]) for name in expected):
        found.append("the adapter differs")
    if torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] != STEPS:
        found.append("the last checkpoint is not of the last step")
    rows = [json.loads(line) for line in (run / "instructions.jsonl").read_text().split("\n")[:-1]]
    for stage, steps in (("train", range(1, STEPS + 1)), ("val", range(10, STEPS + 1, 10))):
        written = [row["step"] for row in rows if row["stage"] == stage]
        if written != [step for step in steps for _ in range(4)]:
            found.append(f"instructions.jsonl has these {stage} steps: {written}")
    events = EventAccumulator(str(run))
    events.Reload()
    for name in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(name)]
        if name.startswith("val/"):
            whole = list(range(10, STEPS + 1, 10))
        elif name.startswith(("train/reward", "vitals/no_variance", "vitals/seconds/sample")):
            whole = list(range(1, STEPS + 1))
        else:  # a figure that a step without a gradient does not have
            whole = sorted(set(steps))
        if steps != whole:
            found.append(f"{name} is logged at {steps}")
    texts = [event.step for event in events.Tensors("instructions/text_summary")]
    if texts != list(range(10, STEPS + 1, 10)):
        found.append(f"the instructions are logged as text at {texts}")
    left = [path.name for path in run.rglob(".*")]
    if left:
        found.append(f"left behind: {left}")
    return found


def torn(folder: Path) -> list[str]:
    """Say which files a killed run left that are not whole."""
    found = []
    for path in folder.glob("runs/tiny/*/checkpoints/*.ckpt"):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            found.append(f"{path.name}: {error}")
    for path in folder.glob("runs/tiny/*/teacher/*/adapter_model.safetensors"):
        try:
            load_file(path)
        except Exception as error:
            found.append(f"{path}: {error}")
    return found


def crash(
    root: Path, model: str, kills: int, processes: int, seed: int, each: int = 4, url: str | None = None
) -> list[str]:
    """Kill runs so many times in all, each at most ``each`` times, and return all faults found."""
    chance = random.Random(seed)
    unbroken = root / "unbroken"
    unbroken.mkdir()
    configure(unbroken, model, processes, url)
    nothing = forking_context().Process()  # the start of the server of forks is no part of a run
    nothing.start()
    nothing.join()
    began = time.monotonic()
    done = ended(begin(unbroken, processes), unbroken)
    seconds = time.monotonic() - began
    assert done.code == 0, done.err
    expected = load_file(unbroken / RUN / "teacher/last/adapter_model.safetensors")
    found = [f"unbroken: {fault}" for fault in faults(unbroken, expected)]
    made = number = 0
    while made < kills:
        number += 1
        folder = root / f"run-{number}"
        folder.mkdir()
        configure(folder, model, processes, url)
        moments: list[float] = []
        while True:
            running = begin(folder, processes)
            wait = chance.uniform(0, seconds) if made < kills and len(moments) < each else 600.0
            victims = chance.sample(running, len(running))
            began = time.monotonic()
            while time.monotonic() - began < wait and any(process.is_alive() for process in running):
                time.sleep(0.01)
            if not any(process.is_alive() for process in running):
                break
            for victim in victims:
                victim.kill()
                time.sleep(chance.uniform(0, 0.3))  # what is left of several processes may do harm meanwhile
            for victim in victims:
                victim.join()
            made += 1
            moments.append(round(time.monotonic() - began, 2))
            found += [f"run {number}, killed after {moments}: torn: {fault}" for fault in torn(folder)]
        done = ended(running, folder)
        these = faults(folder, expected) if done.code == 0 else [f"exit code {done.code}: {done.err[-2000:]}"]
        found += [f"run {number}, killed after {moments}: {fault}" for fault in these]
        print(f"run {number}: killed after {moments} s, {len(these)} faults; {made} kills so far", flush=True)
        if not these:
            shutil.rmtree(folder)
    return found
